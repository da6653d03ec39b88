"""Jobs and commands over HTTP on a gateway: stock boto3 on both planes, commands by query, SQL, and the streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from actors.gateway.arns import command_arn, group_arn, thing_arn
from actors.gateway.server import HttpServer
from tests.integration.boto3_clients import boto3_client, refusal
from tests.integration.running_gateway import Gateway, assert_problem
from twins.messages import Operation, Request

DOCUMENT = '{"operation":"install"}'


class Site:
    """A gateway on a socket with two clients of an operator, and what its job coordinator does in its turns."""

    def __init__(self, gateway: Gateway, url: str, key: dict[str, Any]) -> None:
        self.gateway = gateway
        self.iot, self.data = (boto3_client(each, url, key) for each in ("iot", "iot-jobs-data"))
        self._url = url

    async def ask(self, operation: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(getattr(self.iot, operation), **arguments)

    async def device(self, operation: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(getattr(self.data, operation), **arguments)

    async def refused(self, operation: str, **arguments: Any) -> tuple[int, str]:
        client = self.data if hasattr(self.data, operation) and "jobId" in arguments else self.iot
        if operation.startswith(("create", "cancel", "delete", "list")):
            client = self.iot
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(getattr(client, operation), **arguments)
        return refusal(caught.value)

    async def create(self, job_id: str, *things: str, **more: Any) -> None:
        targets = [thing_arn(name) for name in things]
        await self.ask("create_job", jobId=job_id, targets=targets, document=DOCUMENT, **more)

    async def step(self) -> None:
        await self.gateway.platform.coordinator.step()


@pytest.fixture
async def site(gateway: Gateway) -> AsyncIterator[Site]:
    """Give a site with three registered things."""
    server = HttpServer(gateway.app, port=0, option="--api-port")
    await server.start()
    async with gateway.client() as operator:
        things = [
            {"name": name, "model": "untyped", "attributes": {"floor": floor}}
            for name, floor in (("a", "1"), ("b", "1"), ("c", "2"))
        ]
        assert (await operator.post("/v1/things/batch", json={"things": things})).status_code == 200
        key = (await operator.post("/v1/keys", json={"name": "jobs", "role": "operator"})).json()
    yield Site(gateway, server.url, key)
    await server.stop()


async def test_stock_boto3_runs_a_job_from_beginning_to_end(site: Site) -> None:
    assert await site.refused("create_job", jobId="j", targets=[thing_arn("x")], document=DOCUMENT) == (
        404,
        "ResourceNotFoundException",
    )
    config = {"timeoutConfig": {"inProgressTimeoutInMinutes": 5}, "description": "over HTTP"}
    await site.create("j", "a", **config)
    again = {"jobId": "j", "targets": [thing_arn("b")], "document": DOCUMENT}
    assert await site.refused("create_job", **again) == (409, "ResourceAlreadyExistsException")
    assert (await site.ask("get_job_document", jobId="j"))["document"] == DOCUMENT
    await site.step()
    pending = await site.device("get_pending_job_executions", thingName="a")
    assert [each["jobId"] for each in pending["queuedJobs"]] == ["j"]
    started = (await site.device("start_next_pending_job_execution", thingName="a"))["execution"]
    assert (started["jobId"], started["jobDocument"], started["versionNumber"]) == ("j", DOCUMENT, 2)
    described = (await site.device("describe_job_execution", thingName="a", jobId="$next"))["execution"]
    assert 0 < described["approximateSecondsBeforeTimedOut"] <= 300
    where = {"jobId": "j", "thingName": "a"}
    assert await site.refused("cancel_job_execution", **where) == (409, "InvalidStateTransitionException")
    assert await site.refused("cancel_job_execution", **where, force=True, expectedVersion=9) == (
        409,
        "VersionConflictException",
    )
    await site.device("update_job_execution", **where, status="SUCCEEDED", statusDetails={"took": "3"})
    assert await site.refused("update_job_execution", **where, status="FAILED") == (
        409,
        "InvalidStateTransitionException",
    )
    assert await site.refused("describe_job_execution", **where) == (410, "TerminalStateException")
    execution = (await site.ask("describe_job_execution", **where))["execution"]
    assert (execution["status"], execution["statusDetails"]) == ("SUCCEEDED", {"detailsMap": {"took": "3"}})
    await site.step()
    job = (await site.ask("describe_job", jobId="j"))["job"]
    assert (job["status"], job["targets"], job["description"]) == ("COMPLETED", [thing_arn("a")], "over HTTP")
    assert job["jobProcessDetails"]["numberOfSucceededThings"] == 1
    await site.ask("delete_job", jobId="j")
    await site.step()
    assert await site.refused("list_job_executions_for_job", jobId="j") == (404, "ResourceNotFoundException")
    assert (await site.ask("list_job_executions_for_thing", thingName="a"))["executionSummaries"] == []


async def test_listings_come_in_pages_and_by_status(site: Site) -> None:
    await site.ask("create_thing_group", thingGroupName="hall")
    for name in "abc":
        await site.ask("add_thing_to_thing_group", thingGroupName="hall", thingName=name)
    for job_id in ("j1", "j2", "j3"):
        await site.ask("create_job", jobId=job_id, targets=[group_arn("hall")], document=DOCUMENT)
    await site.step()
    page = await site.ask("list_jobs", maxResults=2)
    rest = await site.ask("list_jobs", maxResults=2, nextToken=page["nextToken"])
    assert [each["jobId"] for each in page["jobs"] + rest["jobs"]] == ["j1", "j2", "j3"]
    assert "nextToken" not in rest
    page = await site.ask("list_job_executions_for_job", jobId="j1", maxResults=2)
    rest = await site.ask(
        "list_job_executions_for_job", jobId="j1", maxResults=2, nextToken=page["nextToken"]
    )
    arns = [each["thingArn"] for each in page["executionSummaries"] + rest["executionSummaries"]]
    assert arns == [thing_arn(name) for name in "abc"]
    await site.ask("cancel_job_execution", jobId="j2", thingName="b")
    [canceled] = (await site.ask("list_job_executions_for_job", jobId="j2", status="CANCELED"))[
        "executionSummaries"
    ]
    assert canceled["thingArn"] == thing_arn("b")
    [of_thing] = (await site.ask("list_job_executions_for_thing", thingName="b", status="CANCELED"))[
        "executionSummaries"
    ]
    assert of_thing["jobId"] == "j2"
    await site.ask("cancel_job", jobId="j1", comment="recalled", force=True)
    await site.step()
    job = (await site.ask("describe_job", jobId="j1"))["job"]
    assert (job["status"], job["comment"], job["forceCanceled"]) == ("CANCELED", "recalled", True)
    assert job["jobProcessDetails"]["numberOfCanceledThings"] == 3
    await site.ask("delete_job_execution", jobId="j2", thingName="b", executionNumber=1)
    listed = (await site.ask("list_job_executions_for_job", jobId="j2"))["executionSummaries"]
    assert len(listed) == 2


WRONG: tuple[dict[str, Any], ...] = (
    {"targets": []},
    {"targets": ["arn:aws:iot:other:1:thing/a"]},
    {"document": "{"},
    {"document": ""},
    {"targetSelection": "SOME"},
    {"timeoutConfig": {"inProgressTimeoutInMinutes": 10_081}},
    {"jobExecutionsRolloutConfig": {"maximumPerMinute": -1}},
    {"abortConfig": {"criteriaList": [{"failureType": "FAILED"}]}},
    {"jobExecutionsRetryConfig": {"criteriaList": [{"failureType": "FAILED", "numberOfRetries": 11}]}},
    {"schedulingConfig": {"startTime": "2030-01-01T00:00"}},
)


async def test_a_job_described_wrongly_is_refused(site: Site) -> None:
    async with site.gateway.client() as operator:
        for wrong in WRONG:
            body: dict[str, Any] = {"targets": [thing_arn("a")], "document": DOCUMENT, **wrong}
            assert_problem(await operator.put("/jobs/j", json=body), 400, "InvalidRequestException")
        assert (await operator.get("/jobs")).json() == {"jobs": []}


async def test_commands_go_to_one_thing_to_several_and_by_query(site: Site) -> None:
    async with site.gateway.client() as operator:
        body = {"action": "blink", "parameters": {"n": 1}, "thing": "a", "token": "t"}
        [first] = (await operator.post("/v1/commands", json=body)).json()["executions"]
        [again] = (await operator.post("/v1/commands", json=body)).json()["executions"]
        assert (first["executionId"], first["status"]) == (again["executionId"], "CREATED")
        several = await operator.post("/v1/commands", json={"action": "blink", "things": ["a", "b"]})
        assert [each["thingName"] for each in several.json()["executions"]] == ["a", "b"]
        asked = await operator.post("/v1/commands", json={"action": "blink", "query": "attributes.floor:1"})
        assert [each["thingName"] for each in asked.json()["executions"]] == ["a", "b"]
        listed = (await operator.get("/v1/commands/a")).json()["executions"]
        assert (len(listed), listed[-1]["executionId"]) == (3, first["executionId"])
        shown = (await operator.get(f"/v1/commands/a/{first['executionId']}")).json()
        assert (shown["command"], shown["status"]) == ("blink", "CREATED")
        for wrong, status in (
            ({"action": "x"}, 400),
            ({"action": "x", "thing": "a", "query": "*"}, 400),
            ({"action": "", "thing": "a"}, 400),
            ({"action": "x", "thing": "a", "timeout_s": 0}, 400),
            ({"action": "x", "query": "(("}, 400),
            ({"action": "x", "thing": "a", "parameters": "y" * 40_000}, 400),
            ({"action": "x", "thing": "nobody"}, 404),
        ):
            assert (await operator.post("/v1/commands", json=wrong)).status_code == status, wrong
        assert (await operator.get("/v1/commands/a/other")).status_code == 404


async def test_stock_boto3_keeps_commands_and_starts_them(site: Site) -> None:
    payload = {"content": b"\x01\xff", "contentType": "application/cbor"}
    made = await site.ask("create_command", commandId="beep", namespace="AWS-IoT", payload=payload)
    assert made["commandArn"] == command_arn("beep")
    assert await site.refused("create_command", commandId="beep", payload=payload) == (
        409,
        "ConflictException",
    )
    assert (await site.ask("get_command", commandId="beep"))["payload"] == payload
    assert [each["commandId"] for each in (await site.ask("list_commands"))["commands"]] == ["beep"]
    where = {"targetArn": thing_arn("a"), "commandArn": command_arn("beep"), "clientToken": "t"}
    started = await site.device("start_command_execution", **where, executionTimeoutSeconds=60)
    assert (await site.device("start_command_execution", **where)) | {"ResponseMetadata": 0} == (
        started | {"ResponseMetadata": 0}
    )
    answer = {"status": "SUCCEEDED", "result": {"n": {"s": "1"}, "ok": {"b": True}}}
    request = Request(
        Operation.COMMAND_ANSWER, "a", json.dumps(answer).encode(), started["executionId"], is_direct=True
    )
    assert (await site.gateway.fleet.ask(request)).status == 200
    named = {"executionId": started["executionId"], "targetArn": thing_arn("a")}
    found = await site.ask("get_command_execution", **named, includeResult=True)
    assert (found["status"], found["commandArn"]) == ("SUCCEEDED", command_arn("beep"))
    assert found["result"] == {"n": {"S": "1"}, "ok": {"B": True}}
    listed = (await site.ask("list_command_executions", targetArn=thing_arn("a")))["commandExecutions"]
    assert [each["executionId"] for each in listed] == [started["executionId"]]
    await site.ask("delete_command", commandId="beep")
    assert (await site.ask("list_commands"))["commands"] == []


async def test_sql_reads_jobs_and_their_executions(site: Site) -> None:
    await site.create("j", "a", "b")
    await site.step()
    await site.device("update_job_execution", thingName="a", jobId="j", status="FAILED")
    question = "select e.thing, e.status, j.selection from job_executions e join jobs j using (job_id) order by e.thing"
    async with site.gateway.client() as operator:
        answer = await operator.post("/v1/sql", json={"sql": question, "timeout_s": 30})
    assert answer.json()["rows"] == [["a", "FAILED", "SNAPSHOT"], ["b", "QUEUED", "SNAPSHOT"]]


async def test_the_streams_say_who_wanted_what(site: Site) -> None:
    await site.create("j", "a")
    await site.step()
    await site.ask("cancel_job_execution", jobId="j", thingName="a")
    async with site.gateway.client() as operator:
        await operator.post("/v1/commands", json={"action": "blink", "thing": "a"})
    told = {(each["by"], each["action"], each["subject"]) for each in await entries(site, "registry")}
    assert ("jobs", "execution.cancel", "a j") in told
    assert ("operator", "command.send", "blink a") in told
    told = {(each["by"], each["action"], each["subject"]) for each in await entries(site, "jobs:registry")}
    assert ("jobs", "job.create", "j") in told


async def entries(site: Site, name: str) -> list[dict[str, Any]]:
    """Return the entries of a stream of the gateway's own part of the store."""
    jobs = site.gateway.platform.jobs
    client, key = jobs._store.client, jobs._store.key("job")
    prefix = key.removesuffix("jobs:registry:job")
    found: Any = await client.xrange(f"{prefix}{name}")
    return [fields for _, fields in found]
