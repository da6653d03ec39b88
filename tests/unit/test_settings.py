"""Settings, the data directory, endpoints and secrets."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import DataDirectoryBusy, DataDirectoryVersion, PlatformNotRunning, SettingsError
from actors.settings import (
    DataDirectory,
    Endpoints,
    MqttsEndpoint,
    PlatformSettings,
    RayEndpoint,
    UrlEndpoint,
    is_process_alive,
    read_or_create_secret,
    write_atomically,
)

ENDPOINTS = Endpoints(
    pid=os.getpid(),
    version="0.1.0",
    mqtts=MqttsEndpoint("localhost", 8883),
    api=UrlEndpoint("http://127.0.0.1:8080"),
    metrics=UrlEndpoint("http://127.0.0.1:8080/metrics"),
    ca="/x/pki/ca.pem",
    operator_token_file="/x/operator.token",
    redis=UrlEndpoint("redis://:secret@127.0.0.1:6379/0"),
    ray=RayEndpoint("127.0.0.1:6379", "/x/ray.token", "twinfleet"),
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# ---- settings ------------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("mqtt_port: 1883\nshard_count: 64\nstart_timeout_s: 5\n")
    settings = PlatformSettings.load(tmp_path, {"mqtt_port": 0, "api_port": None})
    assert (settings.mqtt_port, settings.shard_count, settings.api_port) == (0, 64, 8080)
    assert settings.start_timeout_s == 5
    assert settings.data_dir == tmp_path


def test_a_key_file_is_looked_for_from_where_it_was_named(tmp_path: Path) -> None:
    assert PlatformSettings.load(tmp_path, {}).key_file is None
    (tmp_path / "settings.yaml").write_text("key_file: keys/vault.key\n")
    assert PlatformSettings.load(tmp_path, {}).key_file == tmp_path / "keys" / "vault.key"
    (tmp_path / "settings.yaml").write_text("key_file: /etc/keys/vault.key\n")
    assert PlatformSettings.load(tmp_path, {}).key_file == Path("/etc/keys/vault.key")
    given = Path("here.key").absolute()
    assert PlatformSettings.load(tmp_path, {"key_file": given}).key_file == given


def test_a_place_for_snapshots_is_a_path_from_where_it_was_named_or_a_uri(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    assert PlatformSettings.load(tmp_path, {}).snapshot_location is None
    file.write_text("snapshot_location: down/there\n")
    assert PlatformSettings.load(tmp_path, {}).snapshot_location == str(tmp_path / "down" / "there")
    for text in ("/srv/snapshots", "file:///srv/snapshots", "s3://bucket/prefix?scheme=http"):
        file.write_text(f"snapshot_location: {text}\n")
        assert PlatformSettings.load(tmp_path, {}).snapshot_location == text
        given = {"snapshot_location": text}
        assert PlatformSettings.load(tmp_path / "other", given).snapshot_location == text


def test_an_empty_settings_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("# nothing yet\n")
    assert PlatformSettings.load(tmp_path, {}) == PlatformSettings(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("shard_cuont: 4", "shard_cuont: unknown setting; did you mean shard_count?"),
        ("colour: blue", "colour: unknown setting; known are mqtt_port"),
        ("data_dir: /x", "data_dir: unknown setting"),
        ("shard_count: 0", "shard_count: must be from 1 to 1024, not 0"),
        ("shard_count: 1025", "shard_count: must be from 1 to 1024, not 1025"),
        ("mqtt_port: 65536", "mqtt_port: must be from 0 to 65535, not 65536"),
        ("mqtt_port: true", "mqtt_port: must be a whole number, not True"),
        ("mqtt_port: '8883'", "mqtt_port: must be a whole number, not '8883'"),
        ("mqtt_port: 8883.0", "mqtt_port: must be a whole number, not 8883.0"),
        ("mqtt_port:", "mqtt_port: must be a whole number, not None"),
        ("start_timeout_s: .inf", "start_timeout_s: must be a number, not inf"),
        ("start_timeout_s: .nan", "start_timeout_s: must be a number, not nan"),
        ("key_file: 7", "key_file: must be the path of a file, not 7"),
        ("key_file: ''", "key_file: must be the path of a file, not ''"),
        ("snapshot_location: 7", "snapshot_location: must be a path or a URI, not 7"),
        ("snapshot_location: ''", "snapshot_location: must be a path or a URI, not ''"),
        (
            "snapshot_location: ftp://x/y",
            "snapshot_location: must be a path, or a URI that begins with file://",
        ),
        ("key_fiel: x", "key_fiel: unknown setting; did you mean key_file?"),
        ("api_port: 8883", "api_port: port 8883 is also mqtt_port"),
        ("shard_count: 2\nshard_actor_count: 3", "shard_actor_count: 3 actors for 2 shards"),
        ("mqtt_port: 1\nmqtt_port: 2", "mqtt_port: stands there twice"),
        ("- mqtt_port", "must hold lines of `setting: value`"),
        ("mqtt_port: [", "is not YAML"),
    ],
)
def test_a_wrong_settings_file_is_refused_with_the_file_and_the_key(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        PlatformSettings.load(tmp_path, {})
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_a_wrong_option_is_refused_by_its_name_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="command line: --mqtt-port: must be from 0 to 65535, not 70000"):
        PlatformSettings.load(tmp_path, {"mqtt_port": 70000})


def test_settings_cannot_be_made_out_of_bounds_in_code_either(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="shard_count"):
        PlatformSettings(data_dir=tmp_path, shard_count=0)


def test_several_ports_may_be_free_ones(tmp_path: Path) -> None:
    assert PlatformSettings(data_dir=tmp_path, mqtt_port=0, device_port=0, api_port=0).api_port == 0


# ---- endpoints -----------------------------------------------------------------------------------------------------


def test_endpoints_read_back_as_written_and_are_for_the_owner_only(tmp_path: Path) -> None:
    ENDPOINTS.write(tmp_path)
    assert Endpoints.read(tmp_path) == ENDPOINTS
    assert mode_of(tmp_path / "endpoints.json") == 0o600
    assert names_in(tmp_path) == ["endpoints.json"]


def test_the_endpoints_of_a_dead_process_are_no_running_platform(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as child:
        # Not waited for: it is a zombie, which still has a process id.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        replace(ENDPOINTS, pid=child.pid).write(tmp_path)
        with pytest.raises(PlatformNotRunning, match=f"process {child.pid} of .*endpoints.json has died"):
            Endpoints.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b'{"pid": "x"}'])
def test_damaged_endpoints_are_no_running_platform(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "endpoints.json").write_bytes(content)
    with pytest.raises(PlatformNotRunning, match="damaged"):
        Endpoints.read(tmp_path)


def test_without_endpoints_the_error_says_how_to_start_a_platform(tmp_path: Path) -> None:
    ENDPOINTS.write(tmp_path)
    Endpoints.remove(tmp_path)
    Endpoints.remove(tmp_path)
    with pytest.raises(PlatformNotRunning, match=f"twinfleet up --data-dir {tmp_path}"):
        Endpoints.read(tmp_path)


# ---- the data directory --------------------------------------------------------------------------------------------


def test_a_new_data_directory_is_for_its_owner_only_and_says_its_layout(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "b")
    directory.prepare()
    assert mode_of(directory.path) == 0o700
    assert directory.format_file.read_text() == "1\n"
    directory.prepare()


@pytest.mark.parametrize("found", ["2", "1.5", "x"])
def test_another_layout_is_refused_with_the_name_of_the_file(tmp_path: Path, found: str) -> None:
    (tmp_path / "format").write_text(found)
    with pytest.raises(DataDirectoryVersion, match=f"{tmp_path}/format says layout '{found}'"):
        DataDirectory(tmp_path).prepare()
    assert names_in(tmp_path) == ["format"]


def test_a_directory_with_other_files_keeps_its_mode_and_closes_its_parts(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "tools").mkdir()
    directory = DataDirectory(tmp_path)
    directory.prepare()
    assert mode_of(tmp_path) == 0o755
    assert {mode_of(part) for part in (directory.pki, directory.redis, directory.mosquitto)} == {0o700}


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be made a data directory"):
        DataDirectory(tmp_path / "file").prepare()


def test_a_name_that_would_break_a_configuration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="control characters"):
        DataDirectory(tmp_path / "a\nb")


def test_a_held_directory_names_its_holder_and_is_free_again_afterwards(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    with directory.lock():
        with (
            pytest.raises(DataDirectoryBusy, match=f"held by process {os.getpid()}") as caught,
            directory.lock(),
        ):
            pass
        assert caught.value.holder_pid == os.getpid()
    with directory.lock():
        pass


# ---- secrets and files ---------------------------------------------------------------------------------------------


def test_a_secret_stays_the_same_and_is_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "token"
    secret = read_or_create_secret(path)
    path.chmod(0o644)
    assert read_or_create_secret(path) == secret
    assert len(secret) >= 43
    assert mode_of(path) == 0o600
    assert names_in(tmp_path) == ["token"]


def test_two_that_create_a_secret_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: read_or_create_secret(tmp_path / "token"), range(32)))) == 1


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_cut_off_secret_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(SettingsError, match="holds no secret"):
        read_or_create_secret(tmp_path / "token")


def refuse(_content: bytes) -> None:
    raise ValueError("not this one")


@pytest.mark.parametrize("check", [refuse])
def test_a_file_that_fails_its_check_does_not_take_the_old_ones_place(
    tmp_path: Path, check: Callable[[bytes], None]
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(ValueError, match="not this one"):
        write_atomically(path, b"new", check=check)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_this_process_is_alive_and_an_impossible_one_is_not() -> None:
    assert is_process_alive(os.getpid())
    # Above the kernel's upper bound for process ids, 2^22.
    assert not is_process_alive(1 << 23)
