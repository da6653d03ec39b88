"""Who is on a real store's list of nodes, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from actors import membership
from actors.errors import NodeNameTaken, SettingsError, StoreError
from actors.membership import Absences, HeadRecord, Membership
from actors.node import NodeSettings
from actors.store import RedisServer
from tests.integration.running_platform import until

HEAD = HeadRecord("127.0.0.1:6379", 16, "s3://bucket/prefix", "identity", 1 << 20)


@pytest.fixture
def members(store: RedisServer) -> Iterator[Membership]:
    made = Membership.at(store.url)
    yield made
    made.close()


def test_nodes_hear_what_the_head_has_told_last(members: Membership) -> None:
    with pytest.raises(StoreError, match="start the platform") as missing:
        members.head()
    assert missing.value.retryable
    members.tell(HEAD)
    assert members.head() == HEAD


def test_a_node_is_present_until_it_leaves_or_falls_silent(
    members: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    members.beat("attic", "one")
    assert members.present({"attic", "cellar"}) == {"attic"}
    members.leave("attic")
    assert members.present({"attic"}) == set()
    assert members.present(set()) == set()
    monkeypatch.setattr(membership, "_BEAT_COUNTS_S", 1)
    members.beat("attic", "one")
    until(lambda: not members.present({"attic"}), "the node is missed")


def test_a_name_belongs_to_one_node_at_a_time(members: Membership) -> None:
    members.beat("attic", "one")
    members.beat("attic", "one")
    with pytest.raises(NodeNameTaken, match="a node 'attic' runs already"):
        members.beat("attic", "another")
    members.leave("attic")
    members.beat("attic", "another")


def test_a_node_is_lost_when_it_has_been_missed_for_long_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absences = Absences()
    assert absences.lost({"attic", "cellar"}, {"attic"}) == set()
    monkeypatch.setattr(membership, "LOST_AFTER_S", 0.0)
    assert absences.lost({"attic", "cellar"}, {"attic"}) == {"cellar"}
    assert absences.lost({"attic", "cellar"}, {"attic", "cellar"}) == set()


def test_an_outage_of_the_store_is_nobodys_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    absences = Absences()
    assert absences.lost({"attic"}, set()) == set()
    now_s += membership.LOST_AFTER_S
    absences.forget()
    assert absences.lost({"attic"}, set()) == set()
    now_s += membership.LOST_AFTER_S
    assert absences.lost({"attic"}, set()) == {"attic"}


@pytest.mark.parametrize("name", ["head", "", "Attic", "a b", "-attic", "attic/1", "a" * 33])
def test_a_name_that_is_none_is_refused(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.getbasetemp()
    with pytest.raises(SettingsError, match="is no name for a node"):
        NodeSettings(name, place, place, 1)
