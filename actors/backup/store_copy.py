"""A copy of a running Redis as it was at one instant: a second one that followed it, and was cut off."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from actors.backup.store_content import client_of
from actors.errors import StoreError
from actors.servers import TEMPLATES, ManagedServer
from actors.settings import PlatformSettings, write_atomically
from actors.store import redis_quoted, store_answers
from actors.store_errors import store_error

# A store of some gigabytes takes some ten seconds to be copied on one machine.
_COPY_TIMEOUT_S: Final = 600.0


class _StoreCopy(ManagedServer):
    """A Redis without a port and without files, all of whose files are in `home`."""

    label = "the copy of Redis"
    program = "redis-server"
    error = StoreError

    def __init__(self, settings: PlatformSettings, home: Path) -> None:
        super().__init__(settings, home=home, configuration=home / "redis.conf", log_file=home / "redis.log")
        self._socket = home / "socket"
        self.url: Final = f"unix://{self._socket}"

    def spawn(self) -> None:
        """Start it without waiting for it."""
        self._launch(self._configure)

    def _configure(self) -> None:
        text = TEMPLATES.get_template("redis-copy.conf.j2").render(
            quoted_socket=redis_quoted(self._socket), quoted_directory=redis_quoted(self._home)
        )
        write_atomically(self._configuration, text.encode())

    def answers(self) -> bool:
        """Tell whether it answers at this moment."""
        return store_answers(self.url)

    def wait_until_ready(self) -> None:
        """Return when it answers."""
        self._wait_until(self.answers)

    def follow(self, client: Any, url: str) -> None:
        """Return when it holds what the Redis at `url` held at one instant after this call, and follows it no more."""
        address = urlsplit(url)
        client.config_set("masterauth", address.password)
        client.execute_command("REPLICAOF", address.hostname, address.port)
        if not self._require_process().wait_until(lambda: _has_all(client), timeout_s=_COPY_TIMEOUT_S):
            raise StoreError(
                "Redis could not be copied; see its log, and whether the machine has memory for two"
            )
        client.execute_command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def copy_of_store(settings: PlatformSettings, url: str) -> Iterator[str]:
    """Give the URL of a copy of the Redis at `url`, as it was at one instant after this call; nobody writes to it."""
    # Not in the data directory, whose path may be longer than a socket's may be (108 bytes).
    with tempfile.TemporaryDirectory(prefix="twinfleet-copy-") as directory:
        server = _StoreCopy(settings, Path(directory))
        try:
            server.start()
            try:
                with client_of(server.url) as client:
                    server.follow(client, url)
            except redis.RedisError as error:
                raise store_error(error, "the copy for a backup") from error
            yield server.url
        finally:
            server.stop()


def _has_all(client: redis.Redis) -> bool:
    state: Any = client.info("replication")
    return bool(state.get("master_link_status") == "up")
