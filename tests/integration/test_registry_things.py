"""Types, groups and things in the registry on a real Redis, and the offices that change them in order."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from actors.errors import (
    DescriptionError,
    RecordExists,
    RecordNotFound,
    StoreError,
    ThingExists,
    ThingNotFound,
)
from actors.gateway.enrolment import DeviceOffice, ThingChange
from actors.gateway.grouping import TYPE_DELETION_DELAY_S, GroupDescription, GroupOffice, TypeOffice
from actors.gateway.registry_events import RegistryEvents
from actors.pki import CertificateAuthority, generate_key_and_csr
from actors.registry.records import ThingDescription, ThingGroupRecord, new_id, new_thing
from actors.registry.registry import Registry
from actors.registry.things import Addition, thing_certificate
from actors.store import RedisServer
from tests.integration.running_gateway import Gateway, open_gateway
from tests.running_store import running_store
from twins.clock import VirtualClock

NOW_S = 1_760_000_000.0
_PREFIXES = (f"things{number}:" for number in itertools.count())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(NOW_S)


@pytest.fixture
async def registry(store: RedisServer, clock: VirtualClock) -> AsyncIterator[Registry]:
    opened = await Registry.open(store.url, clock, prefix=next(_PREFIXES))
    yield opened
    await opened.close()


@pytest.fixture
async def gateway(store: RedisServer, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with open_gateway(store.url, tmp_path / "platform", prefix=next(_PREFIXES)) as opened:
        yield opened


@pytest.fixture
def types(registry: Registry, clock: VirtualClock) -> TypeOffice:
    events = RegistryEvents(lambda messages: None, clock)
    return TypeOffice(registry, events, turn=asyncio.Lock(), clock=clock)


@pytest.fixture
def groups(registry: Registry, clock: VirtualClock) -> GroupOffice:
    events = RegistryEvents(lambda messages: None, clock)
    return GroupOffice(registry, events, turn=asyncio.Lock(), clock=clock)


async def test_a_thing_that_an_older_version_kept_has_an_id_that_stays(store: RedisServer) -> None:
    prefix = next(_PREFIXES)
    registry = await Registry.open(store.url, VirtualClock(NOW_S), prefix=prefix)
    kept = {
        "name": "lamp",
        "model": "thermostat",
        "attributes": {"a": "b"},
        "created_at_s": 7,
        "certificate_ids": [],
    }
    with redis.Redis.from_url(store.url) as client:
        client.set(f"{prefix}registry:thing:lamp", json.dumps(kept))
        client.zadd(f"{prefix}registry:things", {"lamp": 0})
    thing = await registry.things.get("lamp")
    assert (thing.version, thing.groups, thing.thing_type) == (1, [], "")
    assert thing.thing_id == (await registry.things.get("lamp")).thing_id
    assert len(thing.thing_id) == 36
    await registry.things.begin_removal("lamp")
    await registry.things.remove("lamp")
    assert await registry.things.count() == 0
    await registry.close()


async def test_of_many_things_all_are_kept_or_none(registry: Registry, tmp_path: Path) -> None:
    authority = CertificateAuthority.open_or_create(tmp_path / "pki")
    things = [new_thing(f"t{number}", "untyped", {}, now_s=NOW_S) for number in range(3)]
    await registry.things.add_all([Addition(things[1])], by="anna")
    with pytest.raises(ThingExists, match="'t1'"):
        await registry.things.add_all([Addition(thing) for thing in things], by="anna")
    assert await registry.things.count() == 1
    issued = authority.issue_for_thing(generate_key_and_csr("t0").csr_pem, "t0")
    record = thing_certificate(things[0], issued)
    await registry.things.add_all([Addition(things[0], record), Addition(things[2])], by="anna")
    assert (await registry.things.get("t0")).certificate_ids == [issued.certificate_id]
    another = new_thing("t3", "untyped", {}, now_s=NOW_S)
    with pytest.raises(DescriptionError, match="new key"):
        await registry.things.add_all([Addition(another, thing_certificate(another, issued))], by="anna")
    assert [thing.name for thing in (await registry.things.page()).things] == ["t0", "t1", "t2"]


async def test_a_type_is_deleted_only_when_nobody_can_miss_it(
    registry: Registry, types: TypeOffice, clock: VirtualClock
) -> None:
    await types.create("lamp", description="", searchable_attributes=[], by="anna")
    thing = ThingDescription("l1", thing_type="lamp").record(now_s=NOW_S)
    await registry.things.add_all([Addition(thing)], by="anna")
    await types.deprecate("lamp", is_undone=False, by="anna")
    with pytest.raises(DescriptionError, match="5 minutes"):
        await types.delete("lamp", by="anna")
    clock.advance_to(NOW_S + TYPE_DELETION_DELAY_S)
    with pytest.raises(DescriptionError, match="1 things"):
        await types.delete("lamp", by="anna")
    await registry.things.begin_removal("l1")
    await registry.things.remove("l1")
    await types.delete("lamp", by="anna")
    with pytest.raises(RecordNotFound):
        await registry.types.get("lamp")
    assert await registry.types.page() == ([], None)


async def test_a_group_of_many_is_left_by_all_before_it_goes(registry: Registry, groups: GroupOffice) -> None:
    await groups.create(GroupDescription("hall"), by="anna")
    things = [
        ThingDescription(f"t{number:04d}", groups=("hall",)).record(now_s=NOW_S) for number in range(1100)
    ]
    for start in range(0, 1100, 500):
        additions = [Addition(thing) for thing in things[start : start + 500]]
        await registry.things.add_all(additions, by="anna")
    assert await registry.things.members(["hall"], after="t1097") == ["t1098", "t1099"]
    await groups.delete("hall", is_dynamic=False, expected_version=None, by="anna")
    assert await registry.things.members(["hall"]) == []
    assert (await registry.things.get("t0777")).groups == []
    assert await registry.groups.names() == []


async def test_the_hierarchy_of_groups_has_bounds(registry: Registry, groups: GroupOffice) -> None:
    parent = ""
    for level in range(7):
        await groups.create(GroupDescription(f"g{level}", parent=parent), by="anna")
        parent = f"g{level}"
    with pytest.raises(DescriptionError, match="lowest of 7"):
        await groups.create(GroupDescription("g7", parent=parent), by="anna")
    await groups.create(GroupDescription("hot", query="attributes.site:ber"), by="anna")
    with pytest.raises(DescriptionError, match="dynamic"):
        await groups.create(GroupDescription("below", parent="hot"), by="anna")
    with pytest.raises(RecordExists):
        await groups.create(GroupDescription("hot", query="attributes.site:muc"), by="anna")
    record = ThingGroupRecord("g3", new_id(), 0)
    with pytest.raises(RecordExists):
        await registry.groups.add(record, by="anna")
    for number in range(11):
        await groups.create(GroupDescription(f"root-{number}"), by="anna")
    await registry.things.add_all([Addition(new_thing("t", "untyped", {}, now_s=0))], by="anna")
    for number in range(10):
        await groups.move("t", joined=[f"root-{number}"], by="anna")
    with pytest.raises(DescriptionError, match="10 at most"):
        await groups.move("t", joined=["root-10"], by="anna")
    await groups.move("t", joined=["root-10"], left=["root-0"], by="anna")
    assert (await registry.things.get("t")).version == 1
    with pytest.raises(ThingNotFound):
        await groups.move("nobody", joined=["root-1"], by="anna")


async def test_a_change_that_was_cut_off_leaves_twin_and_thing_alike(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    office: DeviceOffice = gateway.app.state.devices
    await office.create(ThingDescription("lamp", "thermostat", {"room": "hall"}))

    async def cut_off(*arguments: object, **more: object) -> None:
        raise StoreError("the store is gone", retryable=True)

    async def room_of_twin() -> str:
        described = await gateway.fleet.twin("lamp").describe()
        return str(described["attributes"]["room"])

    with monkeypatch.context() as patch:
        patch.setattr(gateway.registry.things, "change", cut_off)
        with pytest.raises(StoreError):
            await office.update("lamp", ThingChange({"room": "attic"}), by="x")
    assert (await gateway.registry.things.get("lamp")).attributes == {"room": "hall"}
    assert await room_of_twin() == "attic"
    await gateway.app.state.settle()
    assert await room_of_twin() == "hall"
    assert await gateway.registry.things.changing() == []
    await office.update("lamp", ThingChange({"room": "attic"}), by="x")
    assert await room_of_twin() == "attic"
    assert await gateway.registry.things.changing() == []


async def test_provisioning_ensures_a_thing_once(gateway: Gateway) -> None:
    office: DeviceOffice = gateway.app.state.devices
    wanted = ThingDescription("lamp", attributes={"serial": "7"})
    made = await asyncio.gather(*(office.ensure(wanted, by="template") for _ in range(5)))
    assert len({thing.thing_id for thing in made}) == 1
    assert [message.topic for message in gateway.platform.announced] == ["$aws/events/thing/lamp/created"]
    kept = await office.ensure(ThingDescription("lamp", attributes={"serial": "8"}), by="template")
    assert kept.attributes == {"serial": "7"}
    with pytest.raises(RecordNotFound, match="nowhere"):
        await office.ensure(ThingDescription("bell", groups=("nowhere",)), by="template")
    await gateway.registry.things.begin_removal("lamp")
    with pytest.raises(ThingExists, match="half deleted"):
        await office.ensure(wanted, by="template")
    await office.settle()
    assert (await office.ensure(wanted, by="template")).thing_id != made[0].thing_id
