"""The registry on a real Redis: what it keeps, what it refuses, and that a change happens whole or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from actors.errors import (
    CertificateNameTaken,
    DescriptionError,
    FleetExists,
    FleetNotFound,
    StoreError,
    ThingExists,
    ThingNotFound,
)
from actors.pki import CertificateAuthority, IssuedCertificate, generate_key_and_csr
from actors.registry.records import (
    CertificateKind,
    CertificateRecord,
    CertificateStatus,
    FleetRecord,
    ThingRecord,
    check_fleet_name,
    check_thing,
    new_thing,
)
from actors.registry.registry import Registry
from actors.settings import DataDirectory, PlatformSettings
from actors.store import RedisServer
from twins.clock import VirtualClock
from twins.errors import InvariantError, ModelError
from twins.messages import GroupOrder
from twins.model import Group
from twins.sharding import NamePattern
from twins.shipped import model_named

NOW_S = 1_760_000_000.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with_store = start_store(tmp_path_factory.mktemp("store"))
    yield with_store
    with_store.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.open_or_create(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def registry(store: RedisServer) -> AsyncIterator[Registry]:
    with redis.Redis.from_url(store.url) as client:
        client.flushall()
    opened = await Registry.open(store.url, VirtualClock(NOW_S))
    yield opened
    await opened.close()


def start_store(data_dir: Path) -> RedisServer:
    DataDirectory(data_dir).prepare()
    store = RedisServer(PlatformSettings(data_dir, mqtt_port=0, device_port=0, api_port=0))
    store.start()
    return store


def thing_named(name: str, **attributes: str) -> ThingRecord:
    return new_thing(name, "thermostat", attributes, now_s=NOW_S)


def certificate_for(authority: CertificateAuthority, name: str) -> IssuedCertificate:
    return authority.issue_for_thing(generate_key_and_csr(name).csr_pem, name)


def fleet_named(name: str) -> FleetRecord:
    group = Group(name, model_named("thermostat"), f"{name}-{{i:06d}}", 10, seed=1, start_s=int(NOW_S))
    return FleetRecord(GroupOrder.of(group), int(NOW_S))


async def test_a_thing_is_found_again_with_its_certificate(
    registry: Registry, authority: CertificateAuthority
) -> None:
    issued = certificate_for(authority, "lamp")
    await registry.things.add(thing_named("lamp", room="kitchen"), issued)
    thing = await registry.things.get("lamp")
    assert (thing.model, thing.attributes, thing.created_at_s) == (
        "thermostat",
        {"room": "kitchen"},
        int(NOW_S),
    )
    (certificate,) = await registry.certificates.of_thing(thing)
    assert (certificate.pem, certificate.serial) == (issued.certificate_pem, str(issued.serial))
    assert await registry.certificates.get(issued.certificate_id) == certificate
    assert await registry.things.count() == 1


async def test_a_second_thing_of_one_name_is_refused_and_changes_nothing(
    registry: Registry, authority: CertificateAuthority
) -> None:
    await registry.things.add(thing_named("lamp", room="kitchen"), certificate_for(authority, "lamp"))
    other = certificate_for(authority, "lamp")
    with pytest.raises(ThingExists, match="lamp"):
        await registry.things.add(thing_named("lamp", room="hall"), other)
    assert (await registry.things.get("lamp")).attributes == {"room": "kitchen"}
    assert await registry.certificates.get(other.certificate_id) is None


async def test_one_key_is_not_certified_for_two_things(
    registry: Registry, authority: CertificateAuthority
) -> None:
    csr_pem = generate_key_and_csr("").csr_pem
    await registry.things.add(thing_named("one"), authority.issue_for_thing(csr_pem, "one"))
    with pytest.raises(DescriptionError, match="new key"):
        await registry.things.add(thing_named("two"), authority.issue_for_thing(csr_pem, "two"))
    with pytest.raises(ThingNotFound):
        await registry.things.get("two")


async def test_pages_follow_name_order_and_end(registry: Registry, authority: CertificateAuthority) -> None:
    names = ["B", "a", "a:1", "a_1", "aa", "b"]
    for name in reversed(names):
        await registry.things.add(thing_named(name), certificate_for(authority, name))
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await registry.things.page(after=cursor, limit=2)
        seen += [thing.name for thing in page.things]
        cursor = page.next_cursor
    assert seen == names


async def test_removal_revokes_first_and_may_be_done_twice(
    registry: Registry, authority: CertificateAuthority
) -> None:
    long_name = "n" * 128
    certificate = await registry.things.add(thing_named(long_name), certificate_for(authority, long_name))
    assert await registry.certificates.acl_entries() == {certificate.certificate_id: long_name}
    with pytest.raises(InvariantError):
        await registry.things.remove(long_name)
    first = await registry.things.begin_removal(long_name)
    assert [found.status for found in first] == ["REVOKED"]
    assert await registry.things.begin_removal(long_name) == first
    assert await registry.certificates.acl_entries() == {}
    assert (await registry.things.get(long_name)).status == "DELETING"
    await registry.things.remove(long_name)
    with pytest.raises(ThingNotFound):
        await registry.things.get(long_name)
    kept = await registry.certificates.get(certificate.certificate_id)
    assert kept is not None
    assert kept.status == "REVOKED"
    assert (await registry.things.page()).things == []


def record_of(
    issued: IssuedCertificate,
    *,
    thing_name: str = "",
    status: CertificateStatus = "ACTIVE",
    kind: CertificateKind = "thing",
    name: str = "",
) -> CertificateRecord:
    return CertificateRecord(
        issued.certificate_id,
        thing_name,
        issued.common_name,
        str(issued.serial),
        issued.certificate_pem,
        int(NOW_S),
        int(issued.expires_at_s),
        status,
        kind,
        name,
    )


def application_for(authority: CertificateAuthority, name: str) -> CertificateRecord:
    issued = authority.issue_from_csr(generate_key_and_csr(name).csr_pem, f"app.{name}")
    return record_of(issued, kind="application", name=name)


async def test_a_further_certificate_is_listed_with_its_thing(
    registry: Registry, authority: CertificateAuthority
) -> None:
    first = await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
    issued = authority.issue_for_thing(generate_key_and_csr("").csr_pem, "lamp", taken={"lamp"})
    second = record_of(issued, thing_name="lamp")
    await registry.certificates.add(second, by="anna")
    thing = await registry.things.get("lamp")
    assert await registry.certificates.of_thing(thing) == [first, second]
    assert await registry.certificates.acl_entries() == {second.certificate_id: "lamp"}
    with pytest.raises(DescriptionError, match="new key"):
        await registry.certificates.add(second, by="anna")
    stranger = record_of(certificate_for(authority, "bell"), thing_name="bell")
    with pytest.raises(ThingNotFound):
        await registry.certificates.add(stranger, by="anna")


async def test_what_is_no_longer_in_force_is_barred_and_has_no_access(
    registry: Registry, authority: CertificateAuthority
) -> None:
    long_name = "n" * 128
    before = await registry.things.add(thing_named(long_name), certificate_for(authority, long_name))
    assert await registry.certificates.revoked() == {}
    retired = replace(before, status="INACTIVE")
    await registry.certificates.change(before, retired, action="certificate.retire", by="anna")
    assert await registry.certificates.revoked() == {int(before.serial): NOW_S}
    assert await registry.certificates.acl_entries() == {}
    with pytest.raises(StoreError, match="changed meanwhile") as refusal:
        await registry.certificates.change(before, retired, action="certificate.retire", by="anna")
    assert refusal.value.retryable
    await registry.certificates.change(retired, before, action="certificate.activate", by="anna")
    assert await registry.certificates.revoked() == {}
    assert await registry.certificates.acl_entries() == {before.certificate_id: long_name}


async def test_one_certificate_of_an_application_is_in_force_at_most(
    registry: Registry, authority: CertificateAuthority
) -> None:
    first, second = (application_for(authority, "wall") for _ in range(2))
    await registry.certificates.add(first, by="anna")
    with pytest.raises(CertificateNameTaken, match="wall"):
        await registry.certificates.add(second, by="anna")
    revoked = replace(first, status="REVOKED")
    await registry.certificates.change(first, revoked, action="certificate.revoke", by="anna")
    await registry.certificates.add(second, by="anna")
    found = await registry.certificates.of_kind("application")
    assert sorted(found, key=lambda one: one.status) == [second, revoked]


async def test_a_certificate_gains_its_thing_and_its_access_with_it(
    registry: Registry, authority: CertificateAuthority
) -> None:
    request = generate_key_and_csr("")
    issued = authority.issue_unnamed(request.csr_pem)
    pending = record_of(issued, status="PENDING_ACTIVATION")
    await registry.certificates.add(pending, by="claim.one")
    assert await registry.certificates.pending() == [pending]
    assert await registry.certificates.acl_entries() == {}
    active = replace(pending, status="ACTIVE", thing_name="lamp")
    with pytest.raises(ThingNotFound):
        await registry.certificates.change(pending, active, action="certificate.activate", by="claim.one")
    await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
    await registry.certificates.change(pending, active, action="certificate.activate", by="claim.one")
    assert await registry.certificates.pending() == []
    assert await registry.certificates.acl_entries() == {issued.certificate_id: "lamp"}
    assert (await registry.things.get("lamp")).certificate_ids[1:] == [issued.certificate_id]


async def test_a_forgotten_certificate_is_gone_and_stays_barred(
    registry: Registry, authority: CertificateAuthority
) -> None:
    pending = record_of(
        authority.issue_unnamed(generate_key_and_csr("").csr_pem), status="PENDING_ACTIVATION"
    )
    await registry.certificates.add(pending, by="claim.one")
    for _ in range(2):
        await registry.certificates.forget(pending, by="platform")
    assert await registry.certificates.get(pending.certificate_id) is None
    assert await registry.certificates.pending() == []
    assert await registry.certificates.of_kind("thing") == []
    assert set(await registry.certificates.revoked()) == {int(pending.serial)}


async def test_records_of_an_older_version_are_read_and_indexed_once(
    registry: Registry, authority: CertificateAuthority, store: RedisServer
) -> None:
    long_name = "n" * 100
    kept = await registry.things.add(thing_named(long_name), certificate_for(authority, long_name))
    gone = await registry.things.add(thing_named("gone"), certificate_for(authority, "gone"))
    await registry.things.begin_removal("gone")
    await registry.things.remove("gone")
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        for record in (kept, gone):
            key = f"twinfleet:registry:certificate:{record.certificate_id}"
            older = json.loads(str(client.get(key)))
            for field in ("kind", "name", "role", "template", "replaces"):
                older.pop(field, None)
            client.set(key, json.dumps(older))
        for index in ("certificates:thing", "revoked", "acl", "layout"):
            client.delete(f"twinfleet:registry:{index}")
    assert set(await registry.certificates.revoked()) == {int(gone.serial)}
    newer = await Registry.open(store.url, VirtualClock(NOW_S))
    assert {one.certificate_id for one in await newer.certificates.of_kind("thing")} == {
        kept.certificate_id,
        gone.certificate_id,
    }
    assert set(await newer.certificates.revoked()) == {int(gone.serial)}
    assert await newer.certificates.acl_entries() == {kept.certificate_id: long_name}
    await newer.close()
    await (await Registry.open(store.url, VirtualClock(NOW_S))).close()
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        actions = [fields["action"] for _, fields in client.xrange("twinfleet:registry")]
    assert actions.count("registry.index") == 2, "one for the records, one for the mark that it is done"


# As the first release kept them: literally, so that nothing which is changed here can change them with it.
_FIRST_ID, _SECOND_ID = "a" * 64, "b" * 64
_LONG_NAME = "n" * 100
_FIRST_RELEASE = {
    "thing:lamp": '{"name":"lamp","model":"thermostat","attributes":{"room":"hall"},"created_at_s":1750000000,'
    f'"certificate_ids":["{_FIRST_ID}"],"status":"ACTIVE"}}',
    f"thing:{_LONG_NAME}": f'{{"name":"{_LONG_NAME}","model":"untyped","attributes":{{}},"created_at_s":1750000001,'
    f'"certificate_ids":["{_SECOND_ID}"],"status":"ACTIVE"}}',
    "thing:going": '{"name":"going","model":"untyped","attributes":{},"created_at_s":1750000002,'
    '"certificate_ids":[],"status":"DELETING"}',
    f"certificate:{_FIRST_ID}": f'{{"certificate_id":"{_FIRST_ID}","thing_name":"lamp","common_name":"lamp",'
    '"serial":"730750818665451459101842416358141509827966271487","pem":"PEM","created_at_s":1750000000,'
    '"not_after_s":1850000000,"status":"REVOKED"}',
    f"certificate:{_SECOND_ID}": f'{{"certificate_id":"{_SECOND_ID}","thing_name":"{_LONG_NAME}",'
    f'"common_name":"{_SECOND_ID}","serial":"2","pem":"PEM","created_at_s":1750000001,'
    '"not_after_s":1850000000,"status":"ACTIVE"}',
    "fleet:hall": '{"group":{"name":"hall","model":"thermostat","thing_name":"hall-{i:06d}","count":10,"seed":1,'
    '"start_s":1750000000,"tick_s":1,"report_every_ticks":10,"attributes":[["site",["ber","muc"],[0.5,0.5]]]},'
    '"created_at_s":1750000000,"status":"ACTIVE"}',
}


async def test_what_the_first_release_kept_is_read_changed_and_removed(store: RedisServer) -> None:
    prefix = "first-release:registry"
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        client.xadd(prefix, {"at": "1", "by": "platform", "action": "registry.open", "subject": ""}, id="4-0")
        client.mset({f"{prefix}:{name}": text for name, text in _FIRST_RELEASE.items()})
        client.zadd(f"{prefix}:things", {"lamp": 0, _LONG_NAME: 0, "going": 0})
        client.zadd(f"{prefix}:removals", {"going": 0})
        client.zadd(f"{prefix}:fleets", {"hall": 0})
        client.hset(f"{prefix}:acl", _SECOND_ID, _LONG_NAME)
    registry = await Registry.open(store.url, VirtualClock(NOW_S), prefix="first-release:")
    page = await registry.things.page()
    assert [thing.name for thing in page.things] == ["going", "lamp", _LONG_NAME]
    lamp = await registry.things.get("lamp")
    assert (lamp.version, lamp.thing_type, lamp.groups, lamp.attributes) == (1, "", [], {"room": "hall"})
    (certificate,) = await registry.certificates.of_thing(lamp)
    assert (certificate.kind, certificate.is_barred) == ("thing", True)
    assert set(await registry.certificates.revoked()) == {int(certificate.serial)}
    assert await registry.certificates.acl_entries() == {_SECOND_ID: _LONG_NAME}
    (fleet,) = await registry.fleets.all()
    assert fleet.group.group().attributes[0].values == ("ber", "muc")
    changed = await registry.things.change(
        "lamp", lambda thing: replace(thing, thing_type="lamp"), action="thing.update", by="x"
    )
    assert changed.thing_id == lamp.thing_id
    assert [thing.name for thing in (await registry.things.page(thing_type="lamp")).things] == ["lamp"]
    assert await registry.things.removals() == ["going"]
    await registry.things.remove("going")
    assert [one.status for one in await registry.things.begin_removal(_LONG_NAME)] == ["REVOKED"]
    assert await registry.certificates.acl_entries() == {}
    assert (await registry.fleets.set_status("hall", "DELETING")).status == "DELETING"
    await registry.close()


async def test_names_of_a_pattern_are_found_among_registered_things(
    registry: Registry, authority: CertificateAuthority
) -> None:
    for name in ("hall-000009", "hall-9", "hall-x", "zoo"):
        await registry.things.add(thing_named(name), certificate_for(authority, name))
    pattern = NamePattern.parse("hall-{i:06d}")
    assert await registry.things.first_of(pattern, 9) is None
    assert await registry.things.first_of(pattern, 10) == "hall-000009"


async def test_a_fleet_comes_changes_and_goes(registry: Registry) -> None:
    for name in ("south", "north"):
        await registry.fleets.add(fleet_named(name))
    assert [fleet.group.name for fleet in await registry.fleets.all()] == ["north", "south"]
    with pytest.raises(FleetExists):
        await registry.fleets.add(fleet_named("north"))
    await registry.fleets.set_status("north", "ACTIVE")
    assert (await registry.fleets.get("north")).status == "ACTIVE"
    assert (await registry.fleets.get("north")).group.group() == fleet_named("north").group.group()
    await registry.fleets.remove("north")
    with pytest.raises(FleetNotFound):
        await registry.fleets.get("north")
    with pytest.raises(FleetNotFound):
        await registry.fleets.set_status("north", "ACTIVE")


async def test_every_change_stands_in_the_stream(
    registry: Registry, authority: CertificateAuthority, store: RedisServer
) -> None:
    await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"), by="anna")
    await registry.things.begin_removal("lamp", by="bert")
    await registry.things.remove("lamp", by="bert")
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        entries = client.xrange("twinfleet:registry")
    told = [(fields["by"], fields["action"], fields["subject"]) for _, fields in entries]
    assert told == [
        ("platform", "registry.open", ""),
        ("anna", "thing.create", "lamp"),
        ("bert", "thing.revoke", "lamp"),
        ("bert", "thing.delete", "lamp"),
    ]
    assert all(fields["at"] == f"{NOW_S:.3f}" for _, fields in entries)


async def test_an_older_writer_is_refused_and_writes_nothing(
    registry: Registry, authority: CertificateAuthority, store: RedisServer
) -> None:
    newer = await Registry.open(store.url, VirtualClock(NOW_S))
    with pytest.raises(StoreError, match="another process") as refusal:
        await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
    assert not refusal.value.retryable
    assert await newer.things.count() == 0
    await newer.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
    await newer.close()


async def test_a_reader_takes_nothing_from_the_writer(
    registry: Registry, authority: CertificateAuthority, store: RedisServer
) -> None:
    reader = await Registry.open(store.url, VirtualClock(NOW_S), is_writer=False)
    await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
    assert (await reader.things.get("lamp")).name == "lamp"
    with pytest.raises(InvariantError):
        await reader.things.begin_removal("lamp")
    await reader.close()


async def test_of_two_equal_changes_at_once_one_is_made(
    registry: Registry, authority: CertificateAuthority
) -> None:
    changes = [registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp")) for _ in range(5)]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    assert sum(isinstance(outcome, ThingExists) for outcome in outcomes) == 4


async def test_what_was_registered_outlives_the_store(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    store = start_store(tmp_path)
    registry = await Registry.open(store.url, VirtualClock(NOW_S))
    try:
        await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
        os.kill(store.pid, signal.SIGKILL)
        with pytest.raises(StoreError) as refusal:
            await registry.things.get("lamp")
        assert refusal.value.retryable
        store.stop()
        store.start()
        assert (await registry.things.get("lamp")).name == "lamp"
        await registry.things.add(thing_named("bell"), certificate_for(authority, "bell"))
    finally:
        await registry.close()
        store.stop()


@pytest.mark.parametrize("does_change", [False, True])
async def test_nobody_hears_that_a_kept_connection_was_to_a_store_that_has_ended(
    tmp_path: Path, authority: CertificateAuthority, *, does_change: bool
) -> None:
    store = start_store(tmp_path)
    registry = await Registry.open(store.url, VirtualClock(NOW_S))
    try:
        await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
        os.kill(store.pid, signal.SIGKILL)
        store.stop()
        store.start()
        if does_change:
            await registry.things.add(thing_named("bell"), certificate_for(authority, "bell"))
        assert (await registry.things.get("lamp")).name == "lamp"
    finally:
        await registry.close()
        store.stop()


async def test_a_change_that_was_made_before_its_connection_broke_is_made_once(
    registry: Registry, authority: CertificateAuthority, store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit: Any = registry._store._commit

    async def commit_twice(**arguments: Any) -> Any:
        await commit(**arguments)
        return await commit(**arguments)

    monkeypatch.setattr(registry._store, "_commit", commit_twice)
    await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
    assert await registry.things.count() == 1
    # What somebody else has appended under that number is not taken for it.
    registry._store._sequence = 0
    with pytest.raises(StoreError, match="another process"):
        await registry.things.add(thing_named("bell"), certificate_for(authority, "bell"))


async def test_a_full_store_refuses_changes_whole(
    registry: Registry, authority: CertificateAuthority, store: RedisServer
) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match="memory") as refusal:
                await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))
        finally:
            client.config_set("maxmemory", 0)
    assert refusal.value.retryable
    assert refusal.value.is_full
    assert await registry.things.count() == 0
    await registry.things.add(thing_named("lamp"), certificate_for(authority, "lamp"))


@pytest.mark.parametrize(
    ("name", "model", "attributes", "part"),
    [
        ("", "thermostat", {}, "thing name"),
        ("a.b", "thermostat", {}, "thing name"),
        ("n" * 129, "thermostat", {}, "thing name"),
        # A certificate of that id would be allowed on its topics.
        ("0123456789abcdef" * 4, "thermostat", {}, "thing name"),
        ("ABCDEF0123456789" * 4, "thermostat", {}, "thing name"),
        ("ok", "thermostat", {"": "x"}, "attribute ''"),
        ("ok", "thermostat", {"a b": "x"}, "attribute 'a b'"),
        ("ok", "thermostat", {"a": "no space"}, "attribute 'a'"),
        ("ok", "thermostat", {"a": "x" * 801}, "attribute 'a'"),
        ("ok", "thermostat", {f"a{i}": "x" for i in range(51)}, "attributes"),
    ],
)
def test_a_thing_against_the_rules_is_refused(
    name: str, model: str, attributes: dict[str, str], part: str
) -> None:
    with pytest.raises(DescriptionError) as refusal:
        check_thing(name, model, attributes)
    assert refusal.value.subject == part


@pytest.mark.parametrize("name", ["f" * 63, "f" * 65, "g" + "f" * 63])
def test_a_name_that_only_resembles_a_certificate_id_is_taken(name: str) -> None:
    check_thing(name, "thermostat", {})


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="thermostat"):
        check_thing("ok", "toaster", {})


@pytest.mark.parametrize("name", ["", "a/b", "n" * 118])
def test_a_fleet_name_that_cannot_begin_thing_names_is_refused(name: str) -> None:
    with pytest.raises(DescriptionError):
        check_fleet_name(name)
