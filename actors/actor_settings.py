"""What each actor of a platform is told when it is opened, and the names under which actors find each other."""

from __future__ import annotations

from typing import Final

import msgspec

from actors.settings import MqttsEndpoint

BRIDGE_NAME: Final = "bridge"
GATEWAY_NAME: Final = "gateway"
COORDINATOR_NAME: Final = "job_coordinator"


class HostSettings(msgspec.Struct, frozen=True):
    """Which shards a shard actor serves, and where their state is kept.

    `journal_bytes_max` is the length of one shard's journal at which a snapshot takes its place.
    `is_predecessor_gone` says that whoever opened the shards last has ended: they are then served at once, unless it
    had to wait itself and had not served them yet; otherwise only when its lease must be over.
    """

    index: int
    shards: tuple[int, ...]
    shard_count: int
    redis_url: str
    snapshot_location: str
    journal_bytes_max: int
    log_file: str
    is_predecessor_gone: bool = False


class BridgeSettings(msgspec.Struct, frozen=True):
    """Where the broker's internal listener, its files and the store are."""

    host: str
    port: int
    user_name: str
    password: str
    redis_url: str
    log_file: str
    broker_home: str


class GatewaySettings(msgspec.Struct, frozen=True):
    """Where the gateway listens, and what stands around it; port 0 takes a free one."""

    data_dir: str
    key_file: str
    redis_url: str
    api_port: int
    device_port: int
    mqtts: MqttsEndpoint
    supervisor_pid: int
    log_file: str


class CoordinatorSettings(msgspec.Struct, frozen=True):
    """Where the store of jobs and registry is."""

    redis_url: str
    log_file: str


class PinSettings(msgspec.Struct, frozen=True):
    """Which twin a pinned actor plays, with which behaviour (`module:Class`), and where that is looked for."""

    thing_name: str
    behavior: str
    behavior_directory: str
    redis_url: str
    log_file: str


class Pulse(msgspec.Struct, frozen=True):
    """What an actor says of itself when its supervisor asks: `is_open` once it has been told what to do.

    `trouble` says what keeps it from doing it and would be mended by opening it again, '' if nothing does.
    """

    pid: int
    is_open: bool
    trouble: str = ""


class GatewayUrls(msgspec.Struct, frozen=True):
    """Where the gateway's two listeners are."""

    api: str
    https_devices: str

    @property
    def api_port(self) -> int:
        """Return the port of the operators' listener."""
        return int(self.api.rpartition(":")[2])

    @property
    def device_port(self) -> int:
        """Return the port of the devices' listener."""
        return int(self.https_devices.rpartition(":")[2])
