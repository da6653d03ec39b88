"""The commands against a real gateway: what operators type, what they read, what lies on the disk afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import shlex
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from actors.gateway.server import HttpServer
from actors.settings import (
    DataDirectory,
    Endpoints,
    MqttsEndpoint,
    RayEndpoint,
    UrlEndpoint,
    write_atomically,
)
from actors.store import RedisServer
from tests.integration.running_gateway import BEARER, TOKEN, Gateway, open_gateway
from tests.running_store import running_store
from twinfleet.cli import run_command
from twins.messages import Connectivity, Operation, Request
from twins.shadow import encode_json

DEADLINE_S = 20.0
_PREFIXES = (f"commands{number}:" for number in itertools.count())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@dataclasses.dataclass(frozen=True)
class Terminal:
    """Where commands are typed: beside a platform that has a gateway and nothing else."""

    gateway: Gateway
    url: str
    data_dir: Path
    capsys: pytest.CaptureFixture[str]

    async def type(self, command: str) -> tuple[int, str, str]:
        """Return exit code, output and errors of a command, typed without `twinfleet` and the data directory."""
        arguments = [*shlex.split(command), "--data-dir", str(self.data_dir)]
        # In a thread, because the gateway that answers runs in this one.
        async with asyncio.timeout(DEADLINE_S):
            code = await asyncio.to_thread(run_command, arguments)
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
async def terminal(
    store: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Terminal]:
    data_dir = tmp_path / "platform"
    monkeypatch.chdir(tmp_path)
    async with open_gateway(store.url, data_dir, prefix=next(_PREFIXES)) as gateway:
        server = HttpServer(gateway.app, port=0, option="--api-port")
        await server.start()
        directory = DataDirectory(data_dir)
        write_atomically(directory.operator_token_file, TOKEN.encode() + b"\n")
        Endpoints(
            pid=os.getpid(),
            version="0",
            mqtts=MqttsEndpoint("127.0.0.1", 8883),
            api=UrlEndpoint(server.url),
            metrics=UrlEndpoint(f"{server.url}/metrics"),
            ca=str(gateway.authority.ca_file),
            operator_token_file=str(directory.operator_token_file),
            redis=UrlEndpoint(store.url),
            ray=RayEndpoint("", "", ""),
        ).write(data_dir)
        yield Terminal(gateway, server.url, data_dir, capsys)
        await server.stop()


async def test_a_device_is_created_with_files_that_serve(terminal: Terminal, tmp_path: Path) -> None:
    code, out, err = await terminal.type("device create lamp --attribute room=hall --out keys")
    assert (code, err) == (0, "")
    keys = tmp_path / "keys"
    assert sorted(path.name for path in keys.iterdir()) == ["ca.pem", "lamp.key", "lamp.pem"]
    assert (keys / "lamp.key").stat().st_mode & 0o777 == 0o600
    # Key and certificate belong together, and the authority has signed it.
    ssl.create_default_context(cafile=str(keys / "ca.pem")).load_cert_chain(
        keys / "lamp.pem", keys / "lamp.key"
    )
    certificate = x509.load_pem_x509_certificate((keys / "lamp.pem").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((keys / "ca.pem").read_bytes()))
    assert "8883" in out
    code, out, _ = await terminal.type("device describe lamp")
    assert (code, "room=hall" in out, "ACTIVE" in out, "thermostat" in out) == (0, True, True, True)


async def test_a_refused_device_leaves_no_files(terminal: Terminal, tmp_path: Path) -> None:
    code, out, err = await terminal.type("device create lamp --model toaster --out keys")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "toaster" in err
    assert list((tmp_path / "keys").iterdir()) == []
    code, _, err = await terminal.type("device create a.b --out keys")
    assert (code, "thing name" in err) == (1, True)


async def test_files_in_the_way_register_nothing(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "lamp.key").write_text("precious")
    code, _, err = await terminal.type("device create lamp --out .")
    assert (code, "lamp.key" in err) == (1, True)
    code, out, _ = await terminal.type("device list -o json")
    assert (code, json.loads(out)) == (0, {"things": []})


async def test_devices_are_listed_in_pages_and_deleted(terminal: Terminal) -> None:
    for name in ("lamp-2", "lamp-1", "lamp-3"):
        await terminal.type(f"device create {name} --out {name}")
    code, out, _ = await terminal.type("device list --limit 2")
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "lamp-1", "lamp-2", "more"]
    _, out, _ = await terminal.type("device list --limit 2 --cursor lamp-2 -o json")
    assert [thing["thing_name"] for thing in json.loads(out)["things"]] == ["lamp-3"]
    assert (await terminal.type("device delete lamp-2"))[0] == 0
    code, _, err = await terminal.type("device describe lamp-2")
    assert (code, "lamp-2" in err, err.count("\n")) == (1, True, 1)


async def test_a_twin_is_set_and_got_and_json_is_the_wires(terminal: Terminal) -> None:
    code, out, _ = await terminal.type("twin set a:b set_point=21.5 mode.night=true --shadow config")
    assert (code, "version 1" in out) == (0, True)
    code, out, _ = await terminal.type("twin get a:b --shadow config -o json")
    async with httpx.AsyncClient(base_url=terminal.url, headers=BEARER) as client:
        wire = await client.get("/things/a%3Ab/shadow?name=config")
    shown, told = json.loads(out), wire.json()
    assert out.count("\n") == 1
    # Only the clock may have moved between the two.
    assert shown | {"timestamp": 0} == told | {"timestamp": 0}
    assert list(shown) == list(told)
    code, out, _ = await terminal.type("twin get a:b --shadow config")
    fields = {line.split()[0]: line.split() for line in out.splitlines()[2:]}
    assert fields["set_point"] == ["set_point", "21.5", "-", "-", "*"]
    assert fields["mode.night"][1] == "true"
    code, _, err = await terminal.type("twin get a:b")
    assert (code, "No shadow exists" in err) == (1, True)


async def test_a_twin_is_described_in_words_and_as_the_api_does(terminal: Terminal) -> None:
    assert (await terminal.type("device create hall:1 --attribute room=hall --out hall"))[0] == 0
    code, out, _ = await terminal.type("twin describe hall:1")
    assert (code, out) == (0, "hall:1  real thermostat  room=hall\nnever connected\n")
    fleet = terminal.gateway.fleet
    await fleet.twin("hall:1").update_desired({"set_point": 21})
    await fleet.twin("hall:1").update_desired({"mode": "eco"}, shadow_name="config")
    lost = Connectivity(False, 1_700_000_000_000, "CONNECTION_LOST", "s", 4)
    report = b'{"hed":{"rid":7,"v":"1.0"},"met":{"ns":{"bi":5}}}'
    for request in (
        Request(Operation.CONNECTIVITY, "hall:1", encode_json(lost)),
        Request(Operation.DEFENDER, "hall:1", report, "json"),
    ):
        assert (await fleet.ask(request)).status == 200
    code, out, _ = await terminal.type("twin describe hall:1")
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["disconnected", "(connection", "lost)", "since", "2023-11-14", "22:13:20Z"]
    assert ["set_point", "21", "-", "-", "*"] in lines
    assert ["shadow", "config", "version", "1"] in lines
    assert ["metrics.network_stats.bytes_in", "5"] in lines
    code, out, _ = await terminal.type("twin describe hall:1 -o json")
    async with terminal.gateway.client() as client:
        wire = (await client.get("/v1/twins/hall%3A1")).json()
        missing = await client.get("/v1/twins/nobody")
    assert json.loads(out) | {"timestamp": 0} == wire | {"timestamp": 0}
    assert wire["connectivity"]["session"] == "s"
    assert (missing.status_code, missing.json()["message"]) == (404, "No twin exists with name: 'nobody'")
    code, _, err = await terminal.type("twin describe nobody")
    assert (code, "nobody" in err) == (1, True)


async def test_watching_shows_each_version_with_what_changed(terminal: Terminal) -> None:
    await terminal.gateway.fleet.twin("lamp").update_desired({"set_point": 20})
    watching = asyncio.create_task(terminal.type("twin watch lamp --count 2"))

    async def first_is_shown() -> str:
        shown = ""
        async with asyncio.timeout(DEADLINE_S):
            while "version 1" not in shown:
                await asyncio.sleep(0.01)
                shown += terminal.capsys.readouterr().out
        return shown

    shown = await first_is_shown()
    await terminal.gateway.fleet.twin("lamp").update_desired({"set_point": 22})
    code, out, _ = await watching
    shown += out
    assert code == 0
    assert "desired.set_point = 20\n" in shown
    assert "desired.set_point = 22 (was 20)" in shown


async def test_what_a_device_reports_cannot_steer_the_terminal(terminal: Terminal) -> None:
    await terminal.gateway.fleet.twin("lamp").update_desired({"\x1b[2Jfield": "x\x1b]0;title\x07"})
    _, out, _ = await terminal.type("twin get lamp")
    assert "\x1b" not in out
    assert "\x07" not in out


async def test_a_standing_fleet_is_created_listed_and_deleted(terminal: Terminal) -> None:
    code, out, _ = await terminal.type(
        "fleet create hall --model thermostat --count 40 --report-every 1m --seed 3"
    )
    assert (code, "hall-{i:06d}" in out) == (0, True)
    _, out, _ = await terminal.type("fleet list")
    assert out.splitlines()[1].split()[:6] == ["hall", "thermostat", "40", "hall-{i:06d}", "60s", "3"]
    code, out, _ = await terminal.type("device describe hall-000039")
    assert (code, "simulated in fleet hall" in out) == (0, True)
    code, _, err = await terminal.type("fleet create hall --count 40")
    assert (code, "exists already" in err) == (1, True)
    assert (await terminal.type("fleet delete hall"))[0] == 0
    assert json.loads((await terminal.type("fleet list -o json"))[1]) == {"fleets": []}


async def test_status_shows_processes_and_where_to_connect(terminal: Terminal) -> None:
    terminal.gateway.platform.readiness_reasons = ("it is away",)
    code, out, _ = await terminal.type("status")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["gateway", "1", "ready"]
    assert "mqtts://127.0.0.1:8883" in out
    assert "not ready: broker: it is away" in out
    code, out, _ = await terminal.type("status -o json")
    assert json.loads(out)["processes"][0]["role"] == "gateway"


async def test_a_platform_that_does_not_answer_is_unreachable(terminal: Terminal) -> None:
    endpoints = Endpoints.read(terminal.data_dir)
    # Port 1 is reserved and nobody listens there.
    dataclasses.replace(endpoints, api=UrlEndpoint("http://127.0.0.1:1")).write(terminal.data_dir)
    code, out, err = await terminal.type("twin get lamp")
    assert (code, out, err.count("\n")) == (3, "", 1)


async def test_a_wrong_token_is_a_refusal_that_names_the_file(terminal: Terminal) -> None:
    write_atomically(DataDirectory(terminal.data_dir).operator_token_file, b"another token")
    code, _, err = await terminal.type("device list")
    assert (code, "operator_token_file" in err) == (1, True)


async def test_questions_in_sql_are_answered_in_each_form(terminal: Terminal) -> None:
    for name, temperature in (("lamp-1", 21), ("lamp-2", 22.5)):
        state = encode_json({"state": {"reported": {"temperature": temperature}}})
        register = Request(Operation.REGISTER, name, b'{"model": "thermostat"}')
        await terminal.gateway.fleet.ask_many([register, Request(Operation.SHADOW_UPDATE, name, state)])
    ask = 'sql "select name, reported_temperature as t, connected from twins order by name" --timeout 20'
    code, out, err = await terminal.type(ask)
    assert (code, err) == (0, "")
    heading, *rows, age = out.splitlines()
    assert heading.split() == ["name", "t", "connected"]
    assert [row.split() for row in rows] == [["lamp-1", "21.0"], ["lamp-2", "22.5"]]
    assert age.startswith("2 rows, ")
    assert age.endswith(" ms old")
    assert (await terminal.type(f"{ask} -o csv"))[1] == "name,t,connected\nlamp-1,21.0,\nlamp-2,22.5,\n"
    assert json.loads((await terminal.type(f"{ask} -o json"))[1])["rows"][1] == ["lamp-2", 22.5, None]
    code, out, err = await terminal.type('sql "select nme from twins"')
    assert (code, out) == (1, "")
    assert "nme" in err
    code, out, err = await terminal.type('sql "select * from range(3)" --rows 2')
    assert (code, "more than 2 rows" in err) == (1, True)


async def test_a_fleet_query_is_answered_in_words_and_as_the_api_does(terminal: Terminal) -> None:
    for number in range(4):
        name = f"lamp-{number}"
        state = encode_json({"state": {"reported": {"temperature": 20.5 + number}}})
        register = Request(Operation.REGISTER, name, b'{"model": "thermostat"}')
        await terminal.gateway.fleet.ask_many([register, Request(Operation.SHADOW_UPDATE, name, state)])
    field = "shadow.reported.temperature"
    code, out, err = await terminal.type(f"query '{field}>21' --of {field} --by model --names 2")
    assert (code, err) == (0, "")
    assert out.startswith("3 twins, ")
    words = out.split()
    assert words[words.index("min") + 1] == "21.5"
    assert words[words.index("p50") + 1] == "22.5"
    assert words[words.index("thermostat") + 1] == "3"
    assert words[-2:] == ["lamp-1", "lamp-2"]
    document = json.loads((await terminal.type(f"query '{field}>21' -o json"))[1])
    assert (document["count"], len(document["shards"])) == (3, 4)
    code, out, err = await terminal.type("query 'temperature>21'")
    assert (code, out) == (1, "")
    assert "column 1" in err
