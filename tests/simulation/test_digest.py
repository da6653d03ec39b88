"""Same seed, same bytes: whatever the number of shards, and however time is cut into windows."""

from __future__ import annotations

import msgspec
import pytest

from actors.fleet import LocalFleet
from twins.kernels import Kernels
from twins.messages import TickOrder, TickSummary
from twins.model import Attribute, Group
from twins.shipped import model_named

START_S = 1_767_225_600
TICKS = 100
WISH_AT = 50
SITES = Attribute("site", ("berlin", "paris", "rom"), (5.0, 3.0, 2.0))
GROUPS = (
    Group("homes", model_named("thermostat"), "home-{i:05d}", 5000, 42, START_S, attributes=(SITES,)),
    Group(
        "offices", model_named("thermostat"), "{i}-office", 333, 7, START_S, tick_s=1, report_every_ticks=1
    ),
)
# Written down when simulation was introduced. Whatever changes it changes the results of every seeded run: say so.
STORED = "9b43e099f82822a44411a86d64c3d5974fcaccdc9b65ff6366b5270208658623"


async def history(
    shard_count: int, *, window: int = 50, groups: tuple[Group, ...] = GROUPS, live: bool = False
) -> tuple[str, dict[str, TickSummary]]:
    """Return the digest of a fleet after some ticks, with a wish for all in the middle, and what happened."""
    fleet = LocalFleet(shard_count)
    totals: dict[str, TickSummary] = {}
    for group in groups:
        await fleet.create_group(group)
    for first in range(0, TICKS, window):
        desired = {"set_point": 22.5} if first == WISH_AT else {}
        orders = [TickOrder(group.name, first, window, desired) for group in groups]
        for name, summary in (await fleet.tick(orders)).items():
            totals[name] = totals.get(name, TickSummary()).then(summary)
        if live and first + window == WISH_AT:
            await fleet.twin("home-00300").update_desired({"set_point": 25, "note": {"by": ["ops"]}})
    digest = await fleet.digest()
    await fleet.close()
    return digest, totals


@pytest.mark.parametrize("shard_count", [1, 2, 8, 64])
@pytest.mark.parametrize("window", [1, 50])
async def test_the_digest_is_the_stored_one(shard_count: int, window: int) -> None:
    digest, totals = await history(shard_count, window=window)
    assert digest == STORED
    assert totals["homes"].device_ticks == 5000 * TICKS
    assert totals["offices"].reports_due == 333 * TICKS


@pytest.mark.parametrize("shard_count", [1, 8])
async def test_compiled_code_gives_the_stored_digest(
    shard_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twins.simulation.runner", Kernels)
    digest, _ = await history(shard_count)
    assert digest == STORED


async def test_what_happened_is_the_same_for_every_number_of_shards() -> None:
    _, one = await history(1)
    _, many = await history(64, window=1)
    assert one == many


async def test_a_live_request_at_the_same_tick_gives_the_same_digest() -> None:
    digests = {(await history(count, window=window, live=True))[0] for count, window in ((1, 50), (8, 10))}
    assert len(digests) == 1
    assert digests != {STORED}


@pytest.mark.parametrize(
    "change",
    [{"seed": 43}, {"name": "houses"}, {"start_s": START_S + 1}, {"count": 4999}, {"report_every_ticks": 9}],
)
async def test_another_seed_or_group_gives_another_digest(change: dict[str, int | str]) -> None:
    fields = {name: getattr(GROUPS[0], name) for name in GROUPS[0].__dataclass_fields__}
    digest, _ = await history(2, groups=(Group(**fields | change), GROUPS[1]))
    assert digest != STORED


async def test_the_digest_sees_every_tick_and_every_twin() -> None:
    seen = set()
    fleet = LocalFleet(2)
    await fleet.create_group(GROUPS[0])
    seen.add(await fleet.digest())
    for tick in range(3):
        await fleet.tick([TickOrder("homes", tick, 1)])
        seen.add(await fleet.digest())
    await fleet.twin("home-04999").update_desired({"x": 1})
    seen.add(await fleet.digest())
    await fleet.twin("home-04999").update_desired({"x": 1.0})
    seen.add(await fleet.digest())
    assert len(seen) == 6


async def test_real_twins_stand_outside_the_digest() -> None:
    fleet = LocalFleet(2)
    await fleet.create_group(GROUPS[0])
    before = await fleet.digest()
    await fleet.twin("lamp").update_desired({"on": True})
    assert await fleet.digest() == before


async def test_the_order_of_creation_does_not_matter() -> None:
    digest, _ = await history(8, groups=tuple(reversed(GROUPS)))
    assert digest == STORED


def test_a_summary_counts_in_whole_numbers() -> None:
    assert all(field.type in (int, list[int]) for field in msgspec.structs.fields(TickSummary))
