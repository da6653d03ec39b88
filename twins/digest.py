"""The digest of a fleet: a fingerprint of its simulated twins, for comparing two runs.

It covers every simulated twin with its device, but for those that a real device has taken over or that had a behaviour
of their own, be it only for a while: what these are depends on when somebody else spoke. Of them it says only that they
stand outside. Named shadows and telemetry that was sent as such stand outside as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np

from twins.link_program import NEWEST
from twins.shadow import encode_json
from twins.sharding import BLOCK_SIZE
from twins.simulated import HELD, SimulatedFleet

# Whose rows others hold, and a note that is only kept up while reports are under way in the same shard.
_APART: Final = (HELD, NEWEST)
_SORTED_JSON: Final = msgspec.json.Encoder(order="deterministic")


def digest_fleet(fleet: SimulatedFleet) -> Iterator[tuple[str, int, bytes]]:
    """Yield (name pattern, block, SHA-256) for each block of the twins of a fleet in one shard."""
    table = fleet.table
    named = {name: column for name, column in fleet.arena.columns.items() if name not in _APART}
    layout = np.dtype([(name, named[name].dtype.newbyteorder("<")) for name in sorted(named)])
    overflow: dict[int, list[Any]] = {}
    for row in sorted(table.overflow.keys() - fleet.held.keys()):
        kept = table.overflow[row]
        trees = [kept.desired, kept.desired_metadata, kept.reported, kept.reported_metadata]
        overflow.setdefault(row // BLOCK_SIZE, []).append([table.name(row), trees])
    under_way = () if fleet.post is None else fleet.post.dump()
    head = encode_json(
        [str(table.pattern), fleet.next_tick, [[n, named[n].dtype.str] for n in sorted(named)]]
    )
    for position, block in enumerate(table.blocks.tolist()):
        rows = slice(position * BLOCK_SIZE, min((position + 1) * BLOCK_SIZE, table.count))
        packed = np.empty(rows.stop - rows.start, layout)
        for name, column in named.items():
            packed[name] = column[rows]
        outside = [row - rows.start for row in sorted(fleet.held) if rows.start <= row < rows.stop]
        packed[outside] = np.zeros(1, layout)
        digest = hashlib.sha256(head)
        digest.update(packed.tobytes())
        digest.update(_SORTED_JSON.encode(overflow.get(position, [])))
        for records in under_way:
            bounds = np.searchsorted(records["row"], [rows.start, rows.stop])
            part = records[slice(*bounds)].copy()
            part["row"] -= np.uint32(rows.start)
            digest.update(part[~np.isin(part["row"], outside)].tobytes())
        if outside:
            digest.update(_SORTED_JSON.encode(["outside", outside]))
        yield str(table.pattern), block, digest.digest()


def combine_digest(leaves: list[tuple[str, int, bytes]]) -> str:
    """Return the digest of a fleet, 64 hexadecimal digits, from the leaves of all its shards in any order."""
    whole = hashlib.sha256()
    for pattern, block, leaf in sorted(leaves):
        whole.update(f"{pattern}\0{block}\0".encode())
        whole.update(leaf)
    return whole.hexdigest()
