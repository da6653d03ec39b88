"""`twinfleet job` and `twinfleet command` against a gateway on a socket, in this process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.gateway.server import HttpServer
from actors.settings import DataDirectory, Endpoints, MqttsEndpoint, RayEndpoint, UrlEndpoint
from tests.integration.running_gateway import TOKEN, Gateway
from twinfleet.cli import run_command
from twins.messages import Operation, Request

DEADLINE_S = 30.0


class Shell:
    """Runs commands against one gateway, each in a thread, so that the gateway can answer."""

    def __init__(self, gateway: Gateway, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.gateway = gateway
        self._data_dir = data_dir
        self._capsys = capsys

    async def __call__(self, *words: str) -> tuple[int, str, str]:
        """Return exit code, output and errors of a command."""
        code = await asyncio.to_thread(run_command, [*words, "--data-dir", str(self._data_dir)])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
async def shell(gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    """Give a shell on a gateway with two things, a and b."""
    data_dir = tmp_path / "cli"
    directory = DataDirectory(data_dir)
    directory.prepare()
    directory.operator_token_file.write_text(TOKEN)
    server = HttpServer(gateway.app, port=0, option="--api-port")
    await server.start()
    Endpoints(
        pid=os.getpid(),
        version="test",
        mqtts=MqttsEndpoint("127.0.0.1", 1),
        api=UrlEndpoint(server.url),
        metrics=UrlEndpoint(server.url),
        ca="",
        operator_token_file=str(directory.operator_token_file),
        redis=UrlEndpoint(""),
        ray=RayEndpoint("", "", ""),
        https_devices=UrlEndpoint(""),
        snapshots="",
        key_file="",
    ).write(data_dir)
    async with gateway.client() as operator:
        things = [{"name": name, "model": "untyped", "attributes": {"site": "ber"}} for name in "ab"]
        assert (await operator.post("/v1/things/batch", json={"things": things})).status_code == 200
    yield Shell(gateway, data_dir, capsys)
    await server.stop()


async def test_a_job_is_created_shown_cancelled_and_deleted(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"operation": "install"}')
    code, out, _ = await shell(
        "job", "create", "j", str(file), "--thing", "a", "--thing", "b", "--timeout", "10m"
    )
    assert (code, out.split(";")[0]) == (0, "job j has begun")
    coordinator = shell.gateway.platform.coordinator
    await coordinator.step()
    code, out, _ = await shell("job", "show", "j")
    assert code == 0
    assert {"IN_PROGRESS", "Queued", "thing/a", "a", "b"} <= set(out.split())
    code, out, _ = await shell("job", "list")
    assert (code, out.splitlines()[1].split()[:3]) == (0, ["j", "IN_PROGRESS", "SNAPSHOT"])
    code, _, error = await shell("job", "delete", "j")
    assert (code, "cancel it first" in error) == (1, True)
    assert (await shell("job", "cancel", "j", "--comment", "recalled"))[0] == 0
    await coordinator.step()
    code, out, _ = await shell("job", "show", "j", "-o", "json")
    job = json.loads(out)["job"]
    assert (job["status"], job["comment"], job["jobProcessDetails"]["numberOfCanceledThings"]) == (
        "CANCELED",
        "recalled",
        2,
    )
    assert (await shell("job", "delete", "j"))[0] == 0
    await coordinator.step()
    assert (await shell("job", "show", "j"))[0] == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("job", "create", "j", "{}"), "name at least one --thing or --group"),
        (("job", "create", "j", "no-such-file", "--thing", "a"), "neither JSON nor a file"),
        (("job", "create", "j", "{}", "--thing", "a", "--timeout", "soon"), "no duration"),
        (("command", "send", "a"), "NAME ACTION [JSON]"),
        (("command", "send", "a", "blink", "{"), "is not JSON"),
        (("command", "send", "--query", "*", "blink", "{}", "more"), "ACTION [JSON] after --query"),
    ],
)
def test_what_is_typed_wrongly_is_told(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], problem: str
) -> None:
    # Before any platform is looked for.
    code = run_command(words)
    error = capsys.readouterr().err
    assert (code, problem in error) == (2, True), error


async def test_a_command_is_sent_and_its_answer_printed(shell: Shell) -> None:
    async def answer(status: str) -> None:
        """Answer as the device does, once the command is there."""
        fleet = shell.gateway.fleet
        found: list[str] = []
        async with asyncio.timeout(DEADLINE_S), shell.gateway.client() as operator:
            while not found:
                # Nothing else here gives the event loop to the one that sends.
                await asyncio.sleep(0.02)
                listed = (await operator.get("/v1/commands/a")).json()["executions"]
                found = [each["executionId"] for each in listed if each["status"] == "CREATED"]
        body = {"status": status, "statusReason": {"reasonCode": "BLINKED"}, "result": {"n": {"s": "3"}}}
        request = Request(Operation.COMMAND_ANSWER, "a", json.dumps(body).encode(), found[0], is_direct=True)
        assert (await fleet.ask(request)).status == 200

    sent = asyncio.create_task(shell("command", "send", "a", "blink", '{"times": 3}', "--timeout", "10m"))
    await answer("SUCCEEDED")
    code, out, _ = await sent
    assert code == 0
    assert {"SUCCEEDED", "BLINKED", "3"} <= set(out.split())
    sent = asyncio.create_task(shell("command", "send", "a", "blink", "--timeout", "10m", "-o", "json"))
    await answer("REJECTED")
    code, out, _ = await sent
    assert (code, json.loads(out)["status"]) == (1, "REJECTED")
    code, out, _ = await shell("command", "list", "a")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[1], row[2]) for row in rows] == [("blink", "REJECTED"), ("blink", "SUCCEEDED")]
    code, out, _ = await shell("command", "show", "a", rows[1][0])
    assert (code, "SUCCEEDED" in out) == (0, True)


async def test_a_command_goes_to_all_that_a_query_asks_for(shell: Shell) -> None:
    code, out, _ = await shell(
        "command", "send", "--query", "attributes.site:ber", "reboot", "--timeout", "1h"
    )
    assert (code, out.strip()) == (0, "sent to 2 things")
    code, _, error = await shell("command", "send", "nobody", "reboot")
    assert (code, "nothing was sent" in error) == (1, True)
