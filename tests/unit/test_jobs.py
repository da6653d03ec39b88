"""One device's jobs: what it may ask, what it is answered, and what it is told without asking."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.asking import NOW_S
from tests.assigning import DOCUMENT, Heard, assign, executions, of_device, queue_job
from twins.assignments import AskJobs, CancelJob, DeleteJob, Expire, QueueJob, RemoveJob
from twins.errors import ExecutionError
from twins.jobs import STATUSES, TRANSITIONS, Execution
from twins.messages import Batch, Operation, Request
from twins.shard import Shard
from twins.snapshot import dump_shard, load_shard


@pytest.fixture
def shard() -> Shard:
    return Shard(0, 1)


def only(found: list[Heard]) -> Any:
    [(_, body)] = found
    return body


def rejected(found: list[Heard]) -> str:
    [(topic, body)] = found
    assert topic.endswith("/rejected")
    return str(body["code"])


@pytest.mark.parametrize("by", TRANSITIONS)
def test_a_status_changes_as_the_table_says_and_in_no_other_way(by: str) -> None:
    for status, to in itertools.product(STATUSES, STATUSES):
        execution = Execution("job", 1, NOW_S, NOW_S, status=status)
        if to in TRANSITIONS[by].get(status, ()):
            execution.move(to, by=by, now_s=NOW_S + 1)
            assert (execution.status, execution.version, execution.updated_at_s) == (to, 2, NOW_S + 1)
            continue
        with pytest.raises(ExecutionError) as caught:
            execution.move(to, by=by, now_s=NOW_S + 1)
        assert caught.value.kind == "InvalidStateTransition"
        assert (execution.status, execution.version) == (status, 1)


def test_nothing_leads_out_of_an_end_but_a_further_attempt() -> None:
    ends = set(STATUSES) - {"QUEUED", "IN_PROGRESS"}
    assert {by for by, moves in TRANSITIONS.items() if ends & moves.keys()} == {"retry"}


def test_a_device_is_told_of_a_job_that_is_created_and_gets_it(shard: Shard) -> None:
    told = dict(queue_job(shard, "update-1"))
    summary = {
        "jobId": "update-1",
        "queuedAt": NOW_S,
        "lastUpdatedAt": NOW_S,
        "versionNumber": 1,
        "executionNumber": 1,
    }
    document = {"status": "QUEUED", "jobDocument": json.loads(DOCUMENT)}
    assert told == {
        "notify": {"timestamp": NOW_S, "jobs": {"QUEUED": [summary]}},
        "notify-next": {"timestamp": NOW_S, "execution": {**summary, **document}},
    }
    [(topic, body)] = of_device(shard, "get", {"clientToken": "t"})
    expected = {"inProgressJobs": [], "queuedJobs": [summary], "timestamp": NOW_S, "clientToken": "t"}
    assert (topic, body) == ("get/accepted", expected)
    [(topic, body)] = of_device(shard, "$next/get")
    assert (topic, body["execution"]) == ("$next/get/accepted", {**summary, **document})
    [(_, body)] = of_device(shard, "update-1/get", {"includeJobDocument": False})
    assert body["execution"] == {**summary, "status": "QUEUED"}


def test_start_next_begins_the_next_job_once(shard: Shard) -> None:
    queue_job(shard, "a")
    [(topic, first)] = of_device(shard, "start-next", {"statusDetails": {"step": "1"}, "clientToken": "x"})
    assert (topic, first["clientToken"]) == ("start-next/accepted", "x")
    begun = first["execution"]
    assert (begun["status"], begun["versionNumber"], begun["startedAt"]) == ("IN_PROGRESS", 2, NOW_S)
    again = only(of_device(shard, "start-next", {"statusDetails": {"step": "2"}}, now_s=NOW_S + 5))
    assert again["execution"] == begun
    assert begun["statusDetails"] == {"step": "1"}


def test_without_a_job_there_is_no_execution_in_the_answers(shard: Shard) -> None:
    for name in ("start-next", "$next/get"):
        assert only(of_device(shard, name, {"clientToken": "t"})) == {"timestamp": NOW_S, "clientToken": "t"}
    assert only(of_device(shard, "get")) == {"inProgressJobs": [], "queuedJobs": [], "timestamp": NOW_S}


def test_notify_tells_of_the_set_and_notify_next_of_its_head(shard: Shard) -> None:
    queue_job(shard, "a")
    assert [topic for topic, _ in queue_job(shard, "b", now_s=NOW_S + 1)] == ["notify"]
    # The head stays the head when it is begun.
    assert [topic for topic, _ in of_device(shard, "start-next")] == ["start-next/accepted"]
    # Another one that is begun stands behind the one begun earlier in the queue.
    assert [topic for topic, _ in of_device(shard, "b/update", {"status": "IN_PROGRESS"})] == [
        "b/update/accepted"
    ]
    ended = of_device(shard, "a/update", {"status": "SUCCEEDED"})
    assert [topic for topic, _ in ended] == ["a/update/accepted", "notify", "notify-next"]
    assert ended[2].body["execution"]["jobId"] == "b"
    last = of_device(shard, "b/update", {"status": "FAILED"})
    assert [body for _, body in last[1:]] == [{"timestamp": NOW_S, "jobs": {}}, {"timestamp": NOW_S}]


def test_beginning_another_job_than_the_head_makes_that_the_head(shard: Shard) -> None:
    queue_job(shard, "a")
    queue_job(shard, "b")
    told = of_device(shard, "b/update", {"status": "IN_PROGRESS"})
    assert [topic for topic, _ in told] == ["b/update/accepted", "notify-next"]
    assert told[1].body["execution"]["jobId"] == "b"


def test_notify_names_ten_of_each_kind(shard: Shard) -> None:
    for number in range(12):
        told = dict(queue_job(shard, f"job-{number}"))
    assert len(told["notify"]["jobs"]["QUEUED"]) == 10


def test_an_update_gives_what_it_is_asked_for(shard: Shard) -> None:
    queue_job(shard, "a")
    asked = {"includeJobExecutionState": True, "includeJobDocument": True, "clientToken": "t"}
    body = only(of_device(shard, "a/update", {"status": "IN_PROGRESS", "statusDetails": {"k": "v"}, **asked}))
    state = {"status": "IN_PROGRESS", "statusDetails": {"k": "v"}, "versionNumber": 2}
    document = json.loads(DOCUMENT)
    assert body == {"timestamp": NOW_S, "executionState": state, "jobDocument": document, "clientToken": "t"}
    # Details that are not named stay; others take the place of all.
    body = only(of_device(shard, "a/update", {"status": "IN_PROGRESS", "includeJobExecutionState": True}))
    assert body["executionState"]["statusDetails"] == {"k": "v"}
    update = {"status": "IN_PROGRESS", "statusDetails": {"n": "w"}, "includeJobExecutionState": True}
    assert only(of_device(shard, "a/update", update))["executionState"]["statusDetails"] == {"n": "w"}


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("a/update", b"{", "InvalidJson"),
        ("a/update", b'"\xff"', "InvalidJson"),
        ("a/update", b"[]", "InvalidRequest"),
        ("a/update", {}, "InvalidRequest"),
        ("a/update", {"status": "QUEUED"}, "InvalidRequest"),
        ("a/update", {"status": "CANCELED"}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "statusDetails": {"a b": "c"}}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "statusDetails": {"a": ""}}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "statusDetails": {"a": "x" * 1025}}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "statusDetails": {"a": "x\n"}}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "statusDetails": {"k" * 129: "x"}}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "statusDetails": {"a": 1}}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "stepTimeoutInMinutes": 0}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "stepTimeoutInMinutes": 10_081}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "clientToken": "x" * 65}, "InvalidRequest"),
        ("a/update", {"status": "IN_PROGRESS", "expectedVersion": 2}, "VersionMismatch"),
        ("a/update", {"status": "IN_PROGRESS", "executionNumber": 2}, "ResourceNotFound"),
        ("b/update", {"status": "IN_PROGRESS"}, "ResourceNotFound"),
        ("b/get", {}, "ResourceNotFound"),
        ("a!/get", {}, "InvalidTopic"),
        ("$next/update", {"status": "IN_PROGRESS"}, "InvalidTopic"),
        ("start-next", {"stepTimeoutInMinutes": -2}, "InvalidRequest"),
        ("get", b"{", "InvalidJson"),
    ],
)
def test_a_request_that_may_not_be_is_refused_by_its_code_and_changes_nothing(
    shard: Shard, name: str, body: Any, code: str
) -> None:
    queue_job(shard, "a")
    before = dump_shard(shard)
    assert rejected(of_device(shard, name, body)) == code
    assert dump_shard(shard) == before


def test_a_refusal_carries_the_token_and_where_it_matters_the_state(shard: Shard) -> None:
    queue_job(shard, "a")
    of_device(shard, "a/update", {"status": "SUCCEEDED"})
    body = only(of_device(shard, "a/update", {"status": "IN_PROGRESS", "clientToken": "t"}))
    state = {"status": "SUCCEEDED", "statusDetails": {}, "versionNumber": 2}
    assert (body["code"], body["clientToken"], body["executionState"]) == (
        "InvalidStateTransition",
        "t",
        state,
    )
    assert rejected(of_device(shard, "a/get")) == "TerminalStateReached"
    assert "executionState" not in only(of_device(shard, "x/update", {"status": "FAILED"}))


def test_a_step_timer_ends_an_execution_unless_it_is_set_again_or_ended(shard: Shard) -> None:
    queue_job(shard, "a")
    of_device(shard, "start-next", {"stepTimeoutInMinutes": 1})
    update = {"status": "IN_PROGRESS", "stepTimeoutInMinutes": 2}
    of_device(shard, "a/update", update, now_s=NOW_S + 59)
    assert shard.assignments.overdue(NOW_S + 178) == []
    assert shard.assignments.overdue(NOW_S + 179) == ["lamp"]
    of_device(shard, "a/update", {"status": "IN_PROGRESS", "stepTimeoutInMinutes": -1}, now_s=NOW_S + 60)
    assert shard.assignments.overdue(NOW_S + 10**9) == []


def test_the_in_progress_timer_is_not_put_off_by_steps(shard: Shard) -> None:
    queue_job(shard, "a", minutes=5)
    of_device(shard, "start-next", {"stepTimeoutInMinutes": 10})
    body = only(of_device(shard, "a/get", now_s=NOW_S + 60))
    assert body["execution"]["approximateSecondsBeforeTimedOut"] == 240
    _, told = assign(shard, Expire(), now_s=NOW_S + 300)
    assert [topic for topic, _ in told] == ["notify", "notify-next"]
    [execution] = executions(shard, AskJobs("a"), now_s=NOW_S + 300)
    assert (execution["status"], execution["versionNumber"]) == ("TIMED_OUT", 3)
    # Also without that order it is too late for the device.
    assert rejected(of_device(shard, "a/update", {"status": "SUCCEEDED"}, now_s=NOW_S + 301)) == (
        "InvalidStateTransition"
    )


def test_a_device_that_comes_too_late_hears_so_though_nobody_has_looked_at_the_timer(shard: Shard) -> None:
    queue_job(shard, "a", minutes=1)
    of_device(shard, "start-next")
    told = of_device(shard, "a/update", {"status": "SUCCEEDED"}, now_s=NOW_S + 61)
    assert [topic for topic, _ in told if "rejected" not in topic] == ["notify", "notify-next"]
    assert {body["code"] for topic, body in told if "rejected" in topic} == {"InvalidStateTransition"}
    assert shard.assignments.counts() == {"a": {"TIMED_OUT": 1}}


def test_a_failed_execution_is_tried_again_as_often_as_the_job_says(shard: Shard) -> None:
    queue_job(shard, "a", retries={"FAILED": 1})
    told = of_device(shard, "a/update", {"status": "FAILED"}, now_s=NOW_S + 1)
    assert [topic for topic, _ in told] == ["a/update/accepted", "notify", "notify-next"]
    again = told[2].body["execution"]
    assert (again["executionNumber"], again["status"], again["queuedAt"]) == (2, "QUEUED", NOW_S + 1)
    of_device(shard, "a/update", {"status": "FAILED"}, now_s=NOW_S + 2)
    assert shard.assignments.counts() == {"a": {"FAILED": 1}}


def test_cancelling_takes_a_queued_execution_and_by_force_one_in_progress(shard: Shard) -> None:
    queue_job(shard, "a")
    queue_job(shard, "b")
    of_device(shard, "start-next")
    reply, _ = assign(shard, CancelJob("a"))
    assert (reply.status, json.loads(reply.payload)["kind"]) == (409, "InvalidStateTransition")
    reply, told = assign(shard, CancelJob("b"))
    assert (reply.status, [topic for topic, _ in told]) == (200, ["notify"])
    reply, _ = assign(shard, CancelJob("a", is_all=True))
    assert reply.status == 200
    reply, _ = assign(shard, CancelJob("a", force=True, expected_version=7))
    assert (reply.status, json.loads(reply.payload)["kind"]) == (409, "VersionConflict")
    reply, told = assign(shard, CancelJob("a", force=True, details={"why": "recalled"}))
    assert (reply.status, [topic for topic, _ in told]) == (200, ["notify", "notify-next"])
    assert rejected(of_device(shard, "a/update", {"status": "SUCCEEDED"})) == "InvalidStateTransition"
    [execution] = executions(shard, AskJobs("a"))
    assert (execution["status"], execution["forceCanceled"]) == ("CANCELED", True)


def test_a_job_that_is_given_twice_is_there_once(shard: Shard) -> None:
    queue_job(shard, "a")
    of_device(shard, "start-next")
    reply, told = assign(shard, QueueJob("a"))
    assert (reply.status, told) == (200, [])
    assert shard.assignments.counts() == {"a": {"IN_PROGRESS": 1}}


def test_a_job_that_is_not_defined_can_not_be_given(shard: Shard) -> None:
    reply, _ = assign(shard, QueueJob("a"))
    assert reply.status == 404


def test_deleting_a_pending_execution_needs_force_and_leaves_nothing(shard: Shard) -> None:
    empty = dump_shard(shard)
    queue_job(shard, "a")
    reply, _ = assign(shard, DeleteJob("a"))
    assert reply.status == 409
    reply, told = assign(shard, DeleteJob("a", force=True))
    assert (reply.status, [topic for topic, _ in told]) == (200, ["notify", "notify-next"])
    assert executions(shard, AskJobs()) == []
    queue_job(shard, "a")
    of_device(shard, "a/update", {"status": "SUCCEEDED"})
    assign(shard, DeleteJob("a", number=1))
    assert shard.assignments.counts() == {}
    assert len(dump_shard(shard)) == len(empty)


def test_a_thing_that_is_unregistered_has_nothing_left_to_do(shard: Shard) -> None:
    register = Request(Operation.REGISTER, "lamp", b'{"model":"untyped"}')
    shard.apply(Batch("", 0, [register]), NOW_S)
    queue_job(shard, "a")
    queue_job(shard, "b")
    of_device(shard, "a/update", {"status": "SUCCEEDED"})
    shard.apply(Batch("", 0, [Request(Operation.UNREGISTER, "lamp")]), NOW_S)
    assert shard.assignments.counts() == {"a": {"SUCCEEDED": 1}, "b": {"REMOVED": 1}}
    assert rejected(of_device(shard, "get")) == "ResourceNotFound"


def test_a_thing_that_is_no_target_any_more_loses_what_it_has_not_done(shard: Shard) -> None:
    queue_job(shard, "a")
    assert [topic for topic, _ in assign(shard, RemoveJob("a"))[1]] == ["notify", "notify-next"]
    assert assign(shard, RemoveJob("a"))[1] == []
    assert shard.assignments.counts() == {"a": {"REMOVED": 1}}


def test_over_http_the_document_is_a_text_and_only_the_caller_hears(shard: Shard) -> None:
    queue_job(shard, "a")
    request = Request(Operation.JOB_READ, "lamp", b"", "a/get", is_direct=True)
    outcome = shard.apply(Batch("", 0, [request]), NOW_S)
    assert outcome.publishes == []
    assert json.loads(outcome.replies[0].payload)["execution"]["jobDocument"] == DOCUMENT.decode()


def test_jobs_and_their_timers_outlive_a_snapshot(shard: Shard) -> None:
    queue_job(shard, "a", minutes=1)
    of_device(shard, "start-next")
    shard = load_shard(dump_shard(shard))
    assert shard.assignments.overdue(NOW_S + 60) == ["lamp"]
    assign(shard, Expire(), now_s=NOW_S + 60)
    assert shard.assignments.counts() == {"a": {"TIMED_OUT": 1}}
