"""What lies between a device and its twin: delay, loss, duplicates, damage, bandwidth, and what a device keeps.

Data only: `link_program` decides the fate of reports in a fleet's turn, `post` carries those that take longer.
"""

from __future__ import annotations

from typing import Final

import msgspec

from twins.errors import ModelError

# What stands in a report beside its values: topic, packet head, braces. Measured on the thermostat's JSON report.
REPORT_HEAD_BYTES: Final = 60
# A field's name with quotes, its value and a comma, as JSON has them; on average.
FIELD_BYTES: Final = 22
# A device that keeps more reports than this keeps a log, not a buffer; the count of a device fits 16 bits.
BUFFER_COUNT_MAX: Final = 10_000
_RATIOS: Final = ("loss", "corrupt", "reorder", "duplicate")


class Link(msgspec.Struct, frozen=True):
    """How reports travel, at the moment: all ratios from 0 to 1, at most 1 together, of which each report has one fate.

    A report takes `latency_ms` and a triangularly distributed part of up to `jitter_ms` more or less, and the time that
    it takes at `bandwidth_bytes_s` (0: none). Of all reports `loss` never arrive, `corrupt` arrive damaged and are
    refused, `reorder` are held back until after the device's next one, and `duplicate` arrive twice.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    bandwidth_bytes_s: float = 0.0

    def check(self, place: str) -> None:
        """Raise ModelError if any number is out of its bounds; `place` says whose link it is."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            upper = 1.0 if name in _RATIOS else 1e9
            if not 0 <= value <= upper:
                raise ModelError(f"{place}: {name} must be from 0 to {upper:g}, not {value:g}")
        if sum(getattr(self, name) for name in _RATIOS) > 1:
            raise ModelError(f"{place}: {', '.join(_RATIOS)} are more than 1 together")


class Network(msgspec.Struct, frozen=True):
    """The links of a simulated group, and what its devices do about them.

    Devices whose `attribute` has a value named in `by_value` have the link given there, all others `link`. With `qos` 1
    a lost report is sent again after `resend_after_s`, as long as it takes, and arrives twice if only its
    acknowledgement was lost. A device that is offline keeps its last `buffer_count` reports and sends
    them, the oldest first, when it is back: `flush_per_s` a second (0: as fast as its bandwidth allows). Each device's
    clock is wrong for good by up to `clock_skew_s` (triangularly distributed), of which its reports' stamps tell.
    """

    link: Link = Link()
    attribute: str = ""
    by_value: tuple[tuple[str, Link], ...] = ()
    qos: int = 0
    resend_after_s: float = 10.0
    buffer_count: int = 0
    flush_per_s: float = 0.0
    clock_skew_s: float = 0.0

    def check(self, place: str) -> None:
        """Raise ModelError if anything is out of its bounds."""
        self.link.check(f"{place}: network")
        for value, link in self.by_value:
            link.check(f"{place}: network of {self.attribute} {value!r}")
        if bool(self.by_value) != bool(self.attribute):
            raise ModelError(f"{place}: a network by attribute needs the attribute and a link for its values")
        if self.qos not in (0, 1):
            raise ModelError(f"{place}: qos must be 0 or 1, not {self.qos}")
        if not 0 <= self.buffer_count <= BUFFER_COUNT_MAX:
            raise ModelError(
                f"{place}: buffer_count must be from 0 to {BUFFER_COUNT_MAX}, not {self.buffer_count}"
            )
        if self.resend_after_s <= 0 or self.flush_per_s < 0 or self.clock_skew_s < 0:
            raise ModelError(
                f"{place}: resend_after_s must be above 0, flush_per_s and clock_skew_s not below"
            )


def report_bytes(field_count: int) -> int:
    """Return about how long a report of so many fields is on the wire."""
    return REPORT_HEAD_BYTES + FIELD_BYTES * field_count
