"""Twins of real devices, by the hundred thousand, as the gateway registers them and devices fill them.

Half of the things are thermostats and half have no model, so that half of the shadows live in columns and half beside
them. Each has attributes, a classic shadow of both sections with members that no model knows, telemetry, and news of
its connection; each tenth has a named shadow, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from actors.actor_settings import HostSettings
from actors.settings import DataDirectory, PlatformSettings
from actors.store import RedisServer
from twins.messages import Batch, Connectivity, Operation, Registration, Request
from twins.sharding import shard_of

SHARD_COUNT = 16
# As many as the bridge puts into one batch.
BATCH_LENGTH = 500
_NOW_MS = 1_767_225_600_000


def host_settings(platform: PlatformSettings, store: RedisServer) -> HostSettings:
    """Return what a host of all the shards is told, as a platform tells it; its predecessor, if any, is gone."""
    directory = DataDirectory(platform.data_dir)
    return HostSettings(
        0,
        tuple(range(SHARD_COUNT)),
        SHARD_COUNT,
        store.url,
        str(directory.snapshots),
        platform.store_memory_max_bytes // (4 * SHARD_COUNT),
        str(directory.logs / "host.log"),
        is_predecessor_gone=True,
    )


def thing_name(number: int) -> str:
    """Return the name of a device."""
    return f"real-{number:07d}"


def first_requests(number: int) -> list[Request]:
    """Return what makes a device's twin what it is."""
    name = thing_name(number)
    model = ("thermostat", "untyped")[number % 2]
    registration = Registration(model, {"room": f"room-{number % 500}", "site": "berlin"})
    connected = Connectivity(True, _NOW_MS + number, "", f"session-{number:x}", 1)
    requests = [
        Request(Operation.REGISTER, name, msgspec.json.encode(registration), is_direct=True),
        Request(Operation.CONNECTIVITY, name, msgspec.json.encode(connected), is_direct=True),
        update(number, 0, desired=True),
        telemetry(number, 0),
    ]
    if number % 10 == 0:
        config = b'{"state":{"reported":{"interval":30,"servers":["a.example","b.example"]}}}'
        requests.append(Request(Operation.SHADOW_UPDATE, name, config, "config"))
    return requests


def update(number: int, step: int, *, desired: bool = False) -> Request:
    """Return a shadow update as a device sends it; with `desired` also what an operator wishes for it."""
    state = {
        "reported": {
            "temperature": 18.0 + (number + step) % 80 / 8,
            "humidity": 40.25,
            "battery": 99.5,
            "uptime": number + step,
            "firmware": "1.4.2",
            "network": {"rssi": -60 - step % 20, "ssid": "hall"},
        }
    }
    if desired:
        state["desired"] = {"set_point": 21.5}
    return Request(Operation.SHADOW_UPDATE, thing_name(number), msgspec.json.encode({"state": state}))


def telemetry(number: int, step: int) -> Request:
    """Return a telemetry message of three fields."""
    values = {"temperature": 18.0 + (number + step) % 80 / 8, "humidity": 40.25, "battery": 99.5}
    return Request(Operation.TELEMETRY, thing_name(number), msgspec.json.encode(values), "climate")


class Submissions:
    """Packs requests as the bridge does: a batch for each shard that a submission concerns, numbered by source."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sequence = 0

    def of(self, requests: list[Request]) -> bytes:
        """Return one submission."""
        by_shard: dict[int, list[Request]] = {}
        for request in requests:
            by_shard.setdefault(shard_of(request.thing_name, SHARD_COUNT), []).append(request)
        self._sequence += 1
        return msgspec.msgpack.encode(
            [(shard, Batch(self._source, self._sequence, part)) for shard, part in by_shard.items()]
        )

    def in_parts(self, requests: Iterator[Request], length: int = BATCH_LENGTH) -> Iterator[bytes]:
        """Yield submissions of `length` requests each."""
        part: list[Request] = []
        for request in requests:
            part.append(request)
            if len(part) >= length:
                yield self.of(part)
                part = []
        if part:
            yield self.of(part)
