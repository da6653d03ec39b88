"""Serves claims at the broker: hears what happens there, lets `turns` decide, and does what it says.

Owns the order of the doing: gate, sessions and answers one after the other, as they were decided; only finding an
answer, for which a hook may take seconds, goes on beside. Answers leave at QoS 0: what does not reach the device at
once reaches nobody, and the broker keeps no private key for whoever connects next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from actors.broker_log import (
    BrokerEvent,
    BrokerStarted,
    ClientConnected,
    ClientDisconnected,
    ProtocolViolated,
)
from actors.errors import BrokerError, WorldError
from actors.mqtt_events import EventConsumer, StreamInterrupted, StreamResumed
from actors.pki import CLAIM_PREFIX
from actors.provisioning.office import TOPIC_FILTERS, ProvisioningOffice
from actors.provisioning.turns import (
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
from actors.registry.registry import Registry
from twins.messages import Delivery, Publish

# A broker or a store that restarts is back within seconds.
_RETRY_S: Final = 0.5
# An answer that cannot leave at once is too late: the turn goes by what the broker says of its sessions.
_SEND_TIMEOUT_S: Final = 2.0
# Tokens live for an hour; a minute more or less does not matter.
_SWEEP_EVERY_S: Final = 60.0
_ANSWERS: Final = ("/accepted", "/rejected")
_LOG: Final = logging.getLogger(__name__)


class Gate(Protocol):
    """Who keeps claims out; see `access.BrokerAccess`."""

    async def close_gate(self, claim: str) -> None:
        """Return when no claim connects and only `claim` hears answers."""
        ...

    async def open_gate(self) -> None:
        """Return when claims connect again."""
        ...

    async def reload(self) -> None:
        """Return when the broker goes by what the registry says."""
        ...


class ProvisioningDesk(EventConsumer):
    """The one desk of a broker. `begin` comes before the events, `close` after them."""

    topic_filters = TOPIC_FILTERS

    def __init__(
        self,
        office: ProvisioningOffice,
        registry: Registry,
        *,
        gate: Gate,
        end_sessions: Callable[[Sequence[str]], Awaitable[None]],
        publish: Callable[[Sequence[Publish]], Awaitable[None]],
    ) -> None:
        """Prepare; `publish` returns when messages have left."""
        self.turns: Final = ProvisioningTurns()
        self._office = office
        self._registry = registry
        self._gate = gate
        self._end_sessions = end_sessions
        self._publish = publish
        self._actions: asyncio.Queue[Action] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[None]] = set()
        self._serving: set[asyncio.Future[ClaimAnswer]] = set()
        self._failure: BaseException | None = None

    async def begin(self) -> None:
        """Clear away what an earlier gateway has left, and be ready; WorldError if that cannot be done."""
        await self._office.burn_unsettled()
        claims = [one for one in await self._registry.certificates.of_kind("claim") if one.is_in_force]
        # Their requests may have been heard by nobody; they begin anew.
        await self._end_sessions(sorted({one.common_name for one in claims}))
        for work in (self._work(), self._sweep()):
            task = asyncio.ensure_future(work)
            self._tasks.add(task)
            task.add_done_callback(self._on_task_done)

    async def close(self) -> None:
        """Stop; the next start opens the gate and burns what was not handed over."""
        if self._timer is not None:
            self._timer.cancel()
        running: list[asyncio.Future[Any]] = [*self._tasks, *self._serving]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # ---- what happens ----

    async def on_broker_event(self, event: BrokerEvent) -> None:
        """Note who of the claims comes and goes."""
        if self._failure is not None:
            raise self._failure
        now_s = self._now_s()
        match event:
            case ClientConnected(client_id=claim, user=user) if claim.startswith(CLAIM_PREFIX):
                # Under another name that is `end_session`, which has taken the place of the session.
                is_claim = user == claim
                self._do(self.turns.connected(claim, now_s) if is_claim else self.turns.gone(claim, now_s))
            case ClientDisconnected(client_id=str(claim)) | ProtocolViolated(client_id=str(claim)) if (
                claim.startswith(CLAIM_PREFIX)
            ):
                self._do(self.turns.gone(claim, now_s))
            case BrokerStarted():
                self._do(self.turns.broker_started())
            case StreamInterrupted():
                self._do(self.turns.interrupted())
            case StreamResumed():
                self._do(self.turns.resumed())

    async def on_message(self, topic: str, payload: bytes) -> None:
        """Take a request, or the echo of an answer."""
        now_s = self._now_s()
        if topic.endswith(_ANSWERS):
            self._do(self.turns.heard(topic, payload, now_s))
        elif topic.startswith(("$aws/certificates/", "$aws/provisioning-templates/")):
            self._do(self.turns.requested(ClaimRequest(topic, payload), now_s))

    # ---- what is done ----

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self._actions.put_nowait(action)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.turns.deadline_s != float("inf"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self.turns.deadline_s, self._on_deadline)

    def _on_deadline(self) -> None:
        self._do(self.turns.time_passed(self._now_s()))

    async def _work(self) -> None:
        while True:
            match await self._actions.get():
                case CloseGate(claim=claim):
                    await _until_done(partial(self._gate.close_gate, claim), "closing the gate")
                    self._do(self.turns.gate_closed(self._now_s()))
                case OpenGate():
                    await _until_done(self._gate.open_gate, "opening the gate")
                    self._do(self.turns.gate_opened(self._now_s()))
                case EndSessions(claims=claims):
                    await _until_done(partial(self._end_sessions, claims), "ending sessions")
                case Serve() as action:
                    self._serve(action)
                case Send(answer=answer):
                    await self._send(answer)
                case HandOver(certificate_id=certificate_id):
                    await _until_done(partial(self._office.hand_over, certificate_id), "handing over")
                case Burn(certificate_id=certificate_id):
                    _LOG.warning("certificate %s may have reached somebody else; it is burnt", certificate_id)
                    await _until_done(partial(self._office.burn, certificate_id), "burning")

    def _serve(self, action: Serve) -> None:
        task = asyncio.ensure_future(self._office.answer(action.claim, action.request))
        self._serving.add(task)
        task.add_done_callback(partial(self._on_answer, action.session))

    def _on_answer(self, session: int, task: asyncio.Future[ClaimAnswer]) -> None:
        self._serving.discard(task)
        if task.cancelled():
            return
        if task.exception() is not None:
            # Our bug. The device is not answered and tries again; the others are served.
            _LOG.error("a claim's request fails", exc_info=task.exception())
        answer = None if task.exception() is not None else task.result()
        self._do(self.turns.answered(session, answer, self._now_s()))

    async def _send(self, answer: ClaimAnswer) -> None:
        message = Publish(answer.topic, answer.payload, Delivery(qos=0))
        try:
            await asyncio.wait_for(self._publish([message]), _SEND_TIMEOUT_S)
        except (BrokerError, TimeoutError) as error:
            # Its echo does not come, so the turn ends and what it carried is burnt.
            _LOG.warning("an answer to a claim was not sent: %r", error)

    async def _sweep(self) -> None:
        """Delete certificates that nobody came back for, until cancelled."""
        while True:
            try:
                if await self._office.forget_expired():
                    await self._gate.reload()
            except WorldError as error:
                _LOG.warning("expired certificates wait for their deletion: %s", error)
            await asyncio.sleep(_SWEEP_EVERY_S)

    def _on_task_done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("provisioning fails", exc_info=task.exception())
            self._failure = task.exception()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


async def _until_done(step: Callable[[], Awaitable[None]], what: str) -> None:
    while True:
        try:
            await step()
        except WorldError as error:
            if not (error.retryable or isinstance(error, BrokerError)):
                raise
            _LOG.warning("%s: %s; it is tried again", what, error)
        else:
            return
        await asyncio.sleep(_RETRY_S)
