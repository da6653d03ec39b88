"""Whose turn it is: what happens at the broker goes in, in its order, and what is to be done comes out."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from actors.provisioning.turns import (
    FAREWELL_S,
    PENDING_COUNT_MAX,
    PROGRESS_TIMEOUT_S,
    TURN_TIMEOUT_S,
    WARY_S,
    Action,
    Burn,
    ClaimAnswer,
    ClaimRequest,
    CloseGate,
    EndSessions,
    HandOver,
    OpenGate,
    ProvisioningTurns,
    Send,
    Serve,
)

A, B = "claim.a", "claim.b"
CREATE = ClaimRequest("$aws/certificates/create/json", b"{}")
CERTIFICATE = ClaimAnswer(f"{CREATE.topic}/accepted", b"a certificate", certificate_id="c1")
THING = ClaimAnswer("$aws/provisioning-templates/t/provision/json/accepted", b"a thing", is_provisioned=True)


@pytest.fixture
def turns() -> ProvisioningTurns:
    """Return turns that see the broker's events, with nobody connected."""
    turns = ProvisioningTurns()
    assert turns.resumed() == []
    return turns


def served(turns: ProvisioningTurns, claim: str = A) -> int:
    """Let a device connect, close the gate, and return the number of the session that is served its request."""
    assert turns.connected(claim, 0) == [CloseGate(claim)]
    assert turns.gate_closed(0) == []
    (action,) = turns.requested(CREATE, 0)
    assert isinstance(action, Serve)
    return action.session


def test_a_device_is_served_from_connecting_to_goodbye(turns: ProvisioningTurns) -> None:
    session = served(turns)
    assert turns.answered(session, CERTIFICATE, 1) == [Send(CERTIFICATE)]
    assert turns.heard(CERTIFICATE.topic, CERTIFICATE.payload, 1) == [HandOver("c1")]
    assert turns.requested(CREATE, 2) == [Serve(session, A, CREATE)]
    assert turns.answered(session, THING, 2) == [Send(THING)]
    assert turns.heard(THING.topic, THING.payload, 2) == []
    assert turns.gone(A, 3) == [EndSessions((A,)), OpenGate()]
    assert turns.gate_opened(3) == []
    assert turns.deadline_s == float("inf")


def test_nothing_is_served_before_the_gate_is_closed(turns: ProvisioningTurns) -> None:
    turns.connected(A, 0)
    assert turns.requested(CREATE, 0) == []
    assert turns.gate_closed(0) == [Serve(1, A, CREATE)]


def test_who_takes_over_while_the_gate_closes_has_the_turn(turns: ProvisioningTurns) -> None:
    turns.connected(A, 0)
    turns.requested(CREATE, 0)
    assert turns.connected(A, 0) == []
    # The request was the first session's, which is gone.
    assert turns.gate_closed(0) == []
    assert turns.requested(CREATE, 0) == [Serve(2, A, CREATE)]


def test_an_answer_to_a_session_that_was_taken_over_is_not_sent_and_its_certificate_burnt(
    turns: ProvisioningTurns,
) -> None:
    session = served(turns)
    assert turns.connected(A, 1) == []
    assert turns.answered(session, CERTIFICATE, 1) == [Burn("c1")]


def test_an_answer_that_passes_the_broker_after_a_takeover_is_burnt(turns: ProvisioningTurns) -> None:
    session = served(turns)
    turns.answered(session, CERTIFICATE, 1)
    assert turns.connected(A, 1) == [Burn("c1")]
    assert turns.heard(CERTIFICATE.topic, CERTIFICATE.payload, 1) == []


def test_an_answer_that_passes_the_broker_before_a_takeover_counts(turns: ProvisioningTurns) -> None:
    session = served(turns)
    turns.answered(session, CERTIFICATE, 1)
    assert turns.heard(CERTIFICATE.topic, CERTIFICATE.payload, 1) == [HandOver("c1")]
    assert turns.connected(A, 1) == []


def test_a_claim_that_connects_before_the_echo_of_anothers_answer_burns_it_too(
    turns: ProvisioningTurns,
) -> None:
    session = served(turns)
    turns.answered(session, CERTIFICATE, 1)
    assert turns.connected(B, 1) == [Burn("c1"), EndSessions((B,))]


def test_an_answer_whose_asker_goes_before_its_echo_is_burnt(turns: ProvisioningTurns) -> None:
    session = served(turns)
    turns.answered(session, CERTIFICATE, 1)
    assert turns.gone(A, 1) == [Burn("c1"), EndSessions((A,)), OpenGate()]


def test_a_request_that_may_be_of_two_claims_is_nobodys_and_all_begin_anew(turns: ProvisioningTurns) -> None:
    turns.connected(A, 0)
    assert turns.connected(B, 0) == []
    assert turns.requested(CREATE, 0) == [EndSessions((A, B))]
    assert turns.gate_closed(0) == [EndSessions((A,)), OpenGate()]
    assert turns.gone(A, 0) == turns.gone(B, 0) == []
    assert turns.gate_opened(0) == []
    assert turns.connected(B, 1) == [CloseGate(B)]


def test_a_second_claim_is_sent_away_and_the_first_served(turns: ProvisioningTurns) -> None:
    turns.connected(A, 0)
    turns.connected(B, 0)
    assert turns.gate_closed(0) == [EndSessions((B,))]
    assert turns.gone(B, 0) == []
    assert turns.requested(CREATE, 0) == [Serve(1, A, CREATE)]


def test_a_second_claim_that_comes_through_the_closed_gate_is_sent_away(turns: ProvisioningTurns) -> None:
    session = served(turns)
    assert turns.connected(B, 0) == [EndSessions((B,))]
    assert turns.answered(session, CERTIFICATE, 0) == [Send(CERTIFICATE)]


def test_a_request_without_a_session_is_dropped(turns: ProvisioningTurns) -> None:
    assert turns.requested(CREATE, 0) == []
    turns.connected(A, 0)
    turns.gone(A, 0)
    assert turns.requested(CREATE, 0) == []
    assert turns.dropped_count == 2


def test_who_came_through_while_the_gate_was_opening_is_next(turns: ProvisioningTurns) -> None:
    served(turns)
    turns.gone(A, 1)
    assert turns.connected(A, 2) == []
    assert turns.requested(CREATE, 2) == []
    assert turns.gate_opened(2) == [CloseGate(A)]
    assert turns.gate_closed(2) == [Serve(2, A, CREATE)]


def test_a_session_that_ended_while_the_gate_closed_leaves_it_open_again(turns: ProvisioningTurns) -> None:
    turns.connected(A, 0)
    assert turns.gone(A, 0) == []
    assert turns.gate_closed(0) == [EndSessions((A,)), OpenGate()]
    assert turns.gate_opened(0) == []


@pytest.mark.parametrize(
    ("steps", "end_s"),
    [
        ([], PROGRESS_TIMEOUT_S),
        ([6.0], 6.0 + PROGRESS_TIMEOUT_S),
        ([6.0, 12.0, 18.0, 24.0], TURN_TIMEOUT_S),
    ],
    ids=["idle", "one request", "a request now and then"],
)
def test_a_turn_ends_by_the_clock(turns: ProvisioningTurns, steps: list[float], end_s: float) -> None:
    turns.connected(A, 0)
    turns.gate_closed(0)
    for at_s in steps:
        turns.requested(CREATE, at_s)
        turns.answered(1, CERTIFICATE, at_s)
        turns.heard(CERTIFICATE.topic, CERTIFICATE.payload, at_s)
    assert turns.deadline_s == end_s
    assert turns.time_passed(end_s - 0.1) == []
    assert turns.time_passed(end_s) == [EndSessions((A,)), OpenGate()]
    # Its end is still to be heard of, and it is not served again meanwhile.
    assert turns.gate_opened(end_s) == []
    assert turns.requested(CREATE, end_s) == []
    assert turns.gone(A, end_s) == []


@pytest.fixture
def after_idle(turns: ProvisioningTurns) -> ProvisioningTurns:
    """Return turns of which the last one passed without a request."""
    turns.connected(A, 0)
    turns.gate_closed(0)
    turns.time_passed(PROGRESS_TIMEOUT_S)
    turns.gone(A, PROGRESS_TIMEOUT_S)
    turns.gate_opened(PROGRESS_TIMEOUT_S)
    return turns


def test_who_comes_back_and_asks_nothing_keeps_nobody_out(after_idle: ProvisioningTurns) -> None:
    assert after_idle.connected(A, 20) == []
    assert after_idle.deadline_s == float("inf")
    # Another device with the claim takes over, and asks.
    assert after_idle.connected(A, 30) == []
    assert after_idle.requested(CREATE, 31) == [CloseGate(A)]
    assert after_idle.gate_closed(31) == [Serve(3, A, CREATE)]
    after_idle.gone(A, 32)
    after_idle.gate_opened(32)
    # The first one comes back.
    assert after_idle.connected(A, 33) == []
    after_idle.gone(A, 34)
    assert after_idle.connected(A, PROGRESS_TIMEOUT_S + WARY_S) == [CloseGate(A)]


def test_who_comes_back_and_asks_nothing_gives_way_to_another_claim(after_idle: ProvisioningTurns) -> None:
    assert after_idle.connected(A, 20) == []
    assert after_idle.connected(B, 30) == [CloseGate(B)]
    assert after_idle.gate_closed(30) == [EndSessions((A,))]
    after_idle.gone(A, 30)
    assert after_idle.requested(CREATE, 30) == [Serve(3, B, CREATE)]


def test_a_device_is_not_sent_away_while_it_waits_for_us(turns: ProvisioningTurns) -> None:
    turns.connected(A, 0)
    # The broker takes its time with the gate, and then with the access list.
    turns.gate_closed(60)
    (serve,) = turns.requested(CREATE, 61)
    assert isinstance(serve, Serve)
    late_s = 61 + PROGRESS_TIMEOUT_S + 5
    assert turns.time_passed(late_s) == []
    assert turns.answered(serve.session, CERTIFICATE, late_s) == [Send(CERTIFICATE)]
    assert turns.deadline_s == late_s + PROGRESS_TIMEOUT_S


def test_what_is_secret_is_in_no_text_of_ours() -> None:
    assert "a certificate" not in repr(Send(CERTIFICATE))
    assert "token" not in repr(Serve(1, A, ClaimRequest(CREATE.topic, b"a token")))


def test_a_provisioned_device_that_forgets_to_go_is_sent_away(turns: ProvisioningTurns) -> None:
    session = served(turns)
    turns.answered(session, THING, 1)
    turns.heard(THING.topic, THING.payload, 1)
    assert turns.time_passed(1 + FAREWELL_S) == [EndSessions((A,)), OpenGate()]


def test_one_request_of_a_session_is_served_at_a_time_and_few_wait(turns: ProvisioningTurns) -> None:
    session = served(turns)
    for _ in range(PENDING_COUNT_MAX + 3):
        assert turns.requested(CREATE, 0) == []
    assert turns.dropped_count == 3
    assert turns.answered(session, CERTIFICATE, 0) == [Send(CERTIFICATE), Serve(session, A, CREATE)]


def test_nothing_is_served_while_the_order_is_not_the_brokers(turns: ProvisioningTurns) -> None:
    session = served(turns)
    turns.answered(session, CERTIFICATE, 0)
    assert turns.interrupted() == [Burn("c1"), EndSessions((A,)), OpenGate()]
    assert turns.heard(CERTIFICATE.topic, CERTIFICATE.payload, 0) == []
    assert turns.gate_opened(0) == []
    assert turns.connected(B, 0) == []
    assert turns.requested(CREATE, 0) == []
    assert turns.resumed() == [EndSessions((A, B))]


def test_a_broker_that_starts_has_no_sessions(turns: ProvisioningTurns) -> None:
    session = served(turns)
    turns.answered(session, CERTIFICATE, 0)
    assert turns.broker_started() == [Burn("c1"), EndSessions((A,)), OpenGate()]
    assert turns.requested(CREATE, 0) == []


class _History:
    """Devices of two claims come, ask and go at random, and what is to be done is done late, in its order."""

    def __init__(self, turns: ProvisioningTurns, seed: int) -> None:
        self.luck = random.Random(seed)
        self.turns = turns
        self.waiting: list[Action] = []
        self.serving: list[Serve] = []
        self.on_the_way: list[ClaimAnswer] = []
        # By claim, the number of its newest session, and who is connected.
        self.newest: dict[str, int] = {}
        self.connected: set[str] = set()
        self.counts: Counter[str] = Counter()
        # How often the fate of each certificate was decided.
        self.fates: Counter[str] = Counter()
        self.is_closed = False

    def live(self, now_s: float) -> None:
        """Let one thing happen."""
        steps = (self.come, self.go, self.ask, self.answer, self.echo, self.obey)
        self.luck.choices(steps, weights=(12, 8, 25, 10, 10, 35))[0](now_s)
        self.waiting += self.turns.time_passed(now_s)

    def come(self, now_s: float) -> None:
        claim = self.luck.choice([A, A, A, B])
        self.counts["sessions"] += 1
        self.newest[claim] = self.counts["sessions"]
        self.connected.add(claim)
        self.waiting += self.turns.connected(claim, now_s)

    def go(self, now_s: float) -> None:
        if self.connected:
            claim = self.luck.choice(sorted(self.connected))
            self.connected.discard(claim)
            self.waiting += self.turns.gone(claim, now_s)

    def ask(self, now_s: float) -> None:
        self.waiting += self.turns.requested(CREATE, now_s)

    def answer(self, now_s: float) -> None:
        if not self.serving:
            return
        asked = self.serving.pop(self.luck.randrange(len(self.serving)))
        self.counts["certificates"] += 1
        number = self.counts["certificates"]
        answer = ClaimAnswer(CERTIFICATE.topic, b"%d" % number, f"c{number}")
        actions = self.turns.answered(asked.session, answer, now_s)
        if Send(answer) in actions:
            assert self.is_closed
            assert asked.claim in self.connected
            assert self.newest[asked.claim] == asked.session
        self.waiting += actions

    def echo(self, now_s: float) -> None:
        if self.on_the_way:
            heard = self.on_the_way.pop(0)
            self.waiting += self.turns.heard(heard.topic, heard.payload, now_s)

    def obey(self, now_s: float) -> None:
        """Carry out the first of the actions that wait."""
        if not self.waiting:
            return
        match self.waiting.pop(0):
            case CloseGate():
                assert not self.is_closed
                self.is_closed = True
                self.waiting += self.turns.gate_closed(now_s)
            case OpenGate():
                assert self.is_closed
                self.is_closed = False
                self.waiting += self.turns.gate_opened(now_s)
            case EndSessions(claims=claims):
                for claim in claims:
                    self.connected.discard(claim)
                    self.waiting += self.turns.gone(claim, now_s)
            case Serve() as serve:
                self.serving.append(serve)
            case Send(answer=sent):
                self.on_the_way.append(sent)
            case HandOver(certificate_id=certificate_id) | Burn(certificate_id=certificate_id):
                self.fates[certificate_id] += 1


@pytest.mark.parametrize("seed", range(200))
def test_in_no_history_two_turns_overlap_or_an_answer_leaves_to_another_session(
    turns: ProvisioningTurns, seed: int
) -> None:
    history = _History(turns, seed)
    for step in range(400):
        history.live(step / 4)
    assert turns.turn_count > 0
    # Whatever became of a certificate, it was decided once.
    assert not history.fates or max(history.fates.values()) == 1
