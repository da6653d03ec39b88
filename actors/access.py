"""Who is let in: access list and revocation list on disk say what the registry says, and the broker has read them.

The registry is the truth. A revocation list that is broken, missing, about to expire or behind the registry is made
again from there, before every reload and after one that found it broken: on a reload without a good list mosquitto
goes on and admits revoked certificates, and at a start without one it does not start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from actors.broker import AccessList, BrokerReload, end_sessions, write_acl
from actors.errors import BrokerError, WorldError
from actors.pki import CertificateAuthority
from actors.registry.registry import Registry
from twins.clock import Clock

# The list is renewed two weeks before it expires; what this is about is a reload that failed, which should not last.
_LOOK_EVERY_S: Final = 5.0
# At 2 ms, and 1 for the attempt, a second or more in all. With one client that comes and goes without a pause up to 77
# were needed, measured; a broker that has not been found at rest in 300 has so much to do that it never is.
_ATTEMPTS_MAX: Final = 400
_ATTEMPTS_AT_REST: Final = 300
_ATTEMPT_EVERY_S: Final = 0.002
_LOG: Final = logging.getLogger(__name__)


class BrokerAccess:
    """The lists of one broker; it may be reloaded from several tasks, one does it at a time."""

    def __init__(
        self,
        registry: Registry,
        authority: CertificateAuthority,
        *,
        data_dir: Path,
        clock: Clock,
        away: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Prepare; `clock` tells when a revocation list is due.

        `away` tells, as of the moment it is called, the client ids of MQTT 5 that are not connected and may have a
        session kept for them: a reload ends those.
        """
        # The common name of the one claim that hears the answers to claims, while no other connects.
        self._provisioning_claim: str | None = None
        # The broker may go by older lists, or without one, than the registry says.
        self._is_behind = False
        self._registry = registry
        self._authority = authority
        self._data_dir = data_dir
        self._clock = clock
        self._away = away
        self._turn = asyncio.Lock()

    async def write(self) -> None:
        """Write both lists as the registry has them now; a revocation list that is good stays as it is."""
        await self._write_list()
        access = await AccessList.of(self._registry, provisioning_claim=self._provisioning_claim)
        await asyncio.to_thread(write_acl, self._data_dir, access)

    async def close_gate(self, claim: str) -> None:
        """Return when no claim opens a new connection, and `claim` (a common name) alone hears the answers to claims.

        That is no revocation: an open session goes on, and the next start of the platform opens the gate.
        """
        self._provisioning_claim = claim
        await self.reload()

    async def open_gate(self) -> None:
        """Return when claims connect again, and none hears the answers to claims."""
        self._provisioning_claim = None
        await self.reload()

    async def reload(self) -> None:
        """Return when the broker goes by what the registry says: a revoked certificate opens no new connection.

        BrokerError if the broker cannot be made to.
        """
        async with self._turn:
            self._is_behind = True
            await self.write()
            try:
                await self._reload_broker()
            except BrokerError as error:
                if not await self._write_list():
                    raise
                _LOG.warning("the revocation list was broken, and is made again: %s", error)
                await self._reload_broker()
            self._is_behind = False

    async def _reload_broker(self) -> None:
        """Let the broker read its lists while it keeps no session that expires for a client that is away.

        At a reload mosquitto 2.0 puts such a session on its list of those that expire a second time, and dies when the
        session ends: its client comes back, say. What has no end of its own is on no list, which is so for all of MQTT
        3.1.1; with MQTT 5 it cannot be told, so the sessions of all clients that are away are ended here.
        """
        reload = await asyncio.to_thread(BrokerReload, self._data_dir)
        for attempt in range(_ATTEMPTS_MAX):
            names = self._away()
            if names:
                await asyncio.to_thread(end_sessions, self._data_dir, names)
                continue
            # Nobody must go away in between: asking and telling are one step, and the broker stands still meanwhile.
            if reload.signal_if(lambda: not self._away(), even_at_work=attempt >= _ATTEMPTS_AT_REST):
                await asyncio.to_thread(reload.wait)
                return
            await asyncio.sleep(_ATTEMPT_EVERY_S)
        raise BrokerError(
            "MQTT 5 clients come and go all the time, so mosquitto can't reload; try again", retryable=True
        )

    async def keep(self, *, every_s: float = _LOOK_EVERY_S) -> None:
        """Renew the revocation list when it is due, and repeat a reload that failed, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                if self._is_behind or await asyncio.to_thread(self._authority.is_list_due, clock=self._clock):
                    await self.reload()
            except WorldError as error:
                _LOG.warning("the broker's access is not up to date; it is tried again: %s", error)

    async def _write_list(self) -> bool:
        """Make the revocation list again if it must be, and return whether it had to be."""
        barred = await self._registry.certificates.revoked()
        claims = await self._registry.certificates.of_kind("claim")
        admitted = [int(one.serial) for one in claims if one.is_in_force]
        if self._provisioning_claim is not None:
            barred |= dict.fromkeys(admitted, self._clock.now_s())
            admitted = []

        def renew() -> bool:
            is_due = self._authority.is_list_due(clock=self._clock)
            if self._authority.is_list_whole(barred, without=admitted) and not is_due:
                return False
            self._authority.renew_list(barred, admitted=admitted, clock=self._clock)
            return True

        # With many entries it takes a while to read and to sign.
        return await asyncio.to_thread(renew)
