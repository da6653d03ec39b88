"""Jobs and commands against the whole platform: the unmodified AWS IoT Device SDK, stock boto3, the command line."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from awsiot import V2ServiceException, iotjobs

from actors.gateway.arns import thing_arn
from tests.integration.attack_scene import client_of
from tests.integration.boto3_clients import boto3_client
from tests.integration.raw_mqtt import MQTT_5, MQTT_311, Connect
from tests.integration.running_platform import DEADLINE_S, RunningPlatform, until
from tests.integration.sdk_device import Device, over_mqtt3, over_mqtt5

_NUMBERS = itertools.count()
DOCUMENT = {"operation": "install", "version": "2.0"}


@pytest.fixture(scope="module")
def key(platform: RunningPlatform) -> dict[str, Any]:
    made: dict[str, Any] = platform.json("key", "create", "jobs", "--role", "operator")
    return made


@pytest.fixture(scope="module")
def iot(platform: RunningPlatform, key: dict[str, Any]) -> Any:
    return boto3_client("iot", platform.endpoints.api.url, key)


@pytest.fixture(params=[over_mqtt5, over_mqtt3], ids=["mqtt5", "mqtt3"])
def device(request: pytest.FixtureRequest, platform: RunningPlatform, tmp_path: Path) -> Iterator[Device]:
    """Give a device that is registered and connected; it has no job yet."""
    name = f"worker-{next(_NUMBERS)}"
    platform.enrol(name, tmp_path)
    with request.param(name, tmp_path, platform) as connected:
        yield connected


def create(iot: Any, job_id: str, *things: str, **more: Any) -> None:
    targets = [thing_arn(name) for name in things]
    iot.create_job(jobId=job_id, targets=targets, document=json.dumps(DOCUMENT), **more)


def status_of(iot: Any, job_id: str) -> str:
    return str(iot.describe_job(jobId=job_id)["job"]["status"])


def refused(answer: Future[Any]) -> iotjobs.V2ErrorResponse:
    with pytest.raises(V2ServiceException) as caught:
        answer.result(DEADLINE_S)
    assert isinstance(caught.value.modeled_error, iotjobs.V2ErrorResponse), caught.value.inner_error
    return caught.value.modeled_error


def test_the_sdk_takes_a_job_reports_and_finishes_it(device: Device, iot: Any) -> None:
    name, job_id = device.name, f"install-{device.name}"
    changed = device.job_stream(
        "create_job_executions_changed_stream",
        iotjobs.JobExecutionsChangedSubscriptionRequest(thing_name=name),
    )
    following = device.job_stream(
        "create_next_job_execution_changed_stream",
        iotjobs.NextJobExecutionChangedSubscriptionRequest(thing_name=name),
    )
    create(iot, job_id, name)
    assert [each.job_id for each in changed.next().jobs["QUEUED"]] == [job_id]
    assert (following.next().execution.job_id) == job_id
    got = device.jobs.get_pending_job_executions(iotjobs.GetPendingJobExecutionsRequest(thing_name=name))
    pending = got.result(DEADLINE_S)
    assert ([each.job_id for each in pending.queued_jobs], pending.in_progress_jobs) == ([job_id], [])
    start = iotjobs.StartNextPendingJobExecutionRequest(thing_name=name, status_details={"step": "download"})
    execution = device.jobs.start_next_pending_job_execution(start).result(DEADLINE_S).execution
    assert (execution.job_id, execution.status, execution.version_number) == (job_id, "IN_PROGRESS", 2)
    assert (execution.job_document, execution.status_details) == (DOCUMENT, {"step": "download"})
    stale = iotjobs.UpdateJobExecutionRequest(
        thing_name=name, job_id=job_id, status="SUCCEEDED", expected_version=1
    )
    error = refused(device.jobs.update_job_execution(stale))
    assert (error.code, error.execution_state.version_number) == ("VersionMismatch", 2)
    done = iotjobs.UpdateJobExecutionRequest(
        thing_name=name, job_id=job_id, status="SUCCEEDED", include_job_execution_state=True
    )
    state = device.jobs.update_job_execution(done).result(DEADLINE_S).execution_state
    assert (state.status, state.version_number) == ("SUCCEEDED", 3)
    assert changed.next().jobs == {}
    assert following.next().execution is None
    describe = iotjobs.DescribeJobExecutionRequest(thing_name=name, job_id=job_id)
    assert refused(device.jobs.describe_job_execution(describe)).code == "TerminalStateReached"
    until(lambda: status_of(iot, job_id) == "COMPLETED", "the job is over")


def test_a_device_that_fails_and_one_that_is_cancelled_are_told_apart(device: Device, iot: Any) -> None:
    name = device.name
    first, second = f"a-{name}", f"b-{name}"
    following = device.job_stream(
        "create_next_job_execution_changed_stream",
        iotjobs.NextJobExecutionChangedSubscriptionRequest(thing_name=name),
    )
    create(iot, first, name)
    assert following.next().execution.job_id == first
    create(iot, second, name, jobExecutionsRolloutConfig={"maximumPerMinute": 60})
    until(
        lambda: len(iot.list_job_executions_for_thing(thingName=name)["executionSummaries"]) == 2, "both jobs"
    )
    failed = iotjobs.UpdateJobExecutionRequest(
        thing_name=name, job_id=first, status="FAILED", status_details={"error": "disk"}
    )
    device.jobs.update_job_execution(failed).result(DEADLINE_S)
    assert following.next().execution.job_id == second
    iot.cancel_job_execution(jobId=second, thingName=name)
    assert following.next().execution is None
    update = iotjobs.UpdateJobExecutionRequest(thing_name=name, job_id=second, status="SUCCEEDED")
    error = refused(device.jobs.update_job_execution(update))
    assert (error.code, error.execution_state.status) == ("InvalidStateTransition", "CANCELED")
    described = iot.describe_job_execution(jobId=first, thingName=name)["execution"]
    assert (described["status"], described["statusDetails"]) == ("FAILED", {"detailsMap": {"error": "disk"}})


@pytest.fixture(scope="module")
def thing(platform: RunningPlatform, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Give a registered thing that nobody speaks for yet, and where its files are."""
    files = tmp_path_factory.mktemp("thing")
    platform.enrol("commanded", files)
    return "commanded", files


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5], ids=["mqtt3", "mqtt5"])
def test_a_command_waits_for_its_device_and_its_answer_is_kept(
    platform: RunningPlatform, thing: tuple[str, Path], version: int
) -> None:
    name, files = thing
    base = f"$aws/commands/things/{name}/executions"
    with platform.api() as api:

        def send(action: str, timeout_s: int) -> str:
            body = {"thing": name, "action": action, "parameters": {"n": 1}, "timeout_s": timeout_s}
            [found] = api.post("/v1/commands", json=body).raise_for_status().json()["executions"]
            return str(found["executionId"])

        def shown(execution_id: str) -> dict[str, Any]:
            found: dict[str, Any] = api.get(f"/v1/commands/{name}/{execution_id}").json()
            return found

        lost, first = send("expire", 1), send("first", 300)
        until(lambda: shown(lost)["status"] == "TIMED_OUT", "the first command is too late")
        with client_of(platform, files, name).session(Connect(name, version=version)) as session:
            session.subscribe(f"{base}/+/request/+", f"{base}/+/response/+/json")
            message = session.next_message()
            assert (message.topic, json.loads(message.payload)) == (
                f"{base}/{first}/request/json",
                {"action": "first", "parameters": {"n": 1}},
            )
            second = send("second", 300)
            assert session.next_message().topic == f"{base}/{second}/request/json"
            for execution_id, answer in (
                (first, {"status": "SUCCEEDED", "result": {"n": {"s": "1"}}}),
                (second, {"status": "REJECTED", "statusReason": {"reasonCode": "BUSY"}}),
            ):
                session.publish(f"{base}/{execution_id}/response/json", json.dumps(answer).encode())
                message = session.next_message()
                assert (message.topic, json.loads(message.payload)) == (
                    f"{base}/{execution_id}/response/accepted/json",
                    {"executionId": execution_id},
                )
        assert (shown(first)["status"], shown(first)["result"]) == ("SUCCEEDED", {"n": {"s": "1"}})
        assert (shown(second)["status"], shown(second)["statusReason"]) == (
            "REJECTED",
            {"reasonCode": "BUSY"},
        )
        listed = [each["executionId"] for each in api.get(f"/v1/commands/{name}").json()["executions"]]
        assert listed[:3] == [second, first, lost]


def test_a_coordinator_that_is_killed_is_brought_back_and_goes_on(
    platform: RunningPlatform, iot: Any
) -> None:
    with platform.api() as api:
        names = [f"fan-{number}" for number in range(40)]
        things = [{"name": name, "model": "untyped"} for name in names]
        assert api.post("/v1/things/batch", json={"things": things}).status_code < 300

        def coordinator() -> dict[str, Any]:
            processes = api.get("/v1/cluster").json()["processes"]
            return next(each for each in processes if each["role"] == "job_coordinator")

        create(iot, "fan-out", *names, jobExecutionsRolloutConfig={"maximumPerMinute": 600})

        def given() -> int:
            details = iot.describe_job(jobId="fan-out")["job"]["jobProcessDetails"]
            return int(details["numberOfQueuedThings"])

        until(lambda: given() > 0, "the first things have the job")
        former = coordinator()["pid"]
        os.kill(former, signal.SIGKILL)
        until(lambda: given() == len(names), "all things have the job", timeout_s=90)
        until(
            lambda: coordinator()["pid"] != former and coordinator()["state"] == "ready", "a new coordinator"
        )
        iot.cancel_job(jobId="fan-out")
        until(lambda: given() == 0, "all executions are cancelled")
        iot.delete_job(jobId="fan-out")
