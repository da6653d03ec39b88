"""The words of a scenario that say how simulated devices reach the platform: `path`, and `wire` with its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from scenarios.spec import Backoff, PathKind, WireSpec
from twins.errors import Path
from twins.forms import ByType, Duration, Key, Made, Notes, Number, Record, Words

NEEDS_CLOCK: Final = (
    "path: wire has real connections, which live in real time; give the scenario clock: {mode: realtime}, or "
    "{mode: accelerated, speed: N}"
)
# As many load processes as anybody has cores for; each takes some 80 MB.
_PROCESSES_MAX: Final = 256
# Beyond, a broker on the same machine is what is measured.
_CONNECT_RATE_MAX: Final = 100_000.0
# What the platform's broker takes (max_keepalive), and below a second there is nothing to tell.
_KEEP_ALIVE_MAX_S: Final = 1200
_DEFAULT: Final = WireSpec()

PATH_FORM: Final = Words(get_args(PathKind))


@dataclass(frozen=True)
class _Rate:
    """A rate a second, written like 500/s."""

    def read(self, value: Any, path: Path, notes: Notes) -> float:
        """Return the rate."""
        number = str(value).removesuffix("/s").replace("_", "")
        if number.replace(".", "", 1).isdigit() and 0 < float(number) <= _CONNECT_RATE_MAX:
            return float(number)
        notes.blame(path, f"must be connections a second, like 500/s, up to {_CONNECT_RATE_MAX:,.0f}/s")
        return 1.0

    def schema(self) -> dict[str, Any]:
        """Return the schema of the rate."""
        return {"type": "string", "pattern": r"^[0-9][0-9_]*(\.[0-9]+)?/s$"}


@dataclass(frozen=True)
class _KeepAlive(Duration):
    """Whole seconds that the broker takes."""

    def read(self, value: Any, path: Path, notes: Notes) -> float:
        """Return the seconds."""
        seconds = super().read(value, path, notes)
        if seconds > _KEEP_ALIVE_MAX_S:
            notes.blame(path, f"must be {_KEEP_ALIVE_MAX_S} s at most, which is what the broker takes")
        return seconds


def _wire(values: Mapping[str, Any]) -> WireSpec:
    reconnect = values["reconnect"] or {}
    return WireSpec(
        int(values["processes"]),
        values["connect_rate"],
        int(values["qos"]),
        int(values["keep_alive"]),
        reconnect.get("backoff", _DEFAULT.backoff),
        reconnect.get("first", _DEFAULT.retry_first_s),
        reconnect.get("max", _DEFAULT.retry_max_s),
    )


class _Reconnect(Record):
    """How a device tries again."""

    def read(self, value: Any, path: Path, notes: Notes) -> Any:
        """Return the values; the first wait is no longer than the last."""
        values = super().read(value, path, notes)
        if values["max"] < values["first"]:
            notes.blame(path, "max must not be shorter than first")
        return values


WIRE_FORM: Final = Record(
    {
        "processes": Key(
            Number(1, _PROCESSES_MAX, is_whole=True),
            "How many load processes; without it, as few as descriptors allow.",
            _DEFAULT.processes,
        ),
        "connect_rate": Key(
            ByType(
                "connections a second, like 500/s",
                text=_Rate(),
                number=Made(Number(0.1, _CONNECT_RATE_MAX), float),
                stand_in=1.0,
            ),
            "How many devices connect a second, at most.",
            _DEFAULT.connect_rate,
        ),
        "qos": Key(Number(0, 1, is_whole=True), "Quality of service of reports.", _DEFAULT.qos),
        "keep_alive": Key(
            _KeepAlive(is_whole=True, minimum_s=1), "The keep-alive of connections.", _DEFAULT.keep_alive_s
        ),
        "reconnect": Key(
            _Reconnect(
                {
                    "backoff": Key(Words(get_args(Backoff)), "Whether waits grow.", _DEFAULT.backoff),
                    "first": Key(Duration(minimum_s=0.05), "The first wait.", _DEFAULT.retry_first_s),
                    "max": Key(Duration(minimum_s=0.05), "The longest.", _DEFAULT.retry_max_s),
                }
            ),
            "How a device tries again that has lost its connection.",
            None,
        ),
    },
    _wire,
)
