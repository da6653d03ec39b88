"""The managed store (Redis): configured, started, and refused unless it keeps what it acknowledges.

The values of its configuration and their reasons stand in the template in `broker_config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import redis

from actors.errors import StoreError
from actors.processes import LOOPBACK, free_port
from actors.servers import PROBE_TIMEOUT_S, TEMPLATES, ManagedServer
from actors.settings import DataDirectory, PlatformSettings, read_or_create_secret, write_atomically

# What the journal's promise rests on; see the reasons in redis.conf.j2.
_DURABLE: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
}


class RedisServer(ManagedServer):
    """The platform's store: a Redis that has written to disk what it acknowledged.

    It listens on loopback, and on the address for further nodes where the settings name one. The caller holds the data
    directory's lock. A port that is chosen freely stays while this object lives.
    """

    label = "Redis"
    program = "redis-server"
    error = StoreError

    def __init__(self, settings: PlatformSettings) -> None:
        directory = DataDirectory(settings.data_dir)
        super().__init__(
            settings,
            home=directory.redis,
            configuration=directory.redis / "redis.conf",
            log_file=directory.logs / "redis.log",
        )
        self._password = read_or_create_secret(directory.redis_password_file)
        self.port: Final = settings.store_port or free_port()
        address = settings.cluster_address or LOOPBACK
        # With the password: whoever keeps it in a file keeps that file to its owner.
        self.url: Final = f"redis://:{self._password}@{address}:{self.port}/0"

    def spawn(self) -> None:
        """Start the store without waiting for it; ToolMissing or ProcessEnded if it cannot be."""
        self._launch(self._configure)

    def _configure(self) -> None:
        text = TEMPLATES.get_template("redis.conf.j2").render(
            hosts=list(dict.fromkeys((LOOPBACK, self._settings.cluster_address or LOOPBACK))),
            port=self.port,
            password=self._password,
            quoted_directory=redis_quoted(self._home),
            memory_max_bytes=self._settings.store_memory_max_bytes,
        )
        write_atomically(self._configuration, text.encode())

    def answers(self) -> bool:
        """Tell whether the store answers at this moment."""
        return store_answers(self.url)

    def wait_until_ready(self) -> None:
        """Return when the store answers; StoreError if that takes too long or it would lose data."""
        self._wait_until(self.answers)
        require_durable(self.url)


def require_durable(url: str) -> None:
    """Raise StoreError, naming the settings to change, unless the Redis at `url` keeps what it acknowledges."""
    try:
        with _redis_client(url) as client:
            found = {name: client.config_get(name).get(name) for name in _DURABLE}
    except redis.RedisError as error:
        raise StoreError(f"Redis cannot be asked for its settings: {error}", retryable=True) from None
    wrong = [
        f"{name} is {found[name]!r}, set it to {wanted}"
        for name, wanted in _DURABLE.items()
        if found[name] != wanted
    ]
    if wrong:
        raise StoreError(f"Redis would lose what it has acknowledged: {'; '.join(wrong)}")


def _redis_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=PROBE_TIMEOUT_S,
        socket_connect_timeout=PROBE_TIMEOUT_S,
        retry=None,
    )


def store_answers(url: str) -> bool:
    """Tell whether the Redis at `url` answers at this moment; takes PROBE_TIMEOUT_S at most."""
    try:
        with _redis_client(url) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        # Not listening yet, or still reading its data back.
        return False


def redis_quoted(path: Path) -> str:
    """Return a path as it stands in a configuration file of Redis, whatever characters it has."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
