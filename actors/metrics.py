"""What the gateway tells Prometheus: its own requests, and the state of the platform when it is asked.

Base units, `_total` for counters, and never a device's name as a label: labels are routes, roles, states and
the names of standing fleets. Who measures what is the caller's; nothing here reads a clock or asks anybody.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# A shadow request takes about 5 ms through a cluster; a reload of the broker, the slowest request, may take
# 10 s.
_DURATION_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Anything else that calls itself a method is counted as one, or a client could make labels without end.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# What happens at the broker's listeners for devices, as its log tells it.
_BROKER_COUNTERS: Final = {
    "connections": "TCP connections that came to a listener for devices",
    "clients_admitted": "Devices, applications and claims that were let in",
    "handshakes_failed": "Connections that ended before a client was let in: no good certificate, no TLS, no CONNECT",
    "protocol_errors": "Clients that were disconnected for what they sent",
    "sessions_taken_over": "Sessions ended by a newer connection of the same client id, or by the platform",
    "subscriptions_forbidden": "Subscriptions that reach topics of others: granted, and never delivered to",
    "sessions_ended": "Sessions that the platform ended because of too many subscriptions",
}


@dataclass(frozen=True)
class ProcessStatus:
    """One process of the platform: what it is for, what it holds and how it fares.

    `role` is one of few words (`gateway`, `bridge`, `shard_actor`, `broker`, `store`, ...), `state` is
    `ready` while it does its work, `reason` says why where it does not. `totals` are counts since the start
    of the process, by a name in lower case with underscores: `messages_received`; `levels` go up and down. `thing_name`
    is that of the twin that a `pinned_twin` is.
    """

    role: str
    pid: int
    shards: tuple[int, ...] = ()
    twin_count: int = 0
    queue_length: int = 0
    state: str = "ready"
    reason: str = ""
    totals: Mapping[str, int] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)
    thing_name: str = ""


class GatewayMetrics:
    """The counts of one gateway, for both of its listeners."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "twinfleet_http_requests",
            "HTTP requests answered",
            ("listener", "route", "method", "status"),
            registry=self._registry,
        )
        self._durations = Histogram(
            "twinfleet_http_request_duration_seconds",
            "Time from a request's head to the end of its answer",
            ("listener", "route", "method"),
            buckets=_DURATION_BUCKETS_S,
            registry=self._registry,
        )

        self._broker = {
            name: Counter(f"twinfleet_broker_{name}", text, registry=self._registry)
            for name, text in _BROKER_COUNTERS.items()
        }

        self._failed_handshakes = Counter(
            "twinfleet_https_handshakes_failed",
            "Connections to the HTTPS listener for devices that were refused in TLS",
            registry=self._registry,
        )

    def count_failed_handshake(self) -> None:
        """Count a client that TLS has refused."""
        self._failed_handshakes.inc()

    def count_at_broker(self, name: str) -> None:
        """Count one thing that happened at the broker, by one of the names above."""
        self._broker[name].inc()

    def count_request(
        self, listener: str, route: str, *, method: str, status: int, duration_s: float
    ) -> None:
        """Count one answered request; `route` is the template of its path, not the path."""
        method = method if method in _METHODS else "other"
        self._requests.labels(listener, route, method, str(status)).inc()
        self._durations.labels(listener, route, method).observe(duration_s)

    def exposition(
        self, processes: Iterable[ProcessStatus], *, thing_count: int, fleet_sizes: Mapping[str, int]
    ) -> bytes:
        """Return everything in Prometheus's text format; `fleet_sizes` are devices per standing fleet."""
        platform = CollectorRegistry()
        platform.register(_PlatformState(tuple(processes), thing_count, fleet_sizes))
        return self.own_exposition() + generate_latest(platform)

    def own_exposition(self) -> bytes:
        """Return only what the gateway has counted itself: for when the rest of the platform does not answer."""
        return generate_latest(self._registry)


class _PlatformState(Collector):
    def __init__(
        self, processes: tuple[ProcessStatus, ...], thing_count: int, fleet_sizes: Mapping[str, int]
    ) -> None:
        self._processes = processes
        self._thing_count = thing_count
        self._fleet_sizes = fleet_sizes

    def collect(self) -> Iterator[Metric]:
        """Give the state as metrics, processes of one role added up: a process id is no label that lasts."""
        things = GaugeMetricFamily("twinfleet_registered_things", "Things in the registry")
        things.add_metric((), self._thing_count)
        yield things
        sizes = GaugeMetricFamily("twinfleet_fleet_devices", "Devices of a standing fleet", labels=("fleet",))
        for name, count in sorted(self._fleet_sizes.items()):
            sizes.add_metric((name,), count)
        yield sizes
        states = Tally((process.role, process.state) for process in self._processes)
        processes = GaugeMetricFamily(
            "twinfleet_processes", "Processes by role and state", labels=("role", "state")
        )
        for labels, count in sorted(states.items()):
            processes.add_metric(labels, count)
        yield processes
        yield self._sum_by_role("twinfleet_shards", "Shards hosted", "shards")
        yield self._sum_by_role("twinfleet_twins", "Twins held", "twin_count")
        yield self._sum_by_role("twinfleet_queue_requests", "Requests that wait", "queue_length")
        yield from self._totals()
        yield from self._levels()

    def _sum_by_role(self, name: str, text: str, attribute: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=("role",))
        sums: Tally[str] = Tally()
        for process in self._processes:
            value = getattr(process, attribute)
            sums[process.role] += len(value) if isinstance(value, tuple) else value
        for role, total in sorted(sums.items()):
            family.add_metric((role,), total)
        return family

    def _totals(self) -> Iterator[Metric]:
        sums: Tally[tuple[str, str]] = Tally()
        for process in self._processes:
            for name, total in process.totals.items():
                sums[process.role, name] += total
        for (role, name), total in sorted(sums.items()):
            text = f"{name.replace('_', ' ').capitalize()} since the start of the {role}".replace("_", " ")
            yield CounterMetricFamily(f"twinfleet_{role}_{name}", text, value=total)

    def _levels(self) -> Iterator[Metric]:
        sums: Tally[tuple[str, str]] = Tally()
        for process in self._processes:
            for name, level in process.levels.items():
                sums[process.role, name] += level
        for (role, name), level in sorted(sums.items()):
            text = f"{name.replace('_', ' ').capitalize()} of the {role}".replace("_", " ")
            yield GaugeMetricFamily(f"twinfleet_{role}_{name}", text, value=level)
