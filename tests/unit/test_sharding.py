"""Names, patterns and the shards that both lead to."""

from __future__ import annotations

import numpy as np
import pytest

from twins.errors import ModelError
from twins.sharding import (
    BLOCK_SIZE,
    NamePattern,
    is_certificate_id,
    is_name,
    is_thing_name,
    shard_of,
)

PATTERNS = ["sensor-{i:06d}", "sensor-{i}", "{i}", "a1-{i:02d}-x", "{i:03d}:b", "x{i:012d}_", "b2b{i}"]


@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_is_written_as_it_was_read(text: str) -> None:
    assert str(NamePattern.parse(text)) == text
    assert NamePattern.parse(str(NamePattern.parse(text))) == NamePattern.parse(text)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("index", [0, 1, 9, 10, 99, 100, 255, 256, 999_999, 1_000_000, 2**32 - 1])
def test_a_name_leads_back_to_its_index(text: str, index: int) -> None:
    pattern = NamePattern.parse(text)
    assert is_thing_name(pattern.name(index))
    assert pattern.index(pattern.name(index)) == index


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sensor-",
        "sensor-01",
        "sensor-0000001",
        "sensor-00001x",
        "xsensor-000001",
        "sensor-00000\u0661",
        "sensor--00001",
    ],
)
def test_a_name_of_another_form_is_not_of_the_pattern(name: str) -> None:
    assert NamePattern.parse("sensor-{i:06d}").index(name) is None


def test_prefix_and_suffix_do_not_overlap_in_a_name() -> None:
    assert NamePattern.parse("ab{i}ba").index("aba") is None


@pytest.mark.parametrize("text", ["sensor-{i:06d}", "{i}", "a1-{i:02d}-x"])
@pytest.mark.parametrize("shard_count", [1, 2, 3, 8, 16, 64])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 3000])
def test_the_blocks_of_a_shard_are_those_whose_names_lead_to_it(
    text: str, shard_count: int, count: int
) -> None:
    pattern = NamePattern.parse(text)
    owner = {}
    for shard in range(shard_count):
        blocks = pattern.blocks(count, shard, shard_count=shard_count)
        assert list(blocks) == sorted(blocks)
        owner.update({int(block): shard for block in blocks})
    assert sorted(owner) == list(range(-(-count // BLOCK_SIZE)))
    for index in range(count):
        assert shard_of(pattern.name(index), shard_count) == owner[index // BLOCK_SIZE]


def test_numbered_things_spread_evenly() -> None:
    pattern = NamePattern.parse("sensor-{i:06d}")
    sizes = [len(pattern.blocks(100_000, shard, shard_count=16)) for shard in range(16)]
    assert max(sizes) - min(sizes) <= 1


def test_names_without_a_number_spread_over_shards() -> None:
    names = [a + b + c for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    counts = np.bincount([shard_of(name, 16) for name in names], minlength=16)
    assert counts.min() > 0
    assert {shard_of(name, 1) for name in names} == {0}


@pytest.mark.parametrize(
    "name", ["", "a", "7", "0" * 128, "9" * 128, "a\nb", "a1\n", "ü", "\ud800"[:0], "$aws"]
)
def test_every_name_has_a_shard(name: str) -> None:
    assert 0 <= shard_of(name, 7) < 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sensor", "exactly one number"),
        ("", "exactly one number"),
        ("{i}{i}", "exactly one number"),
        ("{i:06}", "exactly one number"),
        ("{i:6d}", "exactly one number"),
        ("{j}", "exactly one number"),
        ("a1{i}", "no digit"),
        ("{i}1", "no digit"),
        ("{i}-2", "no digit"),
        ("sensor {i}", "only letters"),
        ("sensor/{i}", "only letters"),
        ("säge-{i}", "only letters"),
        ("{{i}}", "only letters"),
    ],
)
def test_a_wrong_pattern_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        NamePattern.parse(text)


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        ("a", True),
        ("A-z_0:9", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("a/b", False),
        ("a+", False),
        ("a#", False),
        ("$aws", False),
        ("a\n", False),
        ("é", False),
        ("\u0663", False),
        ("a.b", False),
    ],
)
def test_names_of_things(name: str, is_allowed: bool) -> None:
    assert is_thing_name(name) is is_allowed
    assert is_name(name) is is_allowed


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [("ab" * 32, False), ("AB" * 32, False), ("1" * 64, False), ("a" * 63, True), ("a" * 65, True)],
)
def test_a_thing_is_never_named_like_a_certificate(name: str, is_allowed: bool) -> None:
    assert (is_thing_name(name), is_certificate_id(name), is_name(name)) == (is_allowed, not is_allowed, True)
