"""What the things of one shard are to do: executions of jobs and of commands, with all that is asked and told of them.

`Assignments` is the one thing that a shard knows of it. It is fed like the shard, by journalled requests, and timers
end only by such a request too (`Expire`, or another change of the same thing): so it is the same after a replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from twins import commands, jobs
from twins.commands import CommandOrder, CommandQueue
from twins.errors import ExecutionError
from twins.jobs import NEVER_S, Describe, Execution, JobDefinition, StartNext, Update, Watch
from twins.messages import Operation, Outcome, Publish, Request
from twins.packed import PackedMapping
from twins.payloads import decoded
from twins.shadow import check_simple_request, encode_json
from twins.topics import command_topic, hears_commands, jobs_prefix


class ThingAssignments(msgspec.Struct):
    """What one thing is to do, and what has become of it; job executions by job id."""

    jobs: dict[str, Execution] = {}
    commands: CommandQueue = msgspec.field(default_factory=CommandQueue)


# What the platform orders of one thing: payloads of `Operation.ASSIGN`.


class DefineJob(msgspec.Struct, frozen=True, tag="define"):
    """Make a job known to the shard; comes before the first execution of it there."""

    definition: JobDefinition


class QueueJob(msgspec.Struct, frozen=True, tag="queue"):
    """Give the thing an execution of a job; it has one at most."""

    job_id: str


class CancelJob(msgspec.Struct, frozen=True, tag="cancel"):
    """Cancel an execution: a queued one, or with `force` also one in progress.

    One that may not be cancelled so is refused; with `is_all` it is left alone.
    """

    job_id: str
    force: bool = False
    is_all: bool = False
    expected_version: int | None = None
    details: dict[str, str] | None = None


class RemoveJob(msgspec.Struct, frozen=True, tag="remove"):
    """Take a pending execution from a thing that is no target any more."""

    job_id: str


class DeleteJob(msgspec.Struct, frozen=True, tag="delete"):
    """Forget an execution; a pending one only with `force`."""

    job_id: str
    number: int | None = None
    force: bool = False


class SendCommand(msgspec.Struct, frozen=True, tag="send"):
    """Send a command to the thing, now or when it listens."""

    order: CommandOrder


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """The thing's device listens to these filters from now on."""

    topic_filters: list[str]


class Expire(msgspec.Struct, frozen=True, tag="expire"):
    """Time out what is overdue."""


Assignment = DefineJob | QueueJob | CancelJob | RemoveJob | DeleteJob | SendCommand | Listen | Expire

# What the platform asks about one thing: payloads of `Operation.ASSIGNED`.


class AskJobs(msgspec.Struct, frozen=True, tag="jobs"):
    """Ask for all job executions of the thing; those of one job if it is named."""

    job_id: str = ""


class AskCommands(msgspec.Struct, frozen=True, tag="commands"):
    """Ask for all command executions of the thing, the latest first; one of them if it is named."""

    execution_id: str = ""


class AssignmentsPart(msgspec.Struct, frozen=True):
    """All of it as it stands in a snapshot; `things` are packed."""

    things: dict[str, bytes] = {}
    definitions: dict[str, JobDefinition] = {}
    counts: dict[str, dict[str, int]] = {}
    timers: dict[str, float] = {}
    place: int = 0


_encode: Final = msgspec.msgpack.Encoder().encode
encode_assignment: Final = _encode
_decode_assignment: Final = msgspec.msgpack.Decoder(Assignment).decode
_decode_question: Final = msgspec.msgpack.Decoder(AskJobs | AskCommands).decode
_unpack: Final = msgspec.msgpack.Decoder(ThingAssignments).decode
JOB_OPERATIONS: Final = frozenset({Operation.JOB_READ, Operation.JOB_CHANGE})


class Assignments:
    """The assignments of one shard; all methods work in place."""

    def __init__(self) -> None:
        self._things: PackedMapping[str, ThingAssignments] = PackedMapping(_encode, _unpack)
        self._definitions: dict[str, JobDefinition] = {}
        # By job and status, how many things have such an execution.
        self._counts: dict[str, dict[str, int]] = {}
        # When the next timer of a thing ends, for things with one.
        self._timers: dict[str, float] = {}
        self._place = 0

    def dump(self) -> AssignmentsPart:
        """Return all of it as it goes into a snapshot."""
        things = self._things.packed()
        return AssignmentsPart(things, self._definitions, self._counts, self._timers, self._place)

    def load(self, part: AssignmentsPart) -> None:
        """Hold what a snapshot says instead of anything else."""
        self._things.take(part.things)
        self._definitions, self._counts, self._timers = part.definitions, part.counts, part.timers
        self._place = part.place

    # What the rest of the platform asks

    def overdue(self, now_s: float) -> list[str]:
        """Return the things that have a timer which has ended."""
        return [thing_name for thing_name, end_s in self._timers.items() if end_s <= now_s]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return, by job and status, how many things of this shard have such an execution."""
        return {job_id: dict(of_job) for job_id, of_job in self._counts.items()}

    def executions(self) -> Iterator[tuple[str, Execution]]:
        """Yield each job execution with its thing's name; they are not to be changed."""
        for thing_name, thing in self._things.read():
            for execution in thing.jobs.values():
                yield thing_name, execution

    # What happens to things

    def came_or_went(self, thing_name: str) -> None:
        """Note that the device of a thing has connected or disconnected."""
        if thing_name in self._things:
            self._things[thing_name].commands.stop_listening()

    def unregister(self, thing_name: str, now_s: float) -> None:
        """Take from a thing what it has still to do: it is gone. Its job executions are remembered."""
        if thing_name in self._things:
            with self._changing(thing_name, now_s, Outcome([], [])) as thing:
                thing.commands = CommandQueue()
                for execution in jobs.pending(thing.jobs):
                    execution.move(jobs.REMOVED, by="remove", now_s=int(now_s))

    # Requests

    def serve(self, request: Request, now_s: float, outcome: Outcome) -> bytes:
        """Serve one request of the operations that concern assignments; RequestError if it is refused."""
        if request.operation is Operation.ASSIGN:
            order = decoded(_decode_assignment, request.payload)
            return self._assign(request.thing_name, order, now_s, outcome)
        if request.operation is Operation.ASSIGNED:
            question = decoded(_decode_question, request.payload)
            return encode_json(self._answer(request.thing_name, question, now_s))
        if request.operation is Operation.COMMAND_ANSWER:
            return self._take_answer(request, now_s, outcome)
        first = len(outcome.publishes)
        body, token = self._serve_job(request, now_s, outcome)
        if token is not None:
            body["clientToken"] = token
        encoded = encode_json(body)
        if not request.is_direct:
            topic = f"{jobs_prefix(request.thing_name)}/{request.name}/accepted"
            # The answer first, then what is told of the change.
            outcome.publishes.insert(first, Publish(topic, encoded))
        return encoded

    @contextmanager
    def _changing(self, thing_name: str, now_s: float, outcome: Outcome) -> Iterator[ThingAssignments]:
        """Give a thing's assignments to be changed; afterwards, also of a refusal, all that follows from it is done."""
        thing = self._things.get(thing_name) or ThingAssignments()
        watch = Watch(thing.jobs)
        before = {job_id: each.status for job_id, each in thing.jobs.items()}
        try:
            self._expire(thing, now_s)
            yield thing
        finally:
            self._count(before, thing)
            self._keep(thing_name, thing)
            whole_s, prefix = int(now_s), jobs_prefix(thing_name)
            for topic, body in (
                ("notify", watch.notify(whole_s)),
                ("notify-next", watch.notify_next(self._definitions, whole_s)),
            ):
                if body is not None:
                    outcome.publishes.append(Publish(f"{prefix}/{topic}", body))

    def _expire(self, thing: ThingAssignments, now_s: float) -> None:
        thing.commands.expire(now_s)
        for execution in thing.jobs.values():
            if execution.expire(int(now_s)):
                self._retry(execution, now_s)

    def _retry(self, execution: Execution, now_s: float) -> None:
        if jobs.retries_left(execution, self._definitions[execution.job_id]):
            execution.try_again(int(now_s))

    def _count(self, before: dict[str, str], thing: ThingAssignments) -> None:
        after = {job_id: each.status for job_id, each in thing.jobs.items()}
        if before == after:
            return
        for statuses, change in ((before, -1), (after, 1)):
            for job_id, status in statuses.items():
                of_job = self._counts.setdefault(job_id, {})
                of_job[status] = of_job.get(status, 0) + change
        for job_id in before.keys() | after.keys():
            self._counts[job_id] = {status: count for status, count in self._counts[job_id].items() if count}
            if not self._counts[job_id]:
                del self._counts[job_id]
                self._definitions.pop(job_id, None)

    def _keep(self, thing_name: str, thing: ThingAssignments) -> None:
        if thing.jobs or thing.commands.executions or thing.commands.is_listening:
            self._things[thing_name] = thing
        else:
            self._things.pop(thing_name, None)
        timer_s = min([thing.commands.timer_s(), *(each.timer_s() for each in thing.jobs.values())])
        if timer_s == NEVER_S:
            self._timers.pop(thing_name, None)
        else:
            self._timers[thing_name] = timer_s

    # Of devices

    def _serve_job(
        self, request: Request, now_s: float, outcome: Outcome
    ) -> tuple[dict[str, Any], str | None]:
        """Return the body of a job request's answer, and the client token that it is to carry."""
        whole_s, thing_name = int(now_s), request.thing_name
        job_id, _, verb = request.name.rpartition("/")
        if request.operation is Operation.JOB_READ:
            executions = (self._things.get(thing_name) or ThingAssignments()).jobs
            if not job_id:
                token = check_simple_request(request.payload)
                return {**jobs.pending_body(executions), "timestamp": whole_s}, token
            return self._describe(request, job_id, executions, whole_s)
        if verb == "start-next":
            start = jobs.parse_request(request.payload, StartNext)
            with self._changing(thing_name, now_s, outcome) as thing:
                head = jobs.start_next(thing.jobs, start, self._definitions, whole_s)
            found = {} if head is None else {"execution": self._view(head, request, whole_s)}
            return {**found, "timestamp": whole_s}, start.client_token
        jobs.require_job_id(job_id)
        update = jobs.parse_request(request.payload, Update)
        with self._changing(thing_name, now_s, outcome) as thing:
            execution = jobs.find(thing.jobs, job_id, update.execution_number)
            jobs.update(execution, update, self._definitions[job_id], whole_s)
            state = execution.state()
            self._retry(execution, now_s)
        body: dict[str, Any] = {"timestamp": whole_s}
        if update.include_job_execution_state:
            body["executionState"] = state
        if update.include_job_document:
            body["jobDocument"] = self._document(job_id, request)
        return body, update.client_token

    def _describe(
        self, request: Request, job_id: str, executions: dict[str, Execution], now_s: int
    ) -> tuple[dict[str, Any], str | None]:
        jobs.require_job_id(job_id, may_be_next=True)
        question = jobs.parse_request(request.payload, Describe)
        if job_id == jobs.NEXT:
            found = next(iter(jobs.pending(executions)), None)
        else:
            found = jobs.find(executions, job_id, question.execution_number)
            if not found.is_pending:
                text = f"The execution of job {job_id!r} is over: it is {found.status}"
                raise ExecutionError("TerminalStateReached", text)
        body: dict[str, Any] = {"timestamp": now_s}
        if found is not None:
            with_document = question.include_job_document
            body["execution"] = self._view(found, request, now_s, with_document=with_document)
        return body, question.client_token

    def _view(
        self, execution: Execution, request: Request, now_s: int, *, with_document: bool = True
    ) -> dict[str, Any]:
        view = execution.describe(now_s)
        if with_document:
            view["jobDocument"] = self._document(execution.job_id, request)
        return view

    def _document(self, job_id: str, request: Request) -> msgspec.Raw | str:
        """Return a job's document: as JSON over MQTT, as a text over HTTP."""
        document = self._definitions[job_id].document
        return document.decode() if request.is_direct else msgspec.Raw(document)

    def _take_answer(self, request: Request, now_s: float, outcome: Outcome) -> bytes:
        commands.require_execution_id(request.name)
        answer = commands.parse_answer(request.payload)
        with self._changing(request.thing_name, now_s, outcome) as thing:
            commands.take_answer(thing.commands.find(request.name), answer, now_s)
        body = encode_json({"executionId": request.name})
        if not request.is_direct:
            topic = f"{command_topic(request.thing_name, request.name)}/response/accepted/json"
            outcome.publishes.append(Publish(topic, body))
        return body

    # Of the platform

    def _assign(self, thing_name: str, order: Assignment, now_s: float, outcome: Outcome) -> bytes:
        if isinstance(order, DefineJob):
            # One that has executions is as it was when they came.
            if order.definition.job_id not in self._counts:
                self._definitions[order.definition.job_id] = order.definition
            return b"{}"
        if isinstance(order, Listen) and not any(
            hears_commands(each, thing_name) for each in order.topic_filters
        ):
            return b"{}"
        with self._changing(thing_name, now_s, outcome) as thing:
            if isinstance(order, QueueJob):
                self._queue(thing, order.job_id, int(now_s))
            elif isinstance(order, SendCommand):
                outcome.publishes.extend(thing.commands.send(order.order, thing_name, now_s))
                return encode_json(thing.commands.find(order.order.execution_id).describe())
            elif isinstance(order, Listen):
                outcome.publishes.extend(thing.commands.listen(order.topic_filters, thing_name, now_s))
            elif not isinstance(order, Expire):
                _end(thing.jobs, order, int(now_s))
        return b"{}"

    def _queue(self, thing: ThingAssignments, job_id: str, now_s: int) -> None:
        if job_id not in self._definitions:
            raise ExecutionError("ResourceNotFound", f"Job {job_id!r} is not defined here")
        if job_id not in thing.jobs:
            self._place += 1
            thing.jobs[job_id] = Execution(job_id, self._place, now_s, now_s)

    def _answer(self, thing_name: str, question: AskJobs | AskCommands, now_s: float) -> dict[str, Any]:
        thing = self._things.get(thing_name) or ThingAssignments()
        if isinstance(question, AskCommands):
            found = [*reversed(thing.commands.executions.values())]
            if question.execution_id:
                found = [thing.commands.find(question.execution_id)]
            return {"executions": [{**each.describe(), "thingName": thing_name} for each in found]}
        executions = [each for each in thing.jobs.values() if question.job_id in ("", each.job_id)]
        views = [
            {**each.describe(now_s), "thingName": thing_name, "forceCanceled": each.is_forced}
            for each in executions
        ]
        return {"executions": views}


def _end(executions: dict[str, Execution], order: CancelJob | RemoveJob | DeleteJob, now_s: int) -> None:
    """Cancel, remove or forget an execution; one that is not there is as wanted, unless it is to be cancelled alone."""
    found = executions.get(order.job_id)
    if isinstance(order, CancelJob):
        if not order.is_all or found is not None:
            _cancel(jobs.find(executions, order.job_id), order, now_s)
    elif found is None:
        return
    elif isinstance(order, RemoveJob):
        if found.is_pending:
            found.move(jobs.REMOVED, by="remove", now_s=now_s)
    else:
        jobs.find(executions, order.job_id, order.number)
        if found.is_pending and not order.force:
            text = f"The execution is {found.status}; cancel it first, or force it"
            raise ExecutionError("InvalidStateTransition", text, found.state())
        del executions[order.job_id]


def _cancel(execution: Execution, order: CancelJob, now_s: int) -> None:
    by = "force" if order.force else "cancel"
    if order.is_all and jobs.CANCELED not in jobs.TRANSITIONS[by].get(execution.status, ()):
        return
    if order.expected_version not in (None, execution.version):
        text = f"The version is {execution.version}, not {order.expected_version}"
        raise ExecutionError("VersionConflict", text, execution.state())
    jobs.check_details(order.details)
    was_in_progress = execution.status == jobs.IN_PROGRESS
    execution.move(jobs.CANCELED, by=by, now_s=now_s)
    execution.is_forced = was_in_progress
    if order.details is not None:
        execution.details = order.details
