"""Random histories of one device's jobs, beside a model of a few lines that says what must come of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.asking import NOW_S
from tests.assigning import assign, executions, of_device, queue_job
from twins.assignments import AskJobs, CancelJob, DeleteJob, Expire, RemoveJob
from twins.jobs import STATUSES
from twins.shard import Shard
from twins.snapshot import dump_shard, load_shard

# In-progress timers (minutes, 0: none) and further attempts of the jobs that there may be.
JOBS: Final = {"a": (0, {}), "b": (2, {}), "c": (1, {"FAILED": 1, "TIMED_OUT": 1})}
OPEN: Final = ("QUEUED", "IN_PROGRESS")
job_ids = st.sampled_from(sorted(JOBS))
steps = st.one_of(
    st.tuples(st.just("queue"), job_ids),
    st.tuples(st.just("start"), st.sampled_from([None, None, 1, 3])),
    st.tuples(st.just("update"), job_ids, st.sampled_from(STATUSES), st.sampled_from([None, None, -1, 1, 3])),
    st.tuples(st.just("cancel"), job_ids, st.booleans()),
    st.tuples(st.just("remove"), job_ids),
    st.tuples(st.just("delete"), job_ids, st.booleans()),
    st.tuples(st.just("wait"), st.integers(1, 100)),
    st.tuples(st.just("restart")),
)


@dataclass
class Modelled:
    """What an execution is, by the rules as people read them."""

    place: int
    queued_at: int
    status: str = "QUEUED"
    version: int = 1
    number: int = 1
    ends: list[int | None] = field(default_factory=lambda: [None, None])

    def end(self, status: str, job_id: str, now_s: int) -> None:
        """End it, and queue it anew where the job has a further attempt for that."""
        self.status, self.version, self.ends = status, self.version + 1, [None, None]
        if self.number <= JOBS[job_id][1].get(status, 0):
            self.status, self.version, self.number, self.queued_at = "QUEUED", 1, self.number + 1, now_s

    def begin(self, job_id: str, now_s: int) -> None:
        """Have the device begin."""
        minutes = JOBS[job_id][0]
        self.status, self.version = "IN_PROGRESS", self.version + 1
        self.ends = [now_s + 60 * minutes if minutes else None, None]


class Model:
    """All executions of the device."""

    def __init__(self) -> None:
        self.jobs: dict[str, Modelled] = {}
        self.place = 0

    def pending(self) -> list[tuple[str, int]]:
        """Return job and execution number of what is pending, the next one first."""
        found = [
            (each.status == "QUEUED", each.queued_at, each.place, name) for name, each in self.jobs.items()
        ]
        return [
            (name, self.jobs[name].number) for *_, name in sorted(found) if self.jobs[name].status in OPEN
        ]

    def expire(self, now_s: int) -> None:
        """Time out what is overdue."""
        for name, each in self.jobs.items():
            if any(end is not None and end <= now_s for end in each.ends):
                each.end("TIMED_OUT", name, now_s)


def play(model: Model, step: Any, now_s: int) -> bool:
    """Carry out a step in the model and tell whether it is accepted."""
    kind = step[0]
    if kind == "queue":
        if step[1] not in model.jobs:
            model.place += 1
            model.jobs[step[1]] = Modelled(model.place, now_s)
        return True
    if kind == "start":
        for name, _ in model.pending()[:1]:
            if model.jobs[name].status == "QUEUED":
                model.jobs[name].begin(name, now_s)
                set_timer(model.jobs[name], step[1], now_s)
        return True
    found = model.jobs.get(step[1])
    return update(found, step, now_s) if kind == "update" else end(model, found, step)


def end(model: Model, found: Modelled | None, step: Any) -> bool:
    """Cancel, remove or delete an execution in the model and tell whether that is accepted."""
    kind = step[0]
    is_open = found is not None and found.status in OPEN
    if kind == "cancel":
        if found is None or not is_open or (found.status == "IN_PROGRESS" and not step[2]):
            return False
        found.status, found.version, found.ends = "CANCELED", found.version + 1, [None, None]
    elif kind == "remove":
        if found is not None and is_open:
            found.status, found.version, found.ends = "REMOVED", found.version + 1, [None, None]
    elif found is not None:
        if is_open and not step[2]:
            return False
        del model.jobs[step[1]]
    return True


def update(found: Modelled | None, step: Any, now_s: int) -> bool:
    """Carry out a device's update in the model and tell whether it is accepted."""
    _, name, status, minutes = step
    if (
        found is None
        or found.status not in OPEN
        or status not in ("IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED")
    ):
        return False
    if status != "IN_PROGRESS":
        found.end(status, name, now_s)
        return True
    if found.status == "QUEUED":
        found.begin(name, now_s)
    else:
        found.version += 1
    set_timer(found, minutes, now_s)
    return True


def set_timer(found: Modelled, minutes: int | None, now_s: int) -> None:
    """Set the step timer as a device asks for it."""
    if minutes is not None:
        found.ends[1] = None if minutes == -1 else now_s + 60 * minutes


def carry_out(shard: Shard, step: Any, now_s: int) -> tuple[bool, set[str]]:
    """Carry out a step in a shard; return whether it is accepted, and which notifications the device gets."""
    kind = step[0]
    if kind in ("start", "update"):
        body: dict[str, Any] = {} if step[-1] is None else {"stepTimeoutInMinutes": step[-1]}
        name = "start-next" if kind == "start" else f"{step[1]}/update"
        told = of_device(shard, name, body if kind == "start" else {"status": step[2], **body}, now_s=now_s)
        [verdict] = [topic.rpartition("/")[2] for topic, _ in told if "/" in topic]
        return verdict == "accepted", {topic for topic, _ in told if "/" not in topic}
    if kind == "queue":
        minutes, retries = JOBS[step[1]]
        told = queue_job(shard, step[1], now_s=now_s, minutes=minutes, retries=retries)
        return True, {topic for topic, _ in told}
    if kind == "wait":
        reply, told = assign(shard, Expire(), now_s=now_s)
    elif kind == "cancel":
        reply, told = assign(shard, CancelJob(step[1], force=step[2]), now_s=now_s)
    elif kind == "remove":
        reply, told = assign(shard, RemoveJob(step[1]), now_s=now_s)
    else:
        reply, told = assign(shard, DeleteJob(step[1], force=step[2]), now_s=now_s)
    return reply.status == 200, {topic for topic, _ in told}


@given(st.lists(steps, max_size=25))
@settings(max_examples=80, deadline=None)
def test_jobs_do_what_the_rules_say_and_the_device_is_told_of_it(history: list[Any]) -> None:
    shard, model, now_s = Shard(0, 1), Model(), NOW_S
    for step in history:
        before = model.pending()
        if step[0] == "restart":
            shard = load_shard(dump_shard(shard))
            continue
        if step[0] == "wait":
            now_s += step[1]
        is_unread = step[0] == "update" and step[2] in ("QUEUED", "TIMED_OUT", "REMOVED", "CANCELED")
        if not is_unread:
            # Every change looks at the timers first.
            model.expire(now_s)
        is_accepted = step[0] == "wait" or play(model, step, now_s)
        expected = set()
        if set(model.pending()) != set(before):
            expected.add("notify")
        if model.pending()[:1] != before[:1]:
            expected.add("notify-next")
        assert carry_out(shard, step, now_s) == (is_accepted, expected), step
        check(shard, model, now_s)


def check(shard: Shard, model: Model, now_s: int) -> None:
    """Compare all that can be asked of the shard with the model."""
    found = {
        each["jobId"]: (each["status"], each["versionNumber"], each["executionNumber"])
        for each in executions(shard, AskJobs(), now_s=now_s)
    }
    assert found == {name: (each.status, each.version, each.number) for name, each in model.jobs.items()}
    counts: dict[str, dict[str, int]] = {}
    for name, each in model.jobs.items():
        counts.setdefault(name, {})[each.status] = 1
    assert shard.assignments.counts() == counts
    is_overdue = any(end is not None and end <= now_s for each in model.jobs.values() for end in each.ends)
    assert bool(shard.assignments.overdue(now_s)) == is_overdue
