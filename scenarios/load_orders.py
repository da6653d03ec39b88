"""What a run and its load processes say to each other: one line of JSON each way for every order.

An order is answered before the next one is given. Moments are of the machine's monotonic clock, which all of its
processes share.
"""

from __future__ import annotations

from typing import Final

import msgspec

from scenarios.spec import Backoff
from twins.messages import GroupOrder, TickOrder, TickSummary


class LoadSettings(msgspec.Struct, frozen=True):
    """How the devices of one load process connect.

    It is process `number` of `process_count`, and has that share of each group's devices. `ca` is the file of the
    broker's authority, empty for plain TCP. `directory` holds NAME.pem, certificate and key, for each device.
    `connect_rate` bounds new connections (a second, of this process) while a fleet connects at first; when it comes
    back, only its devices' `backoff` does: with "none" they try again at once.
    """

    host: str
    port: int
    directory: str
    ca: str = ""
    number: int = 0
    process_count: int = 1
    qos: int = 1
    keep_alive_s: int = 60
    connect_rate: float = 250.0
    backoff: Backoff = "exponential"
    retry_first_s: float = 1.0
    retry_max_s: float = 60.0


class Registrar(msgspec.Struct, frozen=True):
    """Where devices are registered: a platform's API and the file of its operator's token."""

    url: str
    token_file: str


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first order: who this process is; the answer says that it is there."""

    settings: LoadSettings


class CreateGroup(msgspec.Struct, frozen=True, tag=True):
    """Make the devices of a group; with a registrar also keys, things and certificates, else those are there."""

    group: GroupOrder
    registrar: Registrar | None = None


class ConnectAll(msgspec.Struct, frozen=True, tag=True):
    """Connect every device that its model has online; answered when each has or can not, or `timeout_s` later."""

    timeout_s: float


class Tick(msgspec.Struct, frozen=True, tag=True):
    """Live through some ticks: the first begins at `begins_s`, each lasts `tick_s` of the wall clock."""

    orders: list[TickOrder]
    begins_s: float
    tick_s: float


class Settle(msgspec.Struct, frozen=True, tag=True):
    """Answered when nothing is unanswered any more, or `timeout_s` later: then what is left is lost."""

    timeout_s: float


class DeleteGroup(msgspec.Struct, frozen=True, tag=True):
    """Disconnect the devices of a group and forget them; with a registrar also the things that were made for them."""

    name: str
    registrar: Registrar | None = None


Order = Begin | CreateGroup | ConnectAll | Tick | Settle | DeleteGroup


class LoadNews(msgspec.Struct):
    """What has happened on the wire since the last answer; of several processes it adds up.

    `attempts` to connect, of which `connected` succeeded and `connect_errors` did not; `lost_connections` had been
    open. `sent` messages (first time), `resent` ones, `acknowledged` ones (PUBACK). `accepted` reports, `rejected`
    ones, `lost` ones: never answered. `deltas` that devices received. `online` is the number of connections at the end.
    `ingest` (from the moment a report was due to its `accepted`), `connecting` (from the attempt to SUBACK) and `late`
    (how late messages left this process) are histograms by bucket. `errors` counts reasons by their words.
    """

    attempts: int = 0
    connected: int = 0
    connect_errors: int = 0
    lost_connections: int = 0
    sent: int = 0
    resent: int = 0
    acknowledged: int = 0
    accepted: int = 0
    rejected: int = 0
    lost: int = 0
    deltas: int = 0
    online: int = 0
    ingest: dict[int, int] = {}
    connecting: dict[int, int] = {}
    late: dict[int, int] = {}
    errors: dict[str, int] = {}

    def add(self, other: LoadNews) -> None:
        """Add the news of another process, in place."""
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                for key, count in theirs.items():
                    mine[key] = mine.get(key, 0) + count
            else:
                setattr(self, name, mine + theirs)


class Answer(msgspec.Struct):
    """What came of an order: summaries by group and news, or an `error`; `taken` names a thing that was there before.

    `processor_s` and `memory_bytes` are what the process has used so far.
    """

    summaries: dict[str, TickSummary] = {}
    news: LoadNews = msgspec.field(default_factory=LoadNews)
    error: str = ""
    taken: str = ""
    processor_s: float = 0.0
    memory_bytes: int = 0


encode_line: Final = msgspec.json.Encoder().encode
decode_order: Final = msgspec.json.Decoder(Order).decode
decode_answer: Final = msgspec.json.Decoder(Answer).decode
