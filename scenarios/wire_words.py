"""The words of a scenario that say how simulated devices reach the platform: `path`, and `wire` with its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from scenarios.spec import WireSpec
from twins.errors import Path
from twins.forms import Duration, Key, Notes, Number, Record, Words

NEEDS_CLOCK: Final = (
    "path: wire has real connections, which live in real time; give the scenario clock: {mode: realtime}, or "
    "{mode: accelerated, speed: N}"
)
PATH_FORM: Final = Words(("engine", "wire"))
# As many load processes as anybody has cores for; each takes some 80 MB.
_PROCESSES_MAX: Final = 256
# Beyond, a broker on the same machine is what is measured.
_CONNECT_RATE_MAX: Final = 100_000.0
# What the platform's broker takes (max_keepalive), and below a second there is nothing to tell.
_KEEP_ALIVE_MAX_S: Final = 1200
_DEFAULT: Final = WireSpec()


class _Rate(Number):
    """A rate a second, written like 500 or 500/s."""

    def read(self, value: Any, path: Path, notes: Notes) -> float:
        """Return the number."""
        text = str(value)
        if not text.endswith("/s"):
            return float(super().read(value, path, notes))
        try:
            number = float(text.removesuffix("/s").replace("_", ""))
        except ValueError:
            number = -1.0
        if 0 < number <= _CONNECT_RATE_MAX:
            return number
        notes.blame(path, f"must be connections a second, like 500/s, up to {_CONNECT_RATE_MAX:,.0f}/s")
        return 1.0

    def schema(self) -> dict[str, Any]:
        """Return the schema of either way to write it."""
        return {"anyOf": [super().schema(), {"type": "string", "pattern": r"^[0-9_.]+/s$"}]}


class _KeepAlive(Duration):
    """A duration that the broker takes."""

    def read(self, value: Any, path: Path, notes: Notes) -> float:
        """Return the seconds."""
        seconds = super().read(value, path, notes)
        if seconds > _KEEP_ALIVE_MAX_S:
            notes.blame(path, f"must be {_KEEP_ALIVE_MAX_S} s at most, which is what the broker takes")
        return seconds


class _Reconnect(Record):
    """How devices come back."""

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return the values."""
        values = super().read(value, path, notes)
        if values["max"] < values["first"]:
            notes.blame(path, "max must not be shorter than first")
        return values


_RECONNECT: Final = _Reconnect(
    {
        "backoff": Key(
            Words(("exponential", "none")), "Whether each attempt waits longer.", _DEFAULT.backoff
        ),
        "first": Key(Duration(minimum_s=0.05), "How long the first attempt waits.", _DEFAULT.retry_first_s),
        "max": Key(Duration(minimum_s=0.05), "How long one waits at most.", _DEFAULT.retry_max_s),
    }
)


def _wire(values: Mapping[str, Any]) -> WireSpec:
    again = values["reconnect"] or {
        "backoff": _DEFAULT.backoff,
        "first": _DEFAULT.retry_first_s,
        "max": _DEFAULT.retry_max_s,
    }
    return WireSpec(
        int(values["processes"]),
        float(values["connect_rate"]),
        int(values["qos"]),
        int(values["keep_alive"]),
        again["backoff"],
        again["first"],
        again["max"],
    )


WIRE_FORM: Final = Record(
    {
        "processes": Key(
            Number(1, _PROCESSES_MAX, is_whole=True),
            "How many load processes; as few as descriptors allow, where nothing is said.",
            _DEFAULT.processes,
        ),
        "connect_rate": Key(
            _Rate(0.1, _CONNECT_RATE_MAX), "Connections a second, of all together.", _DEFAULT.connect_rate
        ),
        "qos": Key(Number(0, 1, is_whole=True), "The quality of service of what they send.", _DEFAULT.qos),
        "keep_alive": Key(_KeepAlive(is_whole=True, minimum_s=1), "Their keep-alive.", _DEFAULT.keep_alive_s),
        "reconnect": Key(_RECONNECT, "How they come back after a lost connection.", None),
    },
    _wire,
)
