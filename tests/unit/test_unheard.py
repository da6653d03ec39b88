"""What counts as published and heard by nobody: the rules, on the broker's totals."""

from __future__ import annotations

import pytest

from actors.unheard import UnheardPublishes, is_heard


def counting(total: int = 100, accounted: int = 70) -> UnheardPublishes:
    """Return a count that has begun: 30 messages came before anybody listened."""
    unheard = UnheardPublishes()
    unheard.received(total, accounted=accounted, is_late=False)
    return unheard


def test_what_came_before_counting_began_is_not_counted() -> None:
    assert counting().count == 0


def test_what_is_heard_or_our_own_is_not_counted() -> None:
    unheard = counting()
    unheard.received(150, accounted=120, is_late=False)
    assert unheard.count == 0


def test_what_nobody_heard_is_counted() -> None:
    unheard = counting()
    unheard.received(150, accounted=113, is_late=False)
    assert unheard.count == 7


def test_what_is_accounted_for_before_its_total_comes_is_made_up_for_later() -> None:
    unheard = counting()
    unheard.received(110, accounted=77, is_late=False)
    unheard.received(120, accounted=99, is_late=True)
    assert unheard.count == 3
    unheard.received(140, accounted=106, is_late=False)
    assert unheard.count == 4


def test_after_an_interruption_counting_goes_on_from_where_it_was() -> None:
    unheard = counting()
    unheard.received(110, accounted=75, is_late=False)
    unheard.interrupt()
    # Another broker, which counts from nothing, while messages were stored.
    unheard.received(4, accounted=90, is_late=False)
    assert unheard.count == 5
    unheard.received(9, accounted=93, is_late=False)
    assert unheard.count == 7


def test_counting_does_not_begin_with_a_total_that_has_waited() -> None:
    unheard = UnheardPublishes()
    # Twenty messages that came after this total are accounted for already.
    unheard.received(100, accounted=90, is_late=True)
    unheard.received(130, accounted=100, is_late=False)
    unheard.received(131, accounted=100, is_late=False)
    assert unheard.count == 1


@pytest.mark.parametrize(
    ("topic", "is_our_own_heard"),
    [
        ("$aws/things/lamp/shadow/update", True),
        ("$aws/things/lamp/shadow/name/config/get", True),
        ("$aws/things/lamp/defender/metrics/json", True),
        ("telemetry/lamp", True),
        ("telemetry/lamp/a/b", True),
        ("telemetry/lamp/a\nb", True),
        ("telemetry", False),
        ("$aws/things/lamp/shadow/update/accepted", False),
        ("$aws/things/lamp/shadow/name/config/get/accepted", False),
        ("$aws/things/lamp/shadow/other", False),
        ("xaws/things/lamp/shadow/update", False),
        ("$aws/events/thing/lamp/updated", False),
    ],
)
def test_the_bridge_hears_what_it_publishes_itself_on_topics_of_requests(
    topic: str, is_our_own_heard: bool
) -> None:
    assert is_heard(topic) is is_our_own_heard
