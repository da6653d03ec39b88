"""What operators want of jobs, on its way from the gateway to the job coordinator."""

from __future__ import annotations

from typing import Final

import msgspec

from actors.registry.jobs import JobRecord


class CreateOrder(msgspec.Struct, frozen=True, tag="create"):
    """Begin a job."""

    record: JobRecord
    by: str


class CancelOrder(msgspec.Struct, frozen=True, tag="cancel"):
    """Cancel a job: what is queued, with `force` also what is in progress."""

    job_id: str
    by: str
    force: bool = False
    reason_code: str = ""
    comment: str = ""


class DeleteOrder(msgspec.Struct, frozen=True, tag="delete"):
    """Delete a job with its executions; one that is not over only with `force`."""

    job_id: str
    by: str
    force: bool = False


JobOrder = CreateOrder | CancelOrder | DeleteOrder
encode_order: Final = msgspec.msgpack.Encoder().encode
decode_order: Final = msgspec.msgpack.Decoder(JobOrder).decode
