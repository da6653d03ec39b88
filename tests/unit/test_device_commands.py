"""One device's commands: when they go out, what it may answer, and when it is too late."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.asking import NOW_S
from tests.assigning import answer_command, assign, executions, send_command
from twins.assignments import AskCommands, Expire, Listen, SendCommand, encode_assignment
from twins.commands import (
    HISTORY_COUNT_MAX,
    OPEN_COUNT_MAX,
    STATUSES,
    TRANSITIONS,
    CommandExecution,
    CommandOrder,
)
from twins.errors import ExecutionError
from twins.messages import Batch, Connectivity, Operation, Request
from twins.shadow import encode_json
from twins.shard import Shard
from twins.snapshot import dump_shard, load_shard

LISTEN = Listen(["$aws/commands/things/lamp/executions/+/request/+"])


@pytest.fixture
def shard() -> Shard:
    shard = Shard(0, 1)
    shard.apply(Batch("", 0, [Request(Operation.REGISTER, "lamp", b'{"model":"untyped"}')]), NOW_S)
    return shard


def connect(shard: Shard, *, version: int, connected: bool = True, now_s: float = NOW_S) -> None:
    news = Connectivity(connected, int(now_s * 1000), session=str(version), version=version)
    shard.apply(Batch("", 0, [Request(Operation.CONNECTIVITY, "lamp", encode_json(news))]), now_s)


def status_of(shard: Shard, execution_id: str) -> str:
    [found] = executions(shard, AskCommands(execution_id))
    return str(found["status"])


@pytest.mark.parametrize("by", TRANSITIONS)
def test_a_status_changes_as_the_table_says_and_in_no_other_way(by: str) -> None:
    for status, to in itertools.product(STATUSES, STATUSES):
        execution = CommandExecution(CommandOrder("e", "c", b"", "", 1), NOW_S, NOW_S, status=status)
        if to in TRANSITIONS[by].get(status, ()):
            execution.move(to, by=by, now_s=NOW_S + 1)
            assert (execution.status, execution.updated_at_s) == (to, NOW_S + 1)
            continue
        with pytest.raises(ExecutionError):
            execution.move(to, by=by, now_s=NOW_S + 1)
        assert execution.status == status


def test_a_command_goes_out_with_its_type_and_what_is_left_of_its_time(shard: Shard) -> None:
    assign(shard, LISTEN)
    order = CommandOrder("e1", "blink", b"\x01\xff", "application/cbor", 30)
    request = Request(Operation.ASSIGN, "lamp", encode_assignment(SendCommand(order)), is_direct=True)
    [message] = shard.apply(Batch("", 0, [request]), NOW_S).publishes
    assert message.topic == "$aws/commands/things/lamp/executions/e1/request/cbor"
    assert message.payload == b"\x01\xff"
    assert message.delivery is not None
    assert message.delivery.properties == b"\x02\x00\x00\x00\x1e\x03\x00\x10application/cbor"


@pytest.mark.parametrize(
    ("content_type", "end"),
    [("application/json", "/request/json"), ("text/plain", "/request"), ("", "/request")],
)
def test_the_topic_says_how_the_payload_is_written(shard: Shard, content_type: str, end: str) -> None:
    assign(shard, LISTEN)
    _, told = assign(shard, SendCommand(CommandOrder("e1", "blink", b"{}", content_type, 30)))
    assert [topic for topic, _ in told] == [f"e1{end}"]


def test_what_waits_for_a_device_goes_out_in_order_when_it_listens(shard: Shard) -> None:
    for number in range(3):
        assert send_command(shard, f"e{number}", timeout_s=60) == []
    shard = load_shard(dump_shard(shard))
    connect(shard, version=1)
    _, told = assign(shard, LISTEN, now_s=NOW_S + 1)
    assert [topic for topic, _ in told] == [f"e{number}/request/json" for number in range(3)]
    assert [topic for topic, _ in send_command(shard, "e3")] == ["e3/request/json"]
    # What came before a further subscription may not have been heard; what that does not bring need not be sent again.
    answer_command(shard, "e0", {"status": "SUCCEEDED"})
    _, told = assign(shard, LISTEN, now_s=NOW_S + 1)
    assert [topic for topic, _ in told] == [f"e{number}/request/json" for number in (1, 2, 3)]
    cbor = Listen(["$aws/commands/things/lamp/executions/+/request/cbor"])
    assert assign(shard, cbor, now_s=NOW_S + 1)[1] == []


def test_a_device_that_comes_back_hears_again_what_it_has_not_answered(shard: Shard) -> None:
    connect(shard, version=1)
    assign(shard, LISTEN)
    for number in range(3):
        send_command(shard, f"e{number}", timeout_s=60)
    answer_command(shard, "e0", {"status": "SUCCEEDED"})
    answer_command(shard, "e1", {"status": "IN_PROGRESS"})
    connect(shard, version=1, connected=False)
    assert send_command(shard, "e3", timeout_s=60) == []
    connect(shard, version=2)
    assert [topic for topic, _ in assign(shard, LISTEN)[1]] == ["e2/request/json", "e3/request/json"]


def test_what_has_expired_never_goes_out(shard: Shard) -> None:
    send_command(shard, "short", timeout_s=10)
    send_command(shard, "long", timeout_s=60)
    _, told = assign(shard, LISTEN, now_s=NOW_S + 10)
    assert [topic for topic, _ in told] == ["long/request/json"]
    assert status_of(shard, "short") == "TIMED_OUT"
    # Less than a second is no time that the broker could keep a message for.
    send_command(shard, "late", timeout_s=10, now_s=NOW_S)
    connect(shard, version=1)
    assert "late/request/json" not in [topic for topic, _ in assign(shard, LISTEN, now_s=NOW_S + 9.5)[1]]


def test_a_subscription_to_something_else_is_no_listening(shard: Shard) -> None:
    send_command(shard, "e")
    for each in ("#", "$aws/things/lamp/#", "$aws/commands/things/lamp/executions/+/response/#"):
        assert assign(shard, Listen([each]))[1] == []
    assert [topic for topic, _ in assign(shard, Listen(["$aws/commands/things/lamp/#"]))[1]] == [
        "e/request/json"
    ]


def test_a_device_reports_and_ends_an_execution(shard: Shard) -> None:
    assign(shard, LISTEN)
    send_command(shard, "e")
    assert answer_command(shard, "e", {"status": "IN_PROGRESS"}) == [
        ("e/response/accepted/json", {"executionId": "e"})
    ]
    done = {
        "status": "SUCCEEDED",
        "statusReason": {"reasonCode": "DONE", "reasonDescription": "blinked"},
        "result": {"times": {"s": "3"}, "ok": {"b": True}, "raw": {"bin": "AAE="}},
    }
    answer_command(shard, "e", done, now_s=NOW_S + 2)
    [found] = executions(shard, AskCommands("e"))
    assert (found["status"], found["statusReason"], found["result"]) == tuple(done.values())
    assert (found["createdAt"], found["startedAt"], found["completedAt"]) == (NOW_S, NOW_S, NOW_S + 2)
    # Told once more, because the answer was lost on its way; something else is refused.
    assert answer_command(shard, "e", done)[0].topic == "e/response/accepted/json"
    [(topic, body)] = answer_command(shard, "e", {"status": "FAILED"})
    assert (topic, body["error"]) == ("e/response/rejected/json", "TerminalStateReached")
    assert body["executionId"] == "e"


def test_a_device_that_does_not_answer_in_time_may_still_tell_how_it_went(shard: Shard) -> None:
    assign(shard, LISTEN)
    send_command(shard, "e")
    assert shard.assignments.overdue(NOW_S + 9.9) == []
    assert shard.assignments.overdue(NOW_S + 10) == ["lamp"]
    assign(shard, Expire(), now_s=NOW_S + 10)
    [found] = executions(shard, AskCommands("e"))
    assert (found["status"], found["statusReason"]["reasonCode"]) == ("TIMED_OUT", "$NO_RESPONSE_FROM_DEVICE")
    answer_command(shard, "e", {"status": "SUCCEEDED"}, now_s=NOW_S + 20)
    [found] = executions(shard, AskCommands("e"))
    assert (found["status"], found["statusReason"]) == ("SUCCEEDED", None)


def test_a_device_that_timed_out_by_its_own_word_has_said_so_for_good(shard: Shard) -> None:
    send_command(shard, "e")
    answer_command(shard, "e", {"status": "TIMED_OUT", "statusReason": {"reasonCode": "MOTOR"}})
    [(_, body)] = answer_command(shard, "e", {"status": "SUCCEEDED"})
    assert body["error"] == "TerminalStateReached"


@pytest.mark.parametrize(
    ("execution_id", "body", "error"),
    [
        ("e", b"{", "InvalidJson"),
        ("e", {}, "InvalidRequest"),
        ("e", {"status": "CREATED"}, "InvalidRequest"),
        ("e", {"status": "FAILED", "statusReason": {"reasonCode": "lower"}}, "InvalidRequest"),
        (
            "e",
            {"status": "FAILED", "statusReason": {"reasonCode": "A", "reasonDescription": "x" * 1025}},
            "InvalidRequest",
        ),
        ("e", {"status": "FAILED", "result": {"a b": {"s": "x"}}}, "InvalidRequest"),
        ("e", {"status": "FAILED", "result": {"a": {"s": 1}}}, "InvalidRequest"),
        ("e", {"status": "FAILED", "result": {"a": {"s": "x", "b": True}}}, "InvalidRequest"),
        ("e", {"status": "FAILED", "result": {"a": {"bin": "?"}}}, "InvalidRequest"),
        ("other", {"status": "FAILED"}, "ResourceNotFound"),
        ("e!", {"status": "FAILED"}, "InvalidTopic"),
    ],
)
def test_an_answer_that_may_not_be_is_refused_and_changes_nothing(
    shard: Shard, execution_id: str, body: Any, error: str
) -> None:
    send_command(shard, "e")
    before = dump_shard(shard)
    [(topic, told)] = answer_command(shard, execution_id, body)
    assert topic == f"{execution_id}/response/rejected/json"
    assert (told["error"], told["executionId"]) == (error, execution_id)
    assert dump_shard(shard) == before


def test_a_command_that_is_sent_twice_under_one_id_goes_out_once(shard: Shard) -> None:
    assign(shard, LISTEN)
    assert len(send_command(shard, "e")) == 1
    assert send_command(shard, "e") == []
    assert len(executions(shard, AskCommands())) == 1


def test_what_waits_and_what_is_remembered_has_a_bound(shard: Shard) -> None:
    for number in range(OPEN_COUNT_MAX):
        send_command(shard, f"e{number}")
    reply, _ = assign(shard, SendCommand(CommandOrder("more", "blink", b"", "", 10)))
    assert (reply.status, json.loads(reply.payload)["kind"]) == (429, "RequestThrottled")
    for round_ in range(2):
        assign(shard, Expire(), now_s=NOW_S + 10 + round_)
        for number in range(OPEN_COUNT_MAX):
            send_command(shard, f"{round_}-{number}", timeout_s=1, now_s=NOW_S + 10 + round_)
    found = executions(shard, AskCommands())
    assert len(found) <= HISTORY_COUNT_MAX + OPEN_COUNT_MAX
    assert [each["executionId"] for each in found[:2]] == ["1-99", "1-98"]
