"""What the bridge remembers of what it took, and what a shard makes of places."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from actors.errors import BrokerError
from actors.mqtt_taken import FILE_BYTES, TakenMessages
from twins.messages import Batch, Operation, Places, Request
from twins.places import PLACES_REMEMBERED
from twins.shard import Shard
from twins.snapshot import dump_shard, load_shard

NOW_S = 1_700_000_000.0


class Bridges:
    """One bridge after the other over the same notes, and a broker that starts anew when told to."""

    def __init__(self) -> None:
        self.content = bytearray(FILE_BYTES)
        self.start = 1

    def follow(self, *, session_present: bool = True) -> TakenMessages:
        taken = TakenMessages(self.content, broker_start=lambda: self.start)
        taken.connected(session_present=session_present)
        return taken


def test_what_was_taken_is_known_to_the_next_bridge_by_packet_id_and_content() -> None:
    bridges = Bridges()
    first = bridges.follow()
    first.caught_up()
    places = [first.add(packet_id, 7) for packet_id in (1, 2)]
    first.finish(1, places[0])
    second = bridges.follow()
    assert second.memory == first.memory
    assert second.find(1, 7) == (places[0], True, False)
    assert second.find(2, 7) == (places[1], False, False)
    assert second.find(2, 8) is None
    assert second.find(3, 7) is None
    assert second.add(3, 7) > places[1]


def test_only_a_broker_that_was_started_since_makes_what_it_has_not_said_to_come_again_doubtful() -> None:
    bridges = Bridges()
    first = bridges.follow()
    first.caught_up()
    place = first.add(1, 7)
    same = bridges.follow()
    assert not same.is_restored
    bridges.start = 2
    # Until one of them has heard the end of what was stored.
    for _ in range(2):
        taken = bridges.follow()
        assert taken.is_restored
        assert taken.find(1, 7) == (place, False, True)
    taken.caught_up()
    assert not taken.is_restored
    later = bridges.follow()
    assert not later.is_restored
    assert later.find(1, 7) == (place, False, True)
    assert later.find(2, 7) is None


def test_a_broker_without_the_session_delivers_nothing_again() -> None:
    bridges = Bridges()
    bridges.follow().add(1, 7)
    taken = bridges.follow(session_present=False)
    assert not taken.is_restored
    assert taken.find(1, 7) is None


def test_what_is_finished_late_is_not_the_message_that_has_the_packet_id_by_now() -> None:
    taken = Bridges().follow()
    place = taken.add(1, 7)
    other = taken.add(1, 7)
    taken.finish(1, place)
    assert taken.find(1, 7) == (other, False, False)


def test_packet_ids_that_have_come_round_are_new() -> None:
    bridges = Bridges()
    first = bridges.follow()
    first.add(1, 7)
    for number in range(PLACES_REMEMBERED):
        first.add(2 + number, 0)
    bridges.start = 2
    taken = bridges.follow()
    assert taken.find(1, 7) is None
    assert taken.find(3, 0) is not None
    # Far behind all that had been taken.
    for _ in range(16_001):
        taken.add(60_000, 0)
    assert taken.find(3, 0) is None


def test_one_process_at_a_time_has_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bridge.taken"
    first = TakenMessages.open(file, broker_start=lambda: 1)
    first.connected(session_present=True)
    place = first.add(65_535, 2**32 - 1)
    with pytest.raises(BrokerError, match="another bridge") as caught:
        TakenMessages.open(file, broker_start=lambda: 1)
    assert caught.value.retryable
    first.close()
    second = TakenMessages.open(file, broker_start=lambda: 1)
    assert second.find(65_535, 2**32 - 1) == (place, False, False)
    second.close()


def test_the_file_has_all_its_room_from_the_start_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bridge.taken"
    # As an earlier version made it: of the right size, and without a block.
    file.touch()
    os.truncate(file, FILE_BYTES)
    taken = TakenMessages.open(file, broker_start=lambda: 1)
    assert file.stat().st_blocks * 512 >= FILE_BYTES
    taken.add(1, 7)
    taken.sync()
    taken.close()
    # Whoever syncs in a thread may come late.
    taken.sync()

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(BrokerError, match="No space left") as caught:
        TakenMessages.open(file, broker_start=lambda: 1)
    assert caught.value.retryable


def test_a_file_that_holds_something_else_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "bridge.taken"
    for content in (b"short", b"\xff" * FILE_BYTES):
        file.write_bytes(content)
        taken = TakenMessages.open(file, broker_start=lambda: 1)
        taken.connected(session_present=True)
        assert taken.find(1, 2**32 - 1) is None
        assert taken.add(1, 7) == 1
        taken.close()


# ---- shards --------------------------------------------------------------------------------------------------------


class Sender:
    """A bridge's batches of one request each for a shard."""

    def __init__(self) -> None:
        self.shard = Shard(0, 1)
        self._sequence = 0

    def send(
        self, value: int, place: int, *, name: str = "", is_doubtful: bool = False, memory: int = 1
    ) -> list[str]:
        """Send an update, and return on which topics it is answered."""
        body = b'{"state":{"reported":{"n":%d}}}' % value
        request = Request(Operation.SHADOW_UPDATE, "lamp", body, name)
        return self.submit(request, Places(memory, [place], [0] if is_doubtful else []))

    def submit(self, request: Request, places: Places) -> list[str]:
        self._sequence += 1
        outcome = self.shard.apply(Batch("bridge/1", self._sequence, [request], places), NOW_S)
        return [each.topic.rpartition("/")[2] for each in outcome.publishes]

    def value(self) -> str:
        request = Request(Operation.SHADOW_GET, "lamp", is_direct=True)
        [reply] = self.shard.apply(Batch("", 0, [request]), NOW_S).replies
        return reply.payload.partition(b'"n":')[2].partition(b"}")[0].decode()


ANSWERS = ["accepted", "documents"]


def test_what_comes_again_after_later_ones_that_may_be_forgotten_is_refused() -> None:
    sender = Sender()
    assert sender.send(1, 11) == ANSWERS
    assert sender.send(2, 12) == ANSWERS
    assert sender.send(1, 11, is_doubtful=True) == ["rejected"]
    assert sender.value() == "2"
    # The last one had perhaps not been answered, and a later one was not carried out.
    assert sender.send(2, 12, is_doubtful=True) == ANSWERS
    assert sender.send(3, 13, is_doubtful=True) == ANSWERS
    assert sender.value() == "3"


def test_what_comes_again_together_with_all_that_followed_is_carried_out_again() -> None:
    sender = Sender()
    for value, place in ((1, 11), (2, 12), (1, 11)):
        assert sender.send(value, place) == ANSWERS
    # That it came again does not make the place of the last one lower.
    assert sender.send(1, 11, is_doubtful=True) == ["rejected"]


def test_places_of_another_subject_or_memory_say_nothing() -> None:
    sender = Sender()
    sender.send(1, 12)
    assert sender.send(2, 11, name="other", is_doubtful=True) == ANSWERS
    telemetry = Request(Operation.TELEMETRY, "lamp", b'{"n":1}', "")
    sender.submit(telemetry, Places(1, [10], [0]))
    assert sender.shard.refused_telemetry_count == 0
    sender.submit(telemetry, Places(1, [9], [0]))
    assert sender.shard.refused_telemetry_count == 1
    assert sender.submit(Request(Operation.SHADOW_GET, "lamp", b""), Places(1, [1], [0])) == ["accepted"]
    assert sender.send(3, 11, is_doubtful=True, memory=2) == ANSWERS


def test_places_that_are_too_old_to_matter_are_forgotten() -> None:
    sender = Sender()
    sender.send(1, 1, name="old")
    sender.send(1, 2)
    sender.send(1, PLACES_REMEMBERED + 1)
    assert sender.shard.last_places.of_subject == {("shadow", "lamp", ""): PLACES_REMEMBERED + 1}


def test_a_snapshot_knows_places() -> None:
    sender = Sender()
    sender.send(2, 12)
    sender.shard = load_shard(dump_shard(sender.shard))
    assert sender.send(1, 11, is_doubtful=True) == ["rejected"]
    assert sender.value() == "2"
