"""Snapshots that earlier formats have left, `format-N.snapshot.gz`, and the shard that each of them is of.

They were written by the code of their time from `written_shard(N)`, which must therefore stay as it is.
"""

from __future__ import annotations

from twins.messages import Batch, Connectivity, Operation, Request, TickOrder
from twins.model import Attribute, Group
from twins.shadow import encode_json
from twins.shard import Shard
from twins.shipped import model_named

NOW_S = 1_700_000_000
SITES = Attribute("site", ("berlin", "paris"), (0.75, 0.25))
_REPORTED = (
    b'{"state":{"reported":{"temperature":20.5,"timestamp":{"timestamp":1},"big":%b},"desired":{"x":[{}]}}}'
)


def written_shard(version: int) -> Shard:
    """Return the shard that was written in a format, as today's code makes it."""
    shard = Shard(1, 2)
    shard.create_group(
        Group("homes", model_named("thermostat"), "home-{i}", 20, 1, NOW_S, attributes=(SITES,))
    )
    requests = [
        Request(Operation.REGISTER, "heater", b'{"model":"thermostat","attributes":{"site":"rom"}}'),
        *(
            Request(Operation.SHADOW_UPDATE, thing, _REPORTED % (b"9" * 40), name)
            for thing in ("lamp", "heater", "home-7")
            for name in ("", "config")
        ),
        Request(Operation.SHADOW_UPDATE, "lamp", b'{"state":{"reported":{"on":true}}}', "state"),
        Request(Operation.SHADOW_DELETE, "lamp", b"", "state"),
        Request(Operation.TELEMETRY, "lamp", b'{"a":1e300,"b":%b,"c":null}' % (b"9" * 400), "s"),
        Request(Operation.TELEMETRY, "door", b'{"open":false,"seen":["a",1.0,1]}', "log"),
        Request(Operation.TELEMETRY, "door", b"nothing", "log"),
    ]
    shard.apply(Batch("bridge", 1, requests), NOW_S)
    shard.tick(TickOrder("homes", 0, 200, {"set_point": 23.0}))
    if version >= 2:
        shard.apply(Batch("bridge", 2, _since_2()), NOW_S + 1)
    return shard


def _since_2() -> list[Request]:
    link = encode_json(Connectivity(False, NOW_S * 1000, "CONNECTION_LOST", "a-session", 3))
    report = b'{"header":{"report_id":7,"version":"1.0"},"metrics":{"network_stats":{"bytes_in":1}}}'
    return [
        Request(Operation.CONNECTIVITY, "heater", link),
        Request(Operation.DEFENDER, "heater", report, "json"),
        Request(Operation.REGISTER, "fan", b'{"model":"untyped"}'),
        Request(Operation.UNREGISTER, "fan"),
    ]
