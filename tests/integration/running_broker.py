"""A broker of the platform without the platform, with the authority that signs its devices."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.broker import MosquittoBroker
from actors.mqtt_link import BrokerConnection
from actors.pki import CertificateAuthority
from actors.processes import wait_until
from actors.settings import DataDirectory, PlatformSettings

# A local broker answers in milliseconds; a loaded machine gets the rest.
DEADLINE_S = 20.0
_CLIENT_IDS = itertools.count()


@dataclass(frozen=True)
class Site:
    """A broker, its authority, and its place on disk."""

    settings: PlatformSettings
    broker: MosquittoBroker
    authority: CertificateAuthority

    @property
    def directory(self) -> DataDirectory:
        return DataDirectory(self.settings.data_dir)

    def log(self) -> str:
        return (self.directory.logs / "mosquitto.log").read_text()

    def connection(self, *, port: int = 0, **options: Any) -> BrokerConnection:
        """How a bridge of this test alone connects."""
        options.setdefault("client_id", f"app.bridge-{os.getpid()}-{next(_CLIENT_IDS)}")
        internal = self.broker.internal
        return BrokerConnection(
            internal.host, port or internal.port, internal.user_name, internal.password, **options
        )

    def kill_broker(self) -> None:
        os.kill(self.broker.pid, signal.SIGKILL)
        assert wait_until(lambda: not self.broker.is_alive(), timeout_s=DEADLINE_S)


def make_site(data_dir: Path) -> Site:
    """Return a site whose broker has not been started."""
    directory = DataDirectory(data_dir)
    directory.prepare()
    settings = PlatformSettings(data_dir=data_dir, mqtt_port=0, device_port=0, api_port=0)
    authority = CertificateAuthority.open_or_create(directory.pki)
    return Site(settings, MosquittoBroker(settings), authority)


@contextlib.contextmanager
def running_site(data_dir: Path) -> Iterator[Site]:
    """Give a site whose broker runs; it has ended afterwards."""
    made = make_site(data_dir)
    made.broker.start()
    try:
        yield made
    finally:
        made.broker.stop()
