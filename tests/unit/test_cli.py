"""The command line without a platform: what it refuses and how, what it writes, what it must not import."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main

from actors.errors import PlatformNotRunning
from actors.settings import DataDirectory, is_process_alive
from twinfleet import __version__
from twinfleet.cli import app, run_command
from twinfleet.credentials import CredentialFiles
from twinfleet.documents import (
    changes,
    compact,
    flatten,
    parse_assignments,
    parse_attributes,
    parse_duration_s,
    shadow_rows,
)
from twinfleet.errors import DoesNotStop, FilesInTheWay, UsageFault
from twinfleet.stopping import stop_platform

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0


def command_paths() -> Iterator[list[str]]:
    yield from paths_below([], typer.main.get_command(app))


def paths_below(path: list[str], command: Any) -> Iterator[list[str]]:
    if not hasattr(command, "commands"):
        yield path
        return
    for name, child in sorted(command.commands.items()):
        yield from paths_below([*path, name], child)


def run_and_read(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Help and usage

# They only read files.
WITHOUT_PLATFORM = (
    ["audit", "check"],
    ["diff"],
    *(["model", name] for name in ("list", "show", "schema", "validate")),
    *(["scenario", name] for name in ("list", "plan", "schema", "validate")),
)


@pytest.mark.parametrize("path", list(command_paths()), ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(
    capsys: pytest.CaptureFixture[str], path: list[str]
) -> None:
    code, out, _ = run_and_read(capsys, *path, "--help")
    assert code == 0
    examples = out[out.index("Example:") :].splitlines()[1:]
    assert any(line.split()[: 1 + len(path)] == ["twinfleet", *path] for line in examples)


@pytest.mark.parametrize(
    "path", [path for path in command_paths() if path not in WITHOUT_PLATFORM], ids=" ".join
)
def test_every_command_that_needs_a_platform_takes_the_data_directory(
    capsys: pytest.CaptureFixture[str], path: list[str]
) -> None:
    assert "--data-dir" in run_and_read(capsys, *path, "--help")[1]


def test_the_issues_commands_are_there() -> None:
    expected = {
        ("up",),
        ("down",),
        ("status",),
        ("run",),
        ("report",),
        ("diff",),
        ("sql",),
        ("query",),
        *(("twin", name) for name in ("describe", "get", "set", "watch", "give-back", "pin", "unpin")),
        *(
            ("device", name)
            for name in ("create", "list", "describe", "delete", "certificates", "rotate", "revoke")
        ),
        *(("certificate", name) for name in ("create", "list", "revoke")),
        *(("fleet", name) for name in ("create", "list", "delete")),
        *(("job", name) for name in ("create", "list", "show", "cancel", "delete")),
        *(("command", name) for name in ("send", "list", "show")),
        *(("model", name) for name in ("list", "show", "schema", "validate")),
        *(("scenario", name) for name in ("list", "plan", "schema", "validate")),
        *(("backup", name) for name in ("create", "verify", "restore")),
        *(("key", name) for name in ("create", "list", "delete")),
        *(("provisioning", "template", name) for name in ("create", "list", "describe", "delete")),
        *(("provisioning", "claim", name) for name in ("create", "list", "revoke")),
        *(("cluster", name) for name in ("list", "move", "drain")),
        *(("audit", name) for name in ("run", "check")),
    }
    assert {tuple(path) for path in command_paths()} == expected


@pytest.mark.parametrize("command", ["", "--help", "--version", "twin --help"])
def test_asking_for_help_is_no_mistake(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = run_and_read(capsys, *shlex.split(command))
    assert (code, err) == (0, "")
    assert out


@pytest.mark.parametrize(
    "command",
    [
        "bogus",
        "twin",
        "twin get",
        "twin get a b",
        "twin get a -o xml",
        "twin set a",
        "twin set a b",
        "twin set a b=1 b=2",
        "twin watch a --count 0",
        "device create a",
        "device create a --out x --attribute colour",
        "device list --limit 0",
        "fleet create a --model thermostat",
        "fleet create a --count many",
        "fleet create a --count 5 --report-every soon",
        "up --mqtt-port 70000",
        "up --mqtt-port 5 --api-port 5",
        "up --shards 0",
        "up --snapshots ftp://host/x",
        "up --snapshots ''",
        "up --shards 2 --shard-actors 3",
        "status --data-dir",
        "run file.yaml --fleet local --path wire",
        "audit run --things 0",
        "audit run --duration soon",
        "audit check",
        "audit check nowhere.jsonl",
    ],
)
def test_a_mistyped_command_ends_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_and_read(capsys, *shlex.split(command))
    assert (code, out) == (2, "")
    assert err.startswith("twinfleet: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_named_by_the_option_that_was_typed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, _, err = run_and_read(capsys, "up", "--data-dir", str(tmp_path / "x"), "--shards", "2000")
    assert "--shards" in err
    _, _, err = run_and_read(capsys, "up", "--data-dir", str(tmp_path / "x"), "--snapshots", "gs://b/x")
    assert err.startswith("twinfleet: command line: --snapshots: must be a path, or a URI")


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "down",
        "twin get a",
        "twin set a b=1",
        "twin watch a",
        "device create a --out here",
        "device list",
        "device describe a",
        "device delete a",
        "fleet create a --count 5",
        "fleet list",
        "fleet delete a",
    ],
)
def test_without_a_platform_a_command_ends_with_3_and_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_and_read(capsys, *shlex.split(command), "--data-dir", "nowhere")
    assert (code, out) == (3, "")
    assert "twinfleet up" in err
    assert err.count("\n") == 1
    # Not even the directory for the device's files.
    assert list(tmp_path.iterdir()) == []


def test_help_and_queries_import_nothing_heavy() -> None:
    program = (
        "import sys; from twinfleet.cli import run_command; run_command(['twin', 'get', 'x']); "
        "print(*(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    heavy = {
        "ray",
        "fastapi",
        "uvicorn",
        "duckdb",
        "pyarrow",
        "numpy",
        "redis",
        "cryptography",
        "httpx",
        "rich",
    }
    assert heavy & set(done.stdout.split()) == set()


# Device models


def test_shipped_models_are_listed_and_shown_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_and_read(capsys, "model", "list")
    assert (code, out.splitlines()[0].split()) == (0, ["NAME", "FIELDS", "EVERY", "DESCRIPTION"])
    assert "thermostat" in out
    listed = msgspec.json.decode(run_and_read(capsys, "model", "list", "-o", "json")[1])["models"]
    for model in listed:
        file = ROOT / "twins" / "models" / f"{model['name']}.yaml"
        assert run_and_read(capsys, "model", "show", model["name"])[1] == file.read_text()
    data = msgspec.json.decode(run_and_read(capsys, "model", "show", "pump", "-o", "json")[1])
    assert data["metadata"]["name"] == "pump"


def test_a_model_file_is_validated_with_all_of_its_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(run_and_read(capsys, "model", "show", "pump")[1])
    code, out, _ = run_and_read(capsys, "model", "validate", str(good))
    assert (code, "nothing is wrong" in out) == (0, True)
    bad.write_text(good.read_text().replace("quantity: wear", "quantty: wear"))
    code, out, err = run_and_read(capsys, "model", "validate", str(good), str(bad))
    assert (code, out) == (2, "")
    line = bad.read_text().splitlines().index("    quantty: wear") + 1
    assert f"{bad}:{line}:5: fields[2].quantty: unknown key; did you mean 'quantity'?" in err
    assert run_and_read(capsys, "model", "show", str(bad))[0] == 2
    assert run_and_read(capsys, "fleet", "create", "x", "--model", str(bad), "--count", "1")[0] == 2


@pytest.mark.parametrize(
    ("model", "words"), [("pumpe", "did you mean 'pump'"), ("./pump.yaml", "cannot be read: No such file")]
)
def test_a_model_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], model: str, words: str
) -> None:
    code, _, err = run_and_read(capsys, "model", "show", model)
    assert (code, words in err) == (2, True)


def test_the_schema_of_model_files_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_and_read(capsys, "model", "schema")
    assert (code, msgspec.json.decode(out)["title"]) == (0, "twinfleet device model")


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


# What is typed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["set_point=21.5"], {"set_point": 21.5}),
        (["on=true", "label=hall", "gone=null"], {"on": True, "label": "hall", "gone": None}),
        (["text=a=b"], {"text": "a=b"}),
        (["text="], {"text": ""}),
        (['text="21"'], {"text": "21"}),
        (["list=[1, 2]"], {"list": [1, 2]}),
        (["a.b.c=1", "a.d=x"], {"a": {"b": {"c": 1}, "d": "x"}}),
        (["a=NaN"], {"a": "NaN"}),
    ],
)
def test_an_assignment_means_json_where_it_can(typed: list[str], meant: dict[str, Any]) -> None:
    assert compact(parse_assignments(typed)) == compact(meant)


@pytest.mark.parametrize(
    "typed", [["a"], ["=1"], ["a..b=1"], ["a=1", "a=2"], ["a=1", "a.b=2"], ["a.b=1", "a=2"]]
)
def test_an_assignment_that_contradicts_is_refused(typed: list[str]) -> None:
    with pytest.raises(UsageFault):
        parse_assignments(typed)


@pytest.mark.parametrize(
    ("typed", "seconds"), [("10s", 10), ("7", 7), ("2m", 120), ("1h", 3600), ("1d", 86400)]
)
def test_a_duration_is_read(typed: str, seconds: int) -> None:
    assert parse_duration_s(typed) == seconds


@pytest.mark.parametrize("typed", ["", "s", "-5s", "1.5s", "10 s", "5w", "٣s"])
def test_what_is_no_duration_is_refused(typed: str) -> None:
    with pytest.raises(UsageFault):
        parse_duration_s(typed)


def test_attributes_are_read_and_repeated_ones_refused() -> None:
    assert parse_attributes(["room=hall", "note=a=b", "empty="]) == {
        "room": "hall",
        "note": "a=b",
        "empty": "",
    }
    for typed in (["room"], ["=x"], ["a=1", "a=2"]):
        with pytest.raises(UsageFault):
            parse_attributes(typed)


# What is shown


def test_a_tree_is_flattened_to_its_values() -> None:
    tree = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}
    assert list(flatten(tree)) == [("a.b", 1), ("a.c", {}), ("d", [1, {"e": 2}])]
    assert list(flatten({})) == []


def test_changes_name_what_came_went_and_differs() -> None:
    before = {"state": {"desired": {"on": 1, "gone": 2}, "reported": {"t": 1.5}}}
    after = {"state": {"desired": {"on": True}, "reported": {"t": 1.5, "deep": {"x": "y"}}}}
    assert changes(before, after) == [
        "desired.on = true (was 1)",
        "desired.gone removed (was 2)",
        'reported.deep.x = "y"',
    ]
    assert changes(after, after) == []


def test_a_shadow_is_shown_field_by_field() -> None:
    document = {
        "state": {
            "desired": {"set_point": 21, "mode": {"night": True}},
            "reported": {"set_point": 20, "mode": {"night": True}},
            "delta": {"set_point": 21},
        },
        "metadata": {"reported": {"set_point": {"timestamp": 7}, "mode": {"night": {"timestamp": 8}}}},
    }
    assert shadow_rows(document) == [
        ("set_point", "21", "20", "7", "*"),
        ("mode.night", "true", "true", "8", ""),
    ]


# The files of a device


def test_a_devices_files_are_written_with_a_private_key_for_its_owner_only(tmp_path: Path) -> None:
    files = CredentialFiles.in_directory(tmp_path / "new", "lamp")
    files.check("CA")
    files.write(certificate_pem="CERTIFICATE", key_pem="KEY", ca_pem="CA")
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {
        "lamp.pem": "CERTIFICATE",
        "lamp.key": "KEY",
        "ca.pem": "CA",
    }
    assert files.key.stat().st_mode & 0o777 == 0o600
    second = CredentialFiles.in_directory(tmp_path / "new", "bell")
    second.check("CA")
    second.write(certificate_pem="C", key_pem="K", ca_pem="CA")


@pytest.mark.parametrize("name", ["lamp.pem", "lamp.key", "ca.pem"])
def test_a_file_that_is_there_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(FilesInTheWay, match="--out"):
        CredentialFiles.in_directory(tmp_path, "lamp").check("CA")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_device_may_not_take_the_place_of_the_authoritys_certificate(tmp_path: Path) -> None:
    with pytest.raises(FilesInTheWay, match="authority"):
        CredentialFiles.in_directory(tmp_path / "new", "ca").check("CA")
    assert not (tmp_path / "new").exists()


def test_a_file_that_appears_meanwhile_leaves_none_half_written(tmp_path: Path) -> None:
    files = CredentialFiles.in_directory(tmp_path, "lamp")
    files.check("CA")
    files.certificate.write_text("precious")
    with pytest.raises(FilesInTheWay):
        files.write(certificate_pem="CERTIFICATE", key_pem="KEY", ca_pem="CA")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("lamp.pem", "precious")]


def test_a_place_that_is_no_directory_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FilesInTheWay, match="--out"):
        CredentialFiles.in_directory(tmp_path / "file", "lamp").check("CA")


# Stopping

# Holds the lock of the data directory as a platform does, and ends at SIGTERM or not.
_HOLDER = """
import signal, sys, time
from pathlib import Path
from actors.settings import DataDirectory
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
directory = DataDirectory(Path(sys.argv[1]))
directory.prepare()
with directory.lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start(kind: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(tmp_path), kind], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_down_ends_the_process_that_holds_the_directory(
    tmp_path: Path, holders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holders("obedient")
    code, out, _ = run_and_read(capsys, "down", "--data-dir", str(tmp_path))
    assert (code, str(process.pid) in out) == (0, True)
    assert not is_process_alive(process.pid)
    assert process.wait() == -signal.SIGTERM
    with pytest.raises(PlatformNotRunning):
        stop_platform(tmp_path)


def test_down_gives_up_on_a_process_that_does_not_end(tmp_path: Path, holders: Any) -> None:
    process = holders("deaf")
    with pytest.raises(DoesNotStop, match=str(process.pid)):
        stop_platform(tmp_path, timeout_s=0.1)
    assert is_process_alive(process.pid)


def test_down_leaves_alone_a_process_that_only_has_the_old_number(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.prepare()
    # As a platform that was killed leaves it: the number of some process in the file, and nobody holds the lock.
    directory.lock_file.write_text(f"{os.getpid()}\n")
    with pytest.raises(PlatformNotRunning):
        stop_platform(tmp_path)
    with directory.lock_file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
