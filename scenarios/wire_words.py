"""The words of a scenario that say how simulated devices reach the platform: `path`, and `wire` with its bounds."""

from __future__ import annotations

from typing import Final

from scenarios.source import Item
from scenarios.spec import Backoff, PathKind, WireSpec

NEEDS_CLOCK: Final = (
    "path: wire has real connections, which live in real time; give the scenario clock: {mode: realtime}, or "
    "{mode: accelerated, speed: N}"
)
_PATHS: Final[dict[str, PathKind]] = {"engine": "engine", "wire": "wire"}
# As many load processes as anybody has cores for; each takes some 80 MB.
_PROCESSES_MAX: Final = 256
# Beyond, a broker on the same machine is what is measured.
_CONNECT_RATE_MAX: Final = 100_000.0
# What the platform's broker takes (max_keepalive), and below a second there is nothing to tell.
_KEEP_ALIVE_MAX_S: Final = 1200


def read_path(item: Item) -> PathKind:
    """Return how devices reach their twins."""
    return _PATHS.get(item.choice(list(_PATHS)), "engine")


def read_wire(item: Item) -> WireSpec:
    """Return how devices of groups with `path: wire` connect."""
    entries = item.entries()
    default = WireSpec()
    processes = entries.take(
        "processes",
        lambda value: int(value.number(minimum=1, maximum=_PROCESSES_MAX, is_whole=True)),
        default.processes,
    )
    connect_rate = entries.take("connect_rate", _rate, default.connect_rate)
    qos = entries.take(
        "qos", lambda value: int(value.number(minimum=0, maximum=1, is_whole=True)), default.qos
    )
    keep_alive_s = entries.take("keep_alive", _keep_alive, default.keep_alive_s)
    backoff, first_s, max_s = entries.take(
        "reconnect", _reconnect, (default.backoff, default.retry_first_s, default.retry_max_s)
    )
    entries.close()
    return WireSpec(processes, connect_rate, qos, keep_alive_s, backoff, first_s, max_s)


def _rate(item: Item) -> float:
    """Return a rate a second, written like 500 or 500/s."""
    text = str(item.plain())
    if text.endswith("/s"):
        try:
            number = float(text.removesuffix("/s").replace("_", ""))
        except ValueError:
            number = -1.0
        if 0 < number <= _CONNECT_RATE_MAX:
            return number
        item.blame(f"must be connections a second, like 500/s, up to {_CONNECT_RATE_MAX:,.0f}/s")
        return 1.0
    return float(item.number(minimum=0.1, maximum=_CONNECT_RATE_MAX))


def _keep_alive(item: Item) -> int:
    seconds = item.whole_seconds(minimum=1)
    if seconds > _KEEP_ALIVE_MAX_S:
        item.blame(f"must be {_KEEP_ALIVE_MAX_S} s at most, which is what the broker takes")
    return seconds


def _reconnect(item: Item) -> tuple[Backoff, float, float]:
    entries = item.entries()
    default = WireSpec()
    backoff = entries.take("backoff", _backoff, default.backoff)
    first_s = entries.take("first", lambda value: value.duration_s(minimum=0.05), default.retry_first_s)
    max_s = entries.take("max", lambda value: value.duration_s(minimum=0.05), default.retry_max_s)
    entries.close()
    if max_s < first_s:
        item.blame("max must not be shorter than first")
    return backoff, first_s, max_s


def _backoff(item: Item) -> Backoff:
    return "none" if item.choice(["exponential", "none"]) == "none" else "exponential"
