"""A shard's jobs and commands as tests use them: orders of the platform, requests of a device, what each hears."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.asking import NOW_S
from twins.assignments import (
    AskCommands,
    AskJobs,
    Assignment,
    DefineJob,
    QueueJob,
    SendCommand,
    encode_assignment,
)
from twins.commands import CommandOrder
from twins.jobs import JobDefinition
from twins.messages import Batch, Operation, Outcome, Reply, Request
from twins.shard import Shard

DOCUMENT = b'{"operation":"reboot"}'


class Heard(NamedTuple):
    """A message to a device: what stands behind `jobs/` or `executions/` in its topic, and its body."""

    topic: str
    body: Any


def heard(outcome: Outcome) -> list[Heard]:
    """Return what a device hears of an outcome, in its order."""
    found = []
    for message in outcome.publishes:
        topic = message.topic.partition("/jobs/")[2] or message.topic.partition("/executions/")[2]
        found.append(Heard(topic, json.loads(message.payload)))
    return found


def assign(
    shard: Shard, order: Assignment, *, thing: str = "lamp", now_s: float = NOW_S
) -> tuple[Reply, list[Heard]]:
    """Return the answer to an order of the platform, and what the device hears of it."""
    request = Request(Operation.ASSIGN, thing, encode_assignment(order), is_direct=True)
    outcome = shard.apply(Batch("", 0, [request]), now_s)
    return outcome.replies[0], heard(outcome)


def queue_job(
    shard: Shard,
    job_id: str,
    *,
    thing: str = "lamp",
    now_s: float = NOW_S,
    minutes: int = 0,
    retries: dict[str, int] | None = None,
) -> list[Heard]:
    """Give a thing an execution of a job, and return what its device hears."""
    definition = JobDefinition(job_id, DOCUMENT, minutes, retries or {})
    assign(shard, DefineJob(definition), thing=thing, now_s=now_s)
    reply, told = assign(shard, QueueJob(job_id), thing=thing, now_s=now_s)
    assert reply.status == 200
    return told


def send_command(
    shard: Shard, execution_id: str, *, thing: str = "lamp", now_s: float = NOW_S, timeout_s: int = 10
) -> list[Heard]:
    """Send a command to a thing, and return what its device hears."""
    order = CommandOrder(execution_id, "blink", b'{"action":"blink"}', "application/json", timeout_s)
    reply, told = assign(shard, SendCommand(order), thing=thing, now_s=now_s)
    assert reply.status == 200
    return told


def of_device(
    shard: Shard, name: str, body: Any = b"", *, thing: str = "lamp", now_s: float = NOW_S
) -> list[Heard]:
    """Return what a device hears after a request on its jobs; `name` is what stands behind `jobs/`."""
    operation = Operation.JOB_READ if name.endswith("get") else Operation.JOB_CHANGE
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return heard(shard.apply(Batch("", 0, [Request(operation, thing, payload, name)]), now_s))


def answer_command(
    shard: Shard, execution_id: str, body: Any, *, thing: str = "lamp", now_s: float = NOW_S
) -> list[Heard]:
    """Return what a device hears after it has answered a command."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(Operation.COMMAND_ANSWER, thing, payload, execution_id)
    return heard(shard.apply(Batch("", 0, [request]), now_s))


def executions(
    shard: Shard, question: AskJobs | AskCommands, *, thing: str = "lamp", now_s: float = NOW_S
) -> list[dict[str, Any]]:
    """Return the executions of a thing, as the platform is told of them."""
    request = Request(Operation.ASSIGNED, thing, encode_assignment(question), is_direct=True)
    [reply] = shard.apply(Batch("", 0, [request]), now_s).replies
    assert reply.status == 200
    found: list[dict[str, Any]] = json.loads(reply.payload)["executions"]
    return found
