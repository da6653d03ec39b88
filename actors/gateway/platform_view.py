"""What the gateway needs to know and to ask of the platform around it; `cluster` and its actors give it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.gateway.messaging import Messaging
from actors.metrics import ProcessStatus
from actors.registry.job_orders import JobOrder
from actors.registry.jobs import Jobs
from actors.settings import MqttsEndpoint, UrlEndpoint
from actors.supervisor import PINNED_ROLE
from twins.messages import Publish


@dataclass(frozen=True)
class Readiness:
    """Whether the platform serves devices and operators; `reasons` say what is missing, and are empty if it does."""

    reasons: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Tell whether nothing is missing."""
        return not self.reasons

    @classmethod
    def of(cls, processes: Iterable[ProcessStatus]) -> Readiness:
        """Return whether every one of the platform's processes does its work; what operators have pinned is not its."""
        return cls(
            tuple(
                f"{process.role} {process.pid or ''}".rstrip() + f": {process.reason}"
                for process in processes
                if process.state != "ready" and process.role != PINNED_ROLE
            )
        )


@dataclass(frozen=True)
class DeviceEndpoints:
    """Where devices connect."""

    mqtts: MqttsEndpoint
    https: UrlEndpoint | None = None


class PlatformView(Protocol):
    """The platform as its gateway sees it. Methods raise WorldError when the part that they need does not answer."""

    @property
    def endpoints(self) -> DeviceEndpoints:
        """Return where devices connect."""
        ...

    @property
    def messaging(self) -> Messaging:
        """Return the broker as HTTP shows it."""
        ...

    @property
    def jobs(self) -> Jobs:
        """Return the jobs, for reading."""
        ...

    async def order_job(self, order: JobOrder) -> None:
        """Return when the job coordinator has noted an order; the same may be given again.

        RecordExists, RecordNotFound or DescriptionError if it can't be carried out.
        """
        ...

    async def processes(self) -> list[ProcessStatus]:
        """Return each process of the platform; one that does not answer is listed with its state and the reason."""
        ...

    async def reload_access(self) -> None:
        """Write the broker's access list and return when it and the revocation list are in force.

        From then on a new connection with a revoked certificate is refused.
        """
        ...

    def announce(self, messages: Sequence[Publish]) -> None:
        """Hand messages to the broker's bridge without waiting for it: at most once, they may be lost with a part."""
        ...

    async def end_sessions(self, client_ids: Sequence[str]) -> None:
        """Return when no MQTT session of these client ids is open or kept; for after `reload_access`."""
        ...
