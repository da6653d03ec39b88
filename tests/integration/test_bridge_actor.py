"""The bridge's process on the real broker and store, without Ray: what it keeps beside the broker's own files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from actors.actor_settings import BridgeSettings
from actors.bridge_actor import BridgeActor
from actors.errors import BrokerError
from actors.mqtt_taken import FILE_BYTES
from actors.placement import HEAD_NODE, PlacementStore
from actors.store import RedisServer
from tests.integration.running_broker import Site


async def test_one_bridge_at_a_time_has_the_notes_of_what_was_taken(
    own_site: Site, store: RedisServer, tmp_path: Path
) -> None:
    PlacementStore.at(store.url).begin(1, {"shard-actor-0": HEAD_NODE})
    internal, home = own_site.broker.internal, own_site.directory.mosquitto
    settings = msgspec.msgpack.encode(
        BridgeSettings(
            internal.host,
            internal.port,
            internal.user_name,
            internal.password,
            store.url,
            str(tmp_path / "bridge.log"),
            str(home),
        )
    )
    first, second = BridgeActor(), BridgeActor()
    await first.open(settings)
    assert (home / "bridge.taken").stat().st_size == FILE_BYTES
    with pytest.raises(BrokerError, match="another bridge") as refusal:
        await second.open(settings)
    assert refusal.value.retryable
    assert (await first.statistics())["is_connected"]
    # It may be opened again, and leaves the file to the next one.
    await first.open(settings)
    await first.close()
    await second.open(settings)
    assert (await second.statistics())["is_connected"]
    await second.close()
