"""Whose turn it is to be provisioned: the state machine that keeps devices with a common claim certificate apart.

The answers to claims are published on topics that all claims share, a request does not say who sent it, and devices
that share a claim certificate have one client id at the broker: the newest connection throws the last one off. So one
claim session is served at a time. While it is its turn the gate is closed: the broker refuses every new connection with
a claim certificate, and lets only the session's own claim read answers. Who is refused tries again later.

Pure: what happens at the broker goes in, in the broker's order, with the time in seconds; out come the actions that
follow, to be carried out in their order. What is promised:

- A request is served for the session that was connected when the broker took it. Were sessions of two claims
  connected, nobody is served and both are ended; was none, or is it gone by then, the request is dropped.
- An answer leaves while the gate is closed and the asker's session is connected. It counts when its echo comes back
  before that session ends or is taken over; else a certificate that it carried is burnt, for somebody else may have it.
- Every turn ends: with the session, soon after the thing was provisioned, when its device asks nothing for a time, and
  at last by the clock; what is left of the session at the broker is cleared away before the gate opens. For a while
  after one in which nothing was asked turns begin with a request: who only comes back and waits keeps nobody out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

# A device says goodbye within a round trip or two of its last answer; this is for one that forgets to.
FAREWELL_S: Final = 3.0
# Several round trips of a slow link. The time in which we look for an answer does not count: a hook may take five
# seconds, and a reload of a broker with thousands of certificates more than this.
PROGRESS_TIMEOUT_S: Final = 10.0
# Both requests with a slow hook, twice over.
TURN_TIMEOUT_S: Final = 30.0
# Who idles is back within seconds. Not for ever: before it can ask over a slow link, a device may be taken over.
WARY_S: Final = 60.0
# A device sends one request and waits for its answer; the rest is room for an impatient one.
PENDING_COUNT_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a claim session has published."""

    topic: str
    # A token stands in it, and so it stands in no log; a private key in the answer.
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """What it is answered. `certificate_id` is that of a certificate which it carries, '' for none."""

    topic: str
    payload: bytes = field(repr=False)
    certificate_id: str = ""
    is_provisioned: bool = False


@dataclass(frozen=True, slots=True)
class CloseGate:
    """Refuse new connections of claims, let `claim` alone read answers, then call `gate_closed`."""

    claim: str


@dataclass(frozen=True, slots=True)
class OpenGate:
    """Let claims connect and nobody read answers, then call `gate_opened`."""


@dataclass(frozen=True, slots=True)
class EndSessions:
    """End these claims' sessions at the broker, kept ones too."""

    claims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Serve:
    """Find the answer to a request of `claim`, beside all else, then call `answered` with the session's number."""

    session: int
    claim: str
    request: ClaimRequest


@dataclass(frozen=True, slots=True)
class Send:
    """Publish an answer, so that only who is connected at this moment can get it."""

    answer: ClaimAnswer


@dataclass(frozen=True, slots=True)
class HandOver:
    """A certificate has reached its asker, and nobody else: its token counts from now on."""

    certificate_id: str


@dataclass(frozen=True, slots=True)
class Burn:
    """A certificate may have reached somebody else: it and its token must never count."""

    certificate_id: str


Action = CloseGate | OpenGate | EndSessions | Serve | Send | HandOver | Burn


@dataclass(slots=True)
class _Session:
    """A connection of a claim, as far as the broker's events tell; its number is never used again."""

    number: int
    claim: str
    # It is being ended; it counts as connected until the broker says that it is not.
    is_ending: bool = False
    is_served: bool = False
    pending: deque[ClaimRequest] = field(default_factory=deque)


@dataclass(slots=True)
class _Turn:
    """The turn that is held; once it is over it only waits for the gate to open."""

    claim: str
    session: int
    # With the closing of the gate, which may take a while.
    began_at_s: float
    progress_at_s: float
    # When its device should have gone, if nothing happens; infinity until it is provisioned.
    farewell_at_s: float = float("inf")
    is_over: bool = False
    has_asked: bool = False
    # Sent and not heard back, in their order.
    unheard: deque[ClaimAnswer] = field(default_factory=deque)


class ProvisioningTurns:
    """The turns of one broker's claims. It begins blind: until `resumed` nothing is served."""

    def __init__(self) -> None:
        self.turn_count = 0
        self.dropped_count = 0
        self.burnt_count = 0
        self._gate: Literal["OPEN", "CLOSING", "CLOSED", "OPENING"] = "OPEN"
        self._turn: _Turn | None = None
        # By claim, because the broker knows one session for each.
        self._sessions: dict[str, _Session] = {}
        self._last_number = 0
        self._is_blind = True
        # The clock has ended a turn in which nothing was asked: until then a turn begins with a request.
        self._is_wary_until_s = float("-inf")

    @property
    def deadline_s(self) -> float:
        """Return when `time_passed` should be called at the latest; infinity if nothing waits."""
        turn = self._turn
        if turn is None or turn.is_over or self._gate != "CLOSED":
            return float("inf")
        session = self._sessions.get(turn.claim)
        is_served = session is not None and session.is_served
        progress_s = float("inf") if is_served else turn.progress_at_s + PROGRESS_TIMEOUT_S
        return min(turn.began_at_s + TURN_TIMEOUT_S, progress_s, turn.farewell_at_s)

    # ---- what happens at the broker ----

    def connected(self, claim: str, now_s: float) -> list[Action]:
        """Note that a device has connected with this claim; an earlier session of the claim ended by that."""
        self._last_number += 1
        self._sessions[claim] = _Session(self._last_number, claim)
        turn = self._turn
        if turn is None:
            return [] if self._is_blind else self._begin(now_s)
        if turn.is_over:
            return []
        actions = self._burn_unheard(turn)
        if claim == turn.claim:
            turn.session, turn.progress_at_s = self._last_number, now_s
        elif self._gate == "CLOSED":
            actions += self._end([claim])
        return actions

    def gone(self, claim: str, now_s: float) -> list[Action]:
        """Note that the session of a claim has ended, by whomever; without one, nothing changes."""
        session = self._sessions.pop(claim, None)
        turn = self._turn
        if session is None or turn is None or turn.is_over or turn.session != session.number:
            return []
        return self._end_turn(turn)

    def requested(self, request: ClaimRequest, now_s: float) -> list[Action]:
        """Take a request that a claim session has published."""
        sessions = list(self._sessions.values())
        if self._is_blind or not sessions:
            self.dropped_count += 1
            return []
        if len(sessions) > 1:
            # Nobody can tell whose it is: all begin anew.
            self.dropped_count += 1
            actions = self._end(list(self._sessions))
            turn = self._turn
            return actions + (self._end_turn(turn) if turn is not None and not turn.is_over else [])
        (session,) = sessions
        if session.is_ending or len(session.pending) >= PENDING_COUNT_MAX:
            self.dropped_count += 1
            return []
        session.pending.append(request)
        turn = self._turn
        if turn is None:
            return self._begin(now_s)
        if turn.session == session.number:
            turn.progress_at_s = now_s
        return self._serve_next()

    def heard(self, topic: str, payload: bytes, now_s: float) -> list[Action]:
        """Note that an answer has passed the broker."""
        turn = self._turn
        if self._is_blind or turn is None or turn.is_over:
            return []
        for answer in turn.unheard:
            if (answer.topic, answer.payload) == (topic, payload):
                break
        else:
            return []
        turn.unheard.remove(answer)
        turn.progress_at_s = now_s
        if answer.is_provisioned:
            turn.farewell_at_s = now_s + FAREWELL_S
        return [HandOver(answer.certificate_id)] if answer.certificate_id else []

    def interrupted(self) -> list[Action]:
        """Note that from now on requests and events come in an order that is not the broker's, until `resumed`."""
        self._is_blind = True
        for session in self._sessions.values():
            session.pending.clear()
        turn = self._turn
        return self._end_turn(turn) if turn is not None and not turn.is_over else []

    def resumed(self) -> list[Action]:
        """Note that the order is the broker's again; who connected meanwhile has asked in vain and begins anew."""
        self._is_blind = False
        return self._end(list(self._sessions))

    def broker_started(self) -> list[Action]:
        """Note that the broker has started: no session from before is connected."""
        self._sessions.clear()
        turn = self._turn
        return self._end_turn(turn) if turn is not None and not turn.is_over else []

    # ---- what became of actions ----

    def gate_closed(self, now_s: float) -> list[Action]:
        """Note that the gate is closed: no claim connects any more, but for those that were connecting already."""
        assert self._gate == "CLOSING"
        self._gate = "CLOSED"
        turn = self._held()
        if turn.is_over:
            return self._clear_away(turn)
        turn.began_at_s = turn.progress_at_s = now_s
        others = [
            claim
            for claim, session in self._sessions.items()
            if claim != turn.claim and not session.is_ending
        ]
        return self._end(others) + self._serve_next()

    def gate_opened(self, now_s: float) -> list[Action]:
        """Note that the gate is open again; who has come through it meanwhile is next."""
        assert self._gate == "OPENING"
        self._gate = "OPEN"
        self._turn = None
        return [] if self._is_blind else self._begin(now_s)

    def answered(self, session: int, answer: ClaimAnswer | None, now_s: float) -> list[Action]:
        """Take the answer to a session's request; None: there is none to be given."""
        turn = self._turn
        asker = next((one for one in self._sessions.values() if one.number == session), None)
        if asker is not None:
            asker.is_served = False
        is_in_turn = turn is not None and not turn.is_over and turn.session == session
        if turn is None or asker is None or not is_in_turn or self._gate != "CLOSED" or answer is None:
            actions = self._burn([answer] if answer is not None else [])
        else:
            turn.progress_at_s = now_s
            turn.unheard.append(answer)
            actions = [Send(answer)]
        return actions + self._serve_next()

    def time_passed(self, now_s: float) -> list[Action]:
        """End the turn if its deadline has come."""
        turn = self._turn
        if turn is None or now_s < self.deadline_s:
            return []
        if not turn.has_asked:
            self._is_wary_until_s = now_s + WARY_S
        return self._end_turn(turn)

    # ---- steps ----

    def _begin(self, now_s: float) -> list[Action]:
        waiting = [session for session in self._sessions.values() if not session.is_ending]
        if not waiting or self._gate != "OPEN":
            return []
        # The newest: what is older has waited longer, and is nearer to giving up.
        session = max(waiting, key=lambda one: one.number)
        # Of two claims one must go before a request can be anybody's.
        is_wary = now_s < self._is_wary_until_s
        if is_wary and len(self._sessions) == 1 and not session.pending:
            return []
        self._turn = _Turn(session.claim, session.number, now_s, now_s)
        self._gate = "CLOSING"
        self.turn_count += 1
        return [CloseGate(session.claim)]

    def _serve_next(self) -> list[Action]:
        turn = self._turn
        if turn is None or turn.is_over or self._gate != "CLOSED":
            return []
        session = self._sessions.get(turn.claim)
        if session is None or session.is_served or session.is_ending or not session.pending:
            return []
        session.is_served = turn.has_asked = True
        return [Serve(session.number, session.claim, session.pending.popleft())]

    def _end(self, claims: Sequence[str]) -> list[Action]:
        for claim in claims:
            self._sessions[claim].is_ending = True
            self._sessions[claim].pending.clear()
        return [EndSessions(tuple(claims))] if claims else []

    def _end_turn(self, turn: _Turn) -> list[Action]:
        actions = self._burn_unheard(turn)
        turn.is_over = True
        return actions + (self._clear_away(turn) if self._gate == "CLOSED" else [])

    def _clear_away(self, turn: _Turn) -> list[Action]:
        """Open the gate; whatever the broker keeps of the session is removed first, so that nobody inherits it."""
        self._gate = "OPENING"
        if turn.claim in self._sessions:
            self._end([turn.claim])
        return [EndSessions((turn.claim,)), OpenGate()]

    def _burn_unheard(self, turn: _Turn) -> list[Action]:
        actions = self._burn(turn.unheard)
        turn.unheard.clear()
        return actions

    def _burn(self, answers: Sequence[ClaimAnswer] | deque[ClaimAnswer]) -> list[Action]:
        burnt: list[Action] = [Burn(answer.certificate_id) for answer in answers if answer.certificate_id]
        self.burnt_count += len(burnt)
        return burnt

    def _held(self) -> _Turn:
        assert self._turn is not None, "the gate is open without a turn, and only then"
        return self._turn
