"""Everything that the outside tells the platform: settings, environment, the data directory and its endpoints.

The only module that reads configuration files and environment variables. It owns the layout of the data directory
and how files in it are written; what stands in the files of a part (certificates, broker configuration) is that
part's own.
"""

from __future__ import annotations

import dataclasses
import difflib
import fcntl
import ipaddress
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit

import msgspec
import yaml

from actors.errors import (
    DataDirectoryBusy,
    DataDirectoryVersion,
    PlatformNotRunning,
    SettingsError,
)

# Raised by one whenever an older program could not read the directory any more.
DATA_FORMAT: Final = 1
# Stands in place of the format until a directory has been restored to its end.
UNFINISHED: Final = "being restored"
# 256 bits: guessing is out of the question, whatever the rate, so secrets need no slow hash and no lock-out.
_SECRET_BYTES: Final = 32
# Shorter text in a secret file is a cut-off or hand-made file: half of what we write.
_SECRET_LENGTH_MIN: Final = 16
_TCP_PORT_MAX: Final = 65535
_PORT_KEYS: Final = ("mqtt_port", "device_port", "api_port", "store_port")
# What a location that is no path may be: a directory, or a bucket and prefix of an S3 service.
_LOCATION_SCHEMES: Final = ("file", "s3")
_SHARD_COUNT: Final = 16
_SHARD_ACTOR_COUNT: Final = min(_SHARD_COUNT, max(1, (os.cpu_count() or 1) // 2))


def _between(minimum: float, maximum: float) -> dict[str, float]:
    return {"minimum": minimum, "maximum": maximum}


@dataclass(frozen=True, slots=True)
class PlatformSettings:
    """The settings of one platform, checked: every value is of its type, in bounds and contradicts no other."""

    data_dir: Path
    # The registered port of MQTT over TLS; 0 takes a free one, here and below.
    mqtt_port: int = field(default=8883, metadata=_between(0, _TCP_PORT_MAX))
    # 8443, the port of AWS IoT's HTTPS data plane for devices.
    device_port: int = field(default=8443, metadata=_between(0, _TCP_PORT_MAX))
    # The customary unprivileged HTTP port.
    api_port: int = field(default=8080, metadata=_between(0, _TCP_PORT_MAX))
    # Stored with the data and never changed after, so there are more shards than a laptop has use for;
    # 1024 shards are 64 machines of 16 cores.
    shard_count: int = field(default=_SHARD_COUNT, metadata=_between(1, 1024))
    # One for every two cores: broker, store and bridge need the others. On two cores, 1,000 shadow updates a second are
    # answered within 8 ms (p50) by one actor and 14 ms by two; a Ray call costs each side a millisecond, whatever it
    # brings. A Ray process costs some 100 MB, which bounds the number from above.
    shard_actor_count: int = field(default=_SHARD_ACTOR_COUNT, metadata=_between(1, 256))
    # Writes beyond it are refused, not buffered: half the memory of a small machine. At least 64 MiB, below which
    # a Redis with a few clients has no room for data.
    store_memory_max_bytes: int = field(default=2 << 30, metadata=_between(64 << 20, 1 << 40))
    # A broker or store with a large file to read back starts in seconds; half a minute means that it hangs.
    start_timeout_s: float = field(default=30.0, metadata=_between(1.0, 600.0))
    # Time to save sessions and close files before a process is killed.
    stop_timeout_s: float = field(default=10.0, metadata=_between(0.1, 600.0))
    # The key of the platform's secrets at rest; None: vault.key in the data directory.
    key_file: Path | None = None
    # The address of this machine at which further nodes reach its store and its Ray; None: none do but on this machine.
    cluster_address: str | None = None
    # The store's port; the nodes know it from a copy of endpoints.json, which then stays true. 0 takes a free one.
    store_port: int = field(default=0, metadata=_between(0, _TCP_PORT_MAX))
    # How Ray is to start further machines, as `ray up` has written it down; None: it starts none.
    autoscaling_config: Path | None = None
    # Where snapshots of shards lie, a path or a URI (file, s3); None: `snapshots` in the data directory.
    snapshot_location: str | None = None

    def __post_init__(self) -> None:
        for setting in _NUMBERS:
            _check_number(setting, getattr(self, setting.name))
        if self.key_file is not None:
            _check_path("key_file", self.key_file)
        if self.autoscaling_config is not None:
            _check_path("autoscaling_config", self.autoscaling_config)
        if self.cluster_address is not None:
            check_address("cluster_address", self.cluster_address)
        if self.snapshot_location is not None:
            check_location("snapshot_location", self.snapshot_location)
        if self.shard_actor_count > self.shard_count:
            problem = f"{self.shard_actor_count} actors for {self.shard_count} shards leave some without work"
            raise SettingsError(
                "settings",
                "shard_actor_count",
                f"{problem}; take {self.shard_count} at most",
            )
        for index, key in enumerate(_PORT_KEYS):
            for other in _PORT_KEYS[:index]:
                if getattr(self, key) and getattr(self, key) == getattr(self, other):
                    problem = (
                        f"port {getattr(self, key)} is also {other}; give each its own, or 0 for a free one"
                    )
                    raise SettingsError("settings", key, problem)

    @classmethod
    def load(
        cls, data_dir: Path, overrides: Mapping[str, int | float | str | Path | None]
    ) -> PlatformSettings:
        """Return the settings for `data_dir`: defaults, then its settings.yaml, then `overrides`.

        An override of None is one that the command line did not give. A relative path in the file starts at
        `data_dir`, one of the command line at the working directory. SettingsError names the file and the key.
        """
        file = DataDirectory(data_dir).settings_file
        values = _read_settings_file(file)
        key_file = values.get("key_file")
        if isinstance(key_file, str) and key_file:
            values["key_file"] = file.parent / key_file
        autoscaling_config = values.get("autoscaling_config")
        if isinstance(autoscaling_config, str) and autoscaling_config:
            values["autoscaling_config"] = file.parent / autoscaling_config
        location = values.get("snapshot_location")
        if isinstance(location, str):
            values["snapshot_location"] = absolute_location(location, file.parent)
        sources = {key: (str(file), key) for key in values}
        for key, value in overrides.items():
            if value is not None:
                values[key] = value
                sources[key] = ("command line", "--" + key.replace("_", "-"))
        known = (*_NUMBER_NAMES, "key_file", "snapshot_location", "cluster_address", "autoscaling_config")
        for key in values:
            if key not in known:
                raise SettingsError(*sources[key], problem=_unknown(key, known))
        shard_count = values.get("shard_count")
        if isinstance(shard_count, int) and "shard_actor_count" not in values:
            values["shard_actor_count"] = max(1, min(shard_count, _SHARD_ACTOR_COUNT))
        try:
            # __post_init__ checks the types, which a file cannot promise.
            return cls(data_dir=Path(data_dir), **values)  # type: ignore[arg-type]
        except SettingsError as error:
            source, key = sources.get(error.key, ("defaults", error.key))
            raise SettingsError(source, key, error.problem) from None


_NUMBERS: Final = tuple(setting for setting in dataclasses.fields(PlatformSettings) if setting.metadata)
_NUMBER_NAMES: Final = tuple(setting.name for setting in _NUMBERS)


def _check_number(setting: dataclasses.Field[object], value: object) -> None:
    wanted = "a whole number" if isinstance(setting.default, int) else "a number"
    # JSON's and YAML's true is not 1.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (isinstance(setting.default, int) and not isinstance(value, int)):
        raise SettingsError("settings", setting.name, f"must be {wanted}, not {value!r}")
    minimum, maximum = setting.metadata["minimum"], setting.metadata["maximum"]
    if not minimum <= value <= maximum:
        raise SettingsError(
            "settings",
            setting.name,
            f"must be from {minimum} to {maximum}, not {value!r}",
        )


def _check_path(key: str, value: object) -> None:
    if not isinstance(value, Path):
        raise SettingsError("settings", key, f"must be the path of a file, not {value!r}")


def check_address(key: str, value: object) -> None:
    """Raise SettingsError unless the value is an IPv4 address of one machine."""
    try:
        is_one = isinstance(value, str) and not ipaddress.IPv4Address(value).is_unspecified
    except ValueError:
        is_one = False
    if not is_one:
        raise SettingsError("settings", key, f"must be an IPv4 address of this machine, not {value!r}")


def check_location(key: str, value: object) -> None:
    """Raise SettingsError unless the value has the form of a place for files: a path, or a URI of a known scheme."""
    if not isinstance(value, str) or not value:
        raise SettingsError("settings", key, f"must be a path or a URI, not {value!r}")
    if not is_path(value) and urlsplit(value).scheme not in _LOCATION_SCHEMES:
        known = " or ".join(f"{scheme}://" for scheme in _LOCATION_SCHEMES)
        problem = f"must be a path, or a URI that begins with {known}, not {value!r}"
        raise SettingsError("settings", key, problem)


def absolute_location(location: str, start: Path) -> str:
    """Return a location that means the same from everywhere: a relative path begins at `start`, a URI stays."""
    return str(start.absolute() / location) if location and is_path(location) else location


def is_path(location: str) -> bool:
    """Tell whether a location is a path, not a URI."""
    return "://" not in location


def _unknown(key: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
    return f"unknown setting; {advice}"


def _read_settings_file(file: Path) -> dict[str, object]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(file), "", f"cannot be read: {error}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(str(file), "", f"is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(str(file), "", "must hold lines of `setting: value`")
    keys = [key_node.value for key_node, _ in root.value]
    for key in keys:
        # The YAML library silently takes the last of two.
        if keys.count(key) > 1:
            raise SettingsError(str(file), str(key), "stands there twice; keep one")
    return {str(key): value for key, value in content.items()}


@dataclass(frozen=True, slots=True)
class MqttsEndpoint:
    """Where devices connect with MQTT over mutual TLS."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UrlEndpoint:
    """An address that a URL tells in full."""

    url: str


@dataclass(frozen=True, slots=True)
class RayEndpoint:
    """How a driver joins the platform's Ray cluster."""

    address: str
    token_file: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running platform can be reached: the content of endpoints.json, key for key.

    `redis.url` holds the store's password, therefore the file is readable by its owner only.
    """

    pid: int
    version: str
    mqtts: MqttsEndpoint
    api: UrlEndpoint
    metrics: UrlEndpoint
    ca: str
    operator_token_file: str
    redis: UrlEndpoint
    ray: RayEndpoint
    https_devices: UrlEndpoint | None = None
    # What a backup needs, and `up` may have been told otherwise than settings.yaml.
    snapshots: str | None = None
    key_file: str | None = None

    @classmethod
    def read(cls, data_dir: Path) -> Endpoints:
        """Return the endpoints of the platform that runs on `data_dir`; PlatformNotRunning if none does."""
        file = DataDirectory(data_dir).endpoints_file
        endpoints = cls.load(file)
        if not is_process_alive(endpoints.pid):
            raise PlatformNotRunning(data_dir, f"process {endpoints.pid} of {file} has died")
        return endpoints

    @classmethod
    def load(cls, file: Path) -> Endpoints:
        """Return the endpoints that stand in a file, which may come from another machine."""
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise PlatformNotRunning(file.parent, f"{file} does not exist") from None
        except PermissionError:
            raise PlatformNotRunning(file.parent, f"{file} belongs to another user") from None
        try:
            return msgspec.json.decode(content, type=cls)
        except msgspec.DecodeError as error:
            raise PlatformNotRunning(file.parent, f"{file} is damaged: {error}") from None

    def write(self, data_dir: Path) -> None:
        """Publish these endpoints in `data_dir`, in one step: a reader sees all of them or none."""
        content = msgspec.json.format(msgspec.json.encode(self), indent=2)
        write_atomically(DataDirectory(data_dir).endpoints_file, content + b"\n")

    @staticmethod
    def remove(data_dir: Path) -> None:
        """Withdraw the endpoints of `data_dir`; nothing happens if there are none."""
        DataDirectory(data_dir).endpoints_file.unlink(missing_ok=True)


class DataDirectory:
    """The directory in which one platform keeps everything: where each part's files lie, and who holds it."""

    def __init__(self, path: Path) -> None:
        # Absolute, because processes with another working directory get these paths.
        self.path: Final = Path(path).absolute()
        if not str(self.path).isprintable():
            # It is written into line-based configuration files.
            raise SettingsError(
                "--data-dir",
                repr(str(path)),
                "holds control characters; choose another name",
            )
        self.endpoints_file: Final = self.path / "endpoints.json"
        self.format_file: Final = self.path / "format"
        self.lock_file: Final = self.path / "lock"
        self.settings_file: Final = self.path / "settings.yaml"
        self.operator_token_file: Final = self.path / "operator.token"
        self.ray_token_file: Final = self.path / "ray.token"
        self.redis_password_file: Final = self.path / "redis.password"
        self.key_file: Final = self.path / "vault.key"
        self.pki: Final = self.path / "pki"
        self.redis: Final = self.path / "redis"
        self.mosquitto: Final = self.path / "mosquitto"
        self.logs: Final = self.path / "logs"
        # Modules with behaviours of pinned twins; whoever may write here has code run by the platform.
        self.behaviors: Final = self.path / "behaviors"
        self.reports: Final = self.path / "reports"
        self.identity_file: Final = self.path / "platform.id"
        self.snapshots: Final = self.path / "snapshots"
        self.tools: Final = self.path / "tools"

    def prepare(self) -> None:
        """Create the directory, or check that this version can read the one that is there.

        What is created is for its owner only. A directory that exists keeps its mode, since it may hold other things
        (`./dev setup` puts tools into it); the parts inside it and every file with a secret are closed all the same.
        """
        try:
            found = self.format_file.read_text(encoding="utf-8", errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            found = ""
        if found == UNFINISHED:
            problem = "a backup was not restored to its end here; remove the directory and restore it again"
            raise SettingsError("--data-dir", str(self.path), problem)
        if found not in ("", str(DATA_FORMAT)):
            raise DataDirectoryVersion(self.format_file, found, DATA_FORMAT)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in (self.behaviors, self.logs, self.mosquitto, self.pki, self.redis, self.reports):
                part.mkdir(mode=0o700, exist_ok=True)
            if not found:
                write_atomically(self.format_file, f"{DATA_FORMAT}\n".encode())
        except OSError as error:
            problem = f"cannot be made a data directory: {error}; choose another"
            raise SettingsError("--data-dir", str(self.path), problem) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory while the context is open; DataDirectoryBusy tells who holds it already.

        The kernel gives the lock back when the holder dies, however it dies. Child processes do not inherit it.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # 20 digits hold any process id.
                holder = os.pread(descriptor, 20, 0).strip()
                raise DataDirectoryBusy(self.path, int(holder) if holder.isdigit() else None) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def read_or_create_secret(path: Path) -> str:
    """Return the secret that `path` holds; if there is none yet, a new random one of 256 bits, kept for later.

    Only the owner may read the file. When two processes create it at once, both get the same secret.
    """
    if not path.exists():
        create_once(path, secrets.token_urlsafe(_SECRET_BYTES).encode() + b"\n")
    path.chmod(0o600)
    secret = path.read_text(encoding="utf-8", errors="replace").strip()
    if len(secret) < _SECRET_LENGTH_MIN:
        problem = f"holds no secret of at least {_SECRET_LENGTH_MIN} characters; remove it to get a new one"
        raise SettingsError(str(path), "", problem)
    return secret


def create_once(path: Path, content: bytes) -> None:
    """Write a file for its owner only, in one step that survives a crash; one that is there meanwhile stays."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_synced(beside, content)
        # Unlike rename, link does not replace what another process wrote meanwhile.
        os.link(beside, path)
    except FileExistsError:
        pass
    finally:
        beside.unlink(missing_ok=True)
    _sync_directory(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file, for its owner only, that replaces the one at `path` in one step when the context ends.

    What is raised inside leaves the old file; the step survives a crash.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with _synced(beside) as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_directory(path.parent)


def write_atomically(path: Path, content: bytes, *, check: Callable[[bytes], None] | None = None) -> None:
    """Replace the file at `path`, for its owner only, in one step that survives a crash: it is the old or the new.

    `check` gets what a reader will find, before the file takes its place; what it raises leaves the old file.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_synced(beside, content)
        if check is not None:
            check(beside.read_bytes())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _write_synced(path: Path, content: bytes) -> None:
    with _synced(path) as file:
        file.write(content)


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_process_alive(pid: int) -> bool:
    """Tell whether the process runs; one that has ended and waits for its parent to notice does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The state follows the program's name, which stands in parentheses and may itself hold any character.
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def process_environment() -> dict[str, str]:
    """Return a copy of this process's environment, for a child to start from."""
    return dict(os.environ)


def search_path() -> tuple[Path, ...]:
    """Return the directories in which programs are looked up, in the order of PATH."""
    return tuple(Path(part) for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part)


def export_environment(variables: Mapping[str, str]) -> None:
    """Set variables of this process's own environment, in place, for a library that takes settings in no other way."""
    os.environ.update(variables)
