"""The managed MQTT broker (mosquitto): configured, started, checked and reloaded, its sessions ended.

Owns its configuration files and what counts as ready. The values and their reasons stand in the templates of
`broker_config`; certificates are `pki`'s, and who has an entry in the access list is the registry's.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actors.errors import BrokerError, PlatformNotRunning
from actors.pki import EVENTS_USER, INTERNAL_USER
from actors.processes import (
    LOOPBACK,
    find_process,
    free_port,
    is_port_free,
    loopback_addresses,
    open_file_count_max,
    require_port_free,
    standstill,
    wait_until,
)
from actors.registry.registry import Registry
from actors.servers import PROBE_TIMEOUT_S, TEMPLATES, ManagedServer, pid_file
from actors.settings import (
    DataDirectory,
    PlatformSettings,
    is_process_alive,
    read_or_create_secret,
    write_atomically,
)

# A reload reads a few files. With 20,000 certificates that bear their id it took 21 s on a busy machine of two cores.
_RELOAD_TIMEOUT_S: Final = 30.0
# The password has 256 random bits, so stretching it adds nothing: mosquitto_passwd's own default.
_PASSWORD_ITERATIONS: Final = 101
# mosquitto accepts salts of 12 (and, later, 64) bytes.
_PASSWORD_SALT_BYTES: Final = 12
# Files that the broker keeps from devices: its own (12), and connections of the platform (the bridge, the gateway, a
# few probes at a time); the rest is room.
_RESERVED_FILE_COUNT: Final = 100
# Connections at once that end sessions, out of the room of _RESERVED_FILE_COUNT; more are not faster.
_ENDED_AT_ONCE: Final = 8
_DISCONNECT: Final = b"\xe0\x00"
# Holds a number that is drawn anew before each start; by chance no two of them are alike.
_START_FILE: Final = "broker.start"
_START_BITS: Final = 63
_RELOAD_BEGINS: Final = b"Reloading config"
# After the time: elsewhere in a line may stand what a device has chosen, as the filter of a subscription.
_PROBLEM: Final = re.compile(r"\S+ Error:")


@dataclass(frozen=True, slots=True)
class InternalListener:
    """Where the bridge or the gateway, and nobody else, connects to the broker: TCP on loopback, with a password."""

    host: str
    port: int
    user_name: str
    password: str


@dataclass(frozen=True, slots=True)
class AccessList:
    """Who may use more of the devices' listener than the topics of the thing that its common name says.

    `entries` are (common name, thing name) of the certificates whose common name is their id; the others are common
    names. A claim may always ask; the answers, which are common to all claims, only `provisioning_claim` may hear.
    """

    entries: Sequence[tuple[str, str]] = ()
    observers: Sequence[str] = ()
    operators: Sequence[str] = ()
    claims: Sequence[str] = ()
    provisioning_claim: str | None = None

    @classmethod
    async def of(cls, registry: Registry, *, provisioning_claim: str | None = None) -> AccessList:
        """Return what the registered certificates that are in force may do."""
        certificates = registry.certificates
        applications = [one for one in await certificates.of_kind("application") if one.is_in_force]
        claims = [one.common_name for one in await certificates.of_kind("claim") if one.is_in_force]
        observers, operators = (
            sorted(one.common_name for one in applications if one.role == role)
            for role in ("observer", "operator")
        )
        entries = sorted((await certificates.acl_entries()).items())
        return cls(entries, observers, operators, sorted(claims), provisioning_claim)


class MosquittoBroker(ManagedServer):
    """The platform's MQTT broker: devices over mutual TLS, the bridge on an internal listener.

    The caller holds the data directory's lock, and certificates are in place before `start`. Ports that were chosen
    freely stay the same when it is started again, by this object or the next.
    """

    label = "mosquitto"
    program = "mosquitto"
    error = BrokerError

    def __init__(self, settings: PlatformSettings) -> None:
        directory = DataDirectory(settings.data_dir)
        super().__init__(
            settings,
            home=directory.mosquitto,
            configuration=_mosquitto_file(directory),
            log_file=_mosquitto_log(directory),
        )
        self.port: Final = settings.mqtt_port or _kept_port(directory, "device.port")
        self.internal: Final = _internal_listener(directory, INTERNAL_USER)
        self.events: Final = _internal_listener(directory, EVENTS_USER)

    def spawn(self) -> None:
        """Start the broker without waiting for it; PortInUse, ToolMissing or ProcessEnded if it cannot be."""
        self._launch(self._configure, "-c")

    def _configure(self) -> None:
        for host in loopback_addresses():
            require_port_free(host, self.port, option="--mqtt-port")
        self._write_configuration(self._configuration)

    def answers(self) -> bool:
        """Tell whether the broker answers at this moment, which it notes in its log."""
        return _accepts_bridge(self.internal)

    def wait_until_ready(self) -> None:
        """Return when both listeners serve; BrokerError if that takes too long."""
        self._wait_until(self._is_ready)

    def reload(self) -> None:
        """Make the broker read its access lists and the revocation list again, and return when it has."""
        reload_broker(self._settings.data_dir)

    def _is_ready(self) -> bool:
        ca_file = self._directory.pki / "ca.pem"
        return _accepts_bridge(self.internal) and all(
            _serves_tls(host, self.port, ca_file) for host in loopback_addresses()
        )

    def _write_configuration(self, configuration: Path) -> None:
        directory = self._directory.mosquitto
        text = TEMPLATES.get_template("mosquitto.conf.j2").render(
            is_root=os.geteuid() == 0,
            directory=directory,
            pki=self._directory.pki,
            port=self.port,
            connection_count_max=_connection_count_max(),
            internal_host=self.internal.host,
            internal_port=self.internal.port,
        )
        write_atomically(configuration, text.encode())
        write_atomically(directory / _START_FILE, f"{secrets.randbits(_START_BITS)}\n".encode())
        users = (self.internal, self.events)
        passwords = "".join(_mosquitto_password(user.user_name, user.password) for user in users)
        write_atomically(directory / "internal.password", passwords.encode())
        write_atomically(directory / "internal.acl", _render_acl(audience="platform"))
        if not _device_acl_file(self._directory).exists():
            write_acl(self._settings.data_dir, AccessList())


def write_acl(data_dir: Path, access: AccessList) -> None:
    """Write the devices' access list, in one step; `reload_broker` makes it count."""
    content = _render_acl(audience="devices", access=access)
    write_atomically(_device_acl_file(DataDirectory(data_dir)), content)


def events_listener(data_dir: Path) -> InternalListener:
    """Return where the gateway connects to the broker of `data_dir`, from any process of the same user."""
    return _internal_listener(DataDirectory(data_dir), EVENTS_USER)


def bridge_listener(data_dir: Path) -> InternalListener:
    """Return where the bridge connects to the broker of `data_dir`, and whoever reads off it what is retained."""
    return _internal_listener(DataDirectory(data_dir), INTERNAL_USER)


def broker_log_file(data_dir: Path) -> Path:
    """Return the file in which the broker of `data_dir` writes its log."""
    return _mosquitto_log(DataDirectory(data_dir))


def broker_start(home: Path) -> int | None:
    """Return a number that is another one after each start of the broker whose files are in `home`; None if unknown."""
    try:
        return int((home / _START_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def reload_broker(data_dir: Path) -> None:
    """Make the broker of `data_dir` read access and revocation lists again, from any process of the same user.

    Returns when they are in force for new connections. BrokerError if the broker could not read them: a broken
    revocation list would let revoked devices in.
    """
    reload = BrokerReload(data_dir)
    reload.signal()
    reload.wait()


class BrokerReload:
    """One reload of the running broker of `data_dir`, in steps: see `reload_broker`, which takes both at once."""

    def __init__(self, data_dir: Path) -> None:
        directory = DataDirectory(data_dir)
        holder = pid_file(directory.mosquitto)
        pid = find_process(holder, program="mosquitto", argument=str(_mosquitto_file(directory)))
        if pid is None:
            raise PlatformNotRunning(data_dir, f"{holder} names no running mosquitto")
        self._pid: Final = pid
        self._internal: Final = _internal_listener(directory, INTERNAL_USER)
        self._log_file: Final = _mosquitto_log(directory)
        self._offset = 0

    def signal(self) -> None:
        """Tell the broker to reload, at once."""
        self._offset = self._log_file.stat().st_size
        os.kill(self._pid, signal.SIGHUP)
        # While nothing arrives mosquitto looks for signals ten times a second; a connection makes it look at once.
        # One that says who it is: closed without a word it would be counted as somebody's failed handshake.
        address = (self._internal.host, self._internal.port)
        with suppress(OSError), socket.create_connection(address, timeout=PROBE_TIMEOUT_S) as connection:
            connection.sendall(_connect_packet(self._internal) + _DISCONNECT)

    def signal_if(self, is_safe: Callable[[], bool], *, even_at_work: bool = False) -> bool:
        """Hold the broker still, ask whether it is safe to reload now, and if so tell it to; return whether it was.

        It then reloads before it deals with anything that happens to a client. A broker that is at work, which may
        have begun to, is told only if `even_at_work`. Takes about a millisecond.
        """
        with standstill(self._pid) as is_waiting:
            if not (is_waiting or even_at_work) or not is_safe():
                return False
            self.signal()
        return True

    def wait(self) -> None:
        """Return when the broker has reloaded; BrokerError if it could not."""
        # mosquitto has one thread: once it answers a connection made after the reload began, the reload is over.
        steps = (lambda: _RELOAD_BEGINS in self._written(), lambda: _accepts_bridge(self._internal))
        if not all(_in_time(step, self._pid) for step in steps):
            raise BrokerError(
                f"mosquitto did not reload in {_RELOAD_TIMEOUT_S} s; see {self._log_file}",
                retryable=True,
            )
        lines = self._written().decode(errors="replace").splitlines()
        problems = [line for line in lines if _PROBLEM.match(line)]
        if problems:
            raise BrokerError(
                f"mosquitto could not reload; mend what {self._log_file} says:\n" + "\n".join(problems)
            )

    def _written(self) -> bytes:
        with self._log_file.open("rb") as log:
            log.seek(self._offset)
            return log.read()


def _in_time(is_done: Callable[[], bool], pid: int) -> bool:
    """Wait until something is done by the broker, and return whether it was in time and the broker lives."""
    is_over = wait_until(lambda: is_done() or not is_process_alive(pid), timeout_s=_RELOAD_TIMEOUT_S)
    return is_over and is_process_alive(pid)


def end_session(data_dir: Path, client_id: str) -> None:
    """Return when the broker of `data_dir` has closed and forgotten the session of a client id, from any process.

    BrokerError (retryable) if it does not answer. Whoever may still connect is back at once: revoke, and reload, first.
    """
    # The specification's own means: a second client of the same id takes the place of the first (MQTT 3.1.1,
    # 3.1.4-2), here on a listener where a client may choose its id, and with a clean session, so nothing stays.
    if not _accepts_bridge(_internal_listener(DataDirectory(data_dir), INTERNAL_USER), client_id=client_id):
        raise BrokerError(f"mosquitto did not end the session of {client_id!r}; try again", retryable=True)


def end_sessions(data_dir: Path, client_ids: Sequence[str]) -> None:
    """Return when the broker of `data_dir` has ended the sessions of many client ids, as `end_session` does one.

    Some thousands take seconds.
    """
    listener = _internal_listener(DataDirectory(data_dir), INTERNAL_USER)
    with ThreadPoolExecutor(_ENDED_AT_ONCE) as pool:
        answers = pool.map(lambda client_id: _accepts_bridge(listener, client_id=client_id), client_ids)
        count = list(answers).count(False)
    if count:
        raise BrokerError(
            f"mosquitto did not end {count} of {len(client_ids)} sessions; try again", retryable=True
        )


def _connection_count_max() -> int:
    """Return how many connections the listener for devices takes, so that files are left for all other purposes."""
    return max(1, open_file_count_max() - _RESERVED_FILE_COUNT)


def _internal_listener(directory: DataDirectory, user_name: str) -> InternalListener:
    return InternalListener(
        host=LOOPBACK,
        port=_kept_port(directory, "internal.port"),
        user_name=user_name,
        password=read_or_create_secret(_internal_password_file(directory, user_name)),
    )


def _connect_packet(listener: InternalListener, client_id: str = "") -> bytes:
    """Return a CONNECT of the internal user, under a client id of its own unless told one."""
    fields = (
        client_id or f"app.probe.{os.getpid()}.{secrets.token_hex(4)}",
        listener.user_name,
        listener.password,
    )
    payload = b"".join(len(text).to_bytes(2, "big") + text.encode() for text in fields)
    # MQTT 3.1.1, 3.1.2: protocol name and level, flags (user name, password, clean session), keep alive of 10 s.
    body = b"\x00\x04MQTT\x04\xc2\x00\x0a" + payload
    # One byte holds up to 127, two up to 16,383 (2.2.3); all three fields together are below 300.
    length = bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 127 | 128, len(body) >> 7])
    return b"\x10" + length + body


def _accepts_bridge(listener: InternalListener, *, client_id: str = "") -> bool:
    """Tell whether the broker answers a CONNECT of the internal user, under a client id of its own unless told one."""
    try:
        with socket.create_connection((listener.host, listener.port), timeout=PROBE_TIMEOUT_S) as connection:
            connection.sendall(_connect_packet(listener, client_id))
            answer = connection.recv(4)
            connection.sendall(_DISCONNECT)
    except OSError:
        return False
    return answer == b"\x20\x02\x00\x00"


def _serves_tls(host: str, port: int, ca_file: Path) -> bool:
    """Tell whether the listener shows a certificate of ours; in TLS 1.3 it asks for the client's only afterwards."""
    context = ssl.create_default_context(cafile=str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        with (
            socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return True
    except OSError:
        return False


def _mosquitto_password(user_name: str, password: str) -> str:
    """Return a line for mosquitto's password file: PBKDF2 with SHA-512, which it marks with 7."""
    salt = secrets.token_bytes(_PASSWORD_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PASSWORD_ITERATIONS)
    encoded = [base64.b64encode(part).decode() for part in (salt, digest)]
    return f"{user_name}:$7${_PASSWORD_ITERATIONS}${encoded[0]}${encoded[1]}\n"


def _render_acl(*, audience: str, access: AccessList | None = None) -> bytes:
    template = TEMPLATES.get_template("acl.j2")
    return template.render(
        audience=audience, bridge_user=INTERNAL_USER, events_user=EVENTS_USER, access=access
    ).encode()


def _kept_port(directory: DataDirectory, file_name: str) -> int:
    """Return a free port, the same one as the last time as long as it can be had.

    mosquitto finds the rules of a stored session by its listener's port: with another port, what arrives for the
    session before its client is back would be dropped.
    """
    file = directory.mosquitto / file_name
    running = find_process(
        pid_file(directory.mosquitto),
        program="mosquitto",
        argument=str(_mosquitto_file(directory)),
    )
    try:
        port = int(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        port = 0
    if port and (running is not None or is_port_free(LOOPBACK, port)):
        return port
    port = free_port()
    write_atomically(file, f"{port}\n".encode())
    return port


def _mosquitto_file(directory: DataDirectory) -> Path:
    return directory.mosquitto / "mosquitto.conf"


def _mosquitto_log(directory: DataDirectory) -> Path:
    return directory.logs / "mosquitto.log"


def _device_acl_file(directory: DataDirectory) -> Path:
    return directory.mosquitto / "device.acl"


def _internal_password_file(directory: DataDirectory, user_name: str) -> Path:
    return directory.mosquitto / f"{user_name}.secret"
