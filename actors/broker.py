"""The managed MQTT broker (mosquitto): configured, started, checked and reloaded, its sessions ended.

Owns its configuration files and what counts as ready. The values and their reasons stand in the templates of
`broker_config`; certificates are `pki`'s, and who has an entry in the access list is the registry's.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actors.errors import BrokerError, PlatformNotRunning
from actors.pki import INTERNAL_USER
from actors.processes import (
    LOOPBACK,
    find_process,
    free_port,
    is_port_free,
    loopback_addresses,
    require_port_free,
    wait_until,
)
from actors.servers import PROBE_TIMEOUT_S, TEMPLATES, ManagedServer, pid_file
from actors.settings import (
    DataDirectory,
    PlatformSettings,
    read_or_create_secret,
    write_atomically,
)

# A reload reads a few files; a long revocation list takes the longest.
_RELOAD_TIMEOUT_S: Final = 10.0
# The password has 256 random bits, so stretching it adds nothing: mosquitto_passwd's own default.
_PASSWORD_ITERATIONS: Final = 101
# mosquitto accepts salts of 12 (and, later, 64) bytes.
_PASSWORD_SALT_BYTES: Final = 12
_RELOAD_BEGINS: Final = b"Reloading config"


@dataclass(frozen=True, slots=True)
class InternalListener:
    """Where the bridge, and nobody else, connects to the broker: plain TCP on loopback, with a password."""

    host: str
    port: int
    user_name: str
    password: str


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
        self.internal: Final = _internal_listener(directory)

    def spawn(self) -> None:
        """Start the broker without waiting for it; PortInUse, ToolMissing or ProcessEnded if it cannot be."""
        self._launch(self._configure, "-c")

    def _configure(self) -> None:
        for host in loopback_addresses():
            require_port_free(host, self.port, option="--mqtt-port")
        self._write_configuration(self._configuration)

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
            addresses=loopback_addresses(),
            port=self.port,
            internal_host=self.internal.host,
            internal_port=self.internal.port,
        )
        write_atomically(configuration, text.encode())
        password_line = _mosquitto_password(self.internal.user_name, self.internal.password)
        write_atomically(directory / "internal.password", password_line.encode())
        internal = _render_acl(audience="bridge", internal_user=self.internal.user_name)
        write_atomically(directory / "internal.acl", internal)
        if not _device_acl_file(self._directory).exists():
            write_acl(self._settings.data_dir, ())


def write_acl(data_dir: Path, entries: Iterable[tuple[str, str]]) -> None:
    """Write the devices' access list, in one step; `reload_broker` makes it count.

    `entries` are (common name, thing name) of the things whose certificate carries the certificate id, all of them
    every time. Things whose common name is their own name need none.
    """
    content = _render_acl(audience="devices", entries=sorted(entries))
    write_atomically(_device_acl_file(DataDirectory(data_dir)), content)


def reload_broker(data_dir: Path) -> None:
    """Make the broker of `data_dir` read access and revocation lists again, from any process of the same user.

    Returns when they are in force for new connections. BrokerError if the broker could not read them: a broken
    revocation list would let revoked devices in.
    """
    directory = DataDirectory(data_dir)
    holder = pid_file(directory.mosquitto)
    pid = find_process(holder, program="mosquitto", argument=str(_mosquitto_file(directory)))
    if pid is None:
        raise PlatformNotRunning(data_dir, f"{holder} names no running mosquitto")
    log_file = _mosquitto_log(directory)
    offset = log_file.stat().st_size
    os.kill(pid, signal.SIGHUP)

    def written() -> bytes:
        with log_file.open("rb") as log:
            log.seek(offset)
            return log.read()

    internal = _internal_listener(directory)
    # mosquitto has one thread: once it answers a connection made after the reload began, the reload is over.
    has_begun = wait_until(lambda: _RELOAD_BEGINS in written(), timeout_s=_RELOAD_TIMEOUT_S)
    if not has_begun or not wait_until(lambda: _accepts_bridge(internal), timeout_s=_RELOAD_TIMEOUT_S):
        raise BrokerError(
            f"mosquitto did not reload in {_RELOAD_TIMEOUT_S} s; see {log_file}",
            retryable=True,
        )
    problems = [line for line in written().decode(errors="replace").splitlines() if "Error:" in line]
    if problems:
        raise BrokerError(f"mosquitto could not reload; mend what {log_file} says:\n" + "\n".join(problems))


def end_session(data_dir: Path, client_id: str) -> None:
    """Return when the broker of `data_dir` has closed and forgotten the session of a client id, from any process.

    BrokerError (retryable) if it does not answer. Whoever may still connect is back at once: revoke, and reload, first.
    """
    # The specification's own means: a second client of the same id takes the place of the first (MQTT 3.1.1,
    # 3.1.4-2), here on a listener where a client may choose its id, and with a clean session, so nothing stays.
    if not _accepts_bridge(_internal_listener(DataDirectory(data_dir)), client_id=client_id):
        raise BrokerError(f"mosquitto did not end the session of {client_id!r}; try again", retryable=True)


def _internal_listener(directory: DataDirectory) -> InternalListener:
    return InternalListener(
        host=LOOPBACK,
        port=_kept_port(directory, "internal.port"),
        user_name=INTERNAL_USER,
        password=read_or_create_secret(_internal_password_file(directory)),
    )


def _accepts_bridge(listener: InternalListener, *, client_id: str = "") -> bool:
    """Tell whether the broker answers a CONNECT of the internal user, under a client id of its own unless told one."""
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
    try:
        with socket.create_connection((listener.host, listener.port), timeout=PROBE_TIMEOUT_S) as connection:
            connection.sendall(b"\x10" + length + body)
            answer = connection.recv(4)
            connection.sendall(b"\xe0\x00")
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


def _render_acl(*, audience: str, internal_user: str = "", entries: Sequence[tuple[str, str]] = ()) -> bytes:
    template = TEMPLATES.get_template("acl.j2")
    return template.render(audience=audience, internal_user=internal_user, entries=entries).encode()


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


def _internal_password_file(directory: DataDirectory) -> Path:
    return directory.mosquitto / "internal.secret"
