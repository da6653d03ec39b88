"""Many things at once: from a file through the command's own code into a gateway, again and again."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from actors.gateway.server import HttpServer
from actors.pki import generate_key_and_csr
from tests.integration.running_gateway import TOKEN, Gateway, assert_problem
from twinfleet.bulk_creation import Credentials, Tally, create_from_file
from twinfleet.bulk_progress import progress_for
from twinfleet.client import Document, OperatorClient
from twinfleet.errors import FilesInTheWay, PlatformUnreachable, UsageFault
from twinfleet.things_file import ThingsFile


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[OperatorClient]:
    server = HttpServer(gateway.app, port=0, option="--api-port")
    await server.start()
    yield OperatorClient(server.url, TOKEN)
    await server.stop()


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client() as opened:
        yield opened


def write_things(path: Path, count: int, *, site: str = "ber") -> Path:
    rows = "".join(f"lamp-{number:05d},untyped,{site},{number % 7}\n" for number in range(count))
    path.write_text(f"name,model,attributes.site,floor\n{rows}")
    return path


async def create(
    client: OperatorClient, path: Path, credentials: Credentials | None = None
) -> tuple[Tally, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    tally = await asyncio.to_thread(
        create_from_file,
        client,
        ThingsFile(path),
        credentials=credentials,
        progress=lambda done, total: told.append((done, total)),
    )
    return tally, told


async def test_a_file_of_things_becomes_things_and_twins(
    gateway: Gateway, client: OperatorClient, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = write_things(tmp_path / "things.csv", 1203)
    tally, told = await create(client, path)
    assert (tally.created_count, tally.present_count, tally.refused_count) == (1203, 0, 0)
    assert (told[0], told[-1]) == ((0, 1203), (1203, 1203))
    # Batches, not things: this is what makes it quick.
    assert len(told) < 10
    assert await gateway.registry.things.count() == 1203
    described = (await http.get("/v1/things/lamp-00008")).json()
    assert (described["attributes"], described["certificates"]) == ({"site": "ber", "floor": "1"}, [])
    assert (await gateway.fleet.twins_table(["name"])).num_rows == 1203
    assert len(gateway.platform.announced) == 1203
    again, _ = await create(client, path)
    assert (again.created_count, again.present_count, again.refused_count) == (0, 1203, 0)


async def test_a_run_that_was_cut_off_goes_on_and_tells_what_differs(
    client: OperatorClient, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await create(client, write_things(tmp_path / "first.csv", 600))
    path = write_things(tmp_path / "things.csv", 1100)
    lines = path.read_text().splitlines()
    lines[8] = "lamp-00007,untyped,paris,0"
    path.write_text("\n".join(lines))
    tally, _ = await create(client, path)
    assert (tally.created_count, tally.present_count, tally.refused_count) == (500, 599, 1)
    (refused,) = tally.refused
    assert (refused["line"], refused["thing_name"]) == (9, "lamp-00007")
    assert "registered already" in refused["detail"]
    # What is there stays as it is.
    assert (await http.get("/v1/things/lamp-00007")).json()["attributes"]["site"] == "ber"


async def test_keys_are_made_here_and_certificates_written_beside_them(
    gateway: Gateway, client: OperatorClient, tmp_path: Path
) -> None:
    path = write_things(tmp_path / "things.csv", 30)
    directory = tmp_path / "keys"
    credentials = Credentials(directory, gateway.authority.certificate_pem())
    tally, _ = await create(client, path, credentials)
    assert tally.created_count == 30
    thing = await gateway.registry.things.get("lamp-00003")
    (certificate,) = await gateway.registry.certificates.of_thing(thing)
    assert (directory / "lamp-00003.pem").read_text() == certificate.pem
    assert (directory / "lamp-00003.key").stat().st_mode & 0o777 == 0o600
    assert (directory / "ca.pem").read_text() == gateway.authority.certificate_pem()
    # 30 of each, and the authority's: nothing temporary is left.
    assert len(list(directory.iterdir())) == 61
    # The answer was lost: the key is there, the certificate is not.
    (directory / "lamp-00004.pem").unlink()
    again, _ = await create(client, path, credentials)
    assert (again.created_count, again.present_count, again.refused_count) == (0, 30, 0)
    assert "BEGIN CERTIFICATE" in (directory / "lamp-00004.pem").read_text()
    # The key is lost: no certificate fits another one.
    (directory / "lamp-00005.pem").unlink()
    (directory / "lamp-00005.key").unlink()
    again, _ = await create(client, path, credentials)
    assert [refused["thing_name"] for refused in again.refused] == ["lamp-00005"]
    with pytest.raises(FilesInTheWay, match="another platform"):
        await create(client, path, Credentials(directory, "another authority"))


async def test_things_without_certificates_get_them_when_they_are_asked_for_later(
    gateway: Gateway, client: OperatorClient, tmp_path: Path
) -> None:
    path = write_things(tmp_path / "things.csv", 3)
    await create(client, path)
    directory = tmp_path / "keys"
    tally, _ = await create(client, path, Credentials(directory, gateway.authority.certificate_pem()))
    assert (tally.present_count, tally.refused_count) == (3, 0)
    thing = await gateway.registry.things.get("lamp-00001")
    (certificate,) = await gateway.registry.certificates.of_thing(thing)
    assert (directory / "lamp-00001.pem").read_text() == certificate.pem


async def test_no_device_takes_the_place_of_the_authoritys_certificate(
    gateway: Gateway, client: OperatorClient, tmp_path: Path
) -> None:
    path = tmp_path / "things.csv"
    path.write_text("name\na\nca\n")
    with pytest.raises(UsageFault, match=r"things.csv:3: .*authority"):
        await create(client, path, Credentials(tmp_path / "keys", gateway.authority.certificate_pem()))
    assert await gateway.registry.things.count() == 0
    # Without files there is nothing in its way.
    assert (await create(client, path))[0].created_count == 2


async def test_types_and_groups_of_a_file_must_exist_before_anything_is_sent(
    gateway: Gateway, client: OperatorClient, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = tmp_path / "things.csv"
    path.write_text("name,thing_type,groups\na,,\nb,thermostat,hall; attic\nc,thermostat,hall\n")
    with pytest.raises(UsageFault) as fault:
        await create(client, path)
    assert str(fault.value).splitlines() == [
        f"{path}:3: there is no thing type 'thermostat'; create it first",
        f"{path}:3: there is no thing group 'hall'; create it first",
        f"{path}:3: there is no thing group 'attic'; create it first",
        "nothing was sent",
    ]
    assert await gateway.registry.things.count() == 0
    for place in ("/thing-types/thermostat", "/thing-groups/hall", "/thing-groups/attic"):
        assert (await http.post(place, json={})).status_code == 200
    tally, _ = await create(client, path)
    assert tally.created_count == 3
    thing = await gateway.registry.things.get("b")
    assert (thing.model, thing.thing_type, thing.groups) == ("thermostat", "thermostat", ["attic", "hall"])
    assert await gateway.registry.things.members(["hall"]) == ["b", "c"]


class _CutOff(OperatorClient):
    """A client whose platform is gone after a batch that it still carried out."""

    left = 1

    def create_things(self, things: Any) -> Document:
        answer = super().create_things(things)
        self.left -= 1
        if self.left == 0:
            raise PlatformUnreachable("the platform is gone")
        return answer


async def test_a_batch_that_was_carried_out_and_not_answered_is_no_obstacle(
    gateway: Gateway, client: OperatorClient, tmp_path: Path
) -> None:
    path = write_things(tmp_path / "things.csv", 400)
    credentials = Credentials(tmp_path / "keys", gateway.authority.certificate_pem())
    with pytest.raises(PlatformUnreachable):
        await create(_CutOff(client._url.geturl(), TOKEN), path, credentials)
    begun = await gateway.registry.things.count()
    assert 0 < begun < 400
    tally, _ = await create(client, path, credentials)
    assert (tally.created_count, tally.present_count, tally.refused_count) == (400 - begun, begun, 0)
    assert len(list((tmp_path / "keys").glob("*.pem"))) == 401


async def test_a_run_that_is_cut_off_tells_how_far_it_came(
    client: OperatorClient, gateway: Gateway, tmp_path: Path
) -> None:
    path = write_things(tmp_path / "[red]things.csv", 1100)
    gone = _CutOff(client._url.geturl(), TOKEN)
    gone.left = 2
    told = io.StringIO()

    def run() -> None:
        with progress_for(path.name, Console(file=told)) as progress:
            create_from_file(gone, ThingsFile(path), credentials=None, progress=progress)

    with pytest.raises(PlatformUnreachable):
        await asyncio.to_thread(run)
    # Between the two, more lines of a slow run.
    first, *_, last = told.getvalue().splitlines()
    assert first == "[red]things.csv: 0 of 1,100 things"
    assert last == "[red]things.csv: cut off after 500 of 1,100 things; the same command goes on from there"
    # The batch that was not answered was carried out.
    assert await gateway.registry.things.count() == 1000


async def test_a_revoked_certificate_is_not_given_again_as_if_it_were_good(
    client: OperatorClient, gateway: Gateway, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = write_things(tmp_path / "things.csv", 3)
    credentials = Credentials(tmp_path / "keys", gateway.authority.certificate_pem())
    await create(client, path, credentials)
    assert (await http.delete("/v1/things/lamp-00001/certificates")).status_code == 200
    tally, _ = await create(client, path, credentials)
    assert (tally.present_count, tally.refused_count) == (2, 1)
    assert "is revoked; get one for another key" in tally.refused[0]["detail"]
    # Who asks for no certificate has nothing to miss.
    tally, _ = await create(client, path)
    assert (tally.present_count, tally.refused_count) == (3, 0)


async def test_things_that_have_joined_groups_since_are_still_those_of_the_file(
    client: OperatorClient, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = write_things(tmp_path / "things.csv", 3)
    await create(client, path)
    assert (await http.post("/thing-groups/hall", json={})).status_code == 200
    joined = await http.put(
        "/thing-groups/addThingToThingGroup", json={"thingGroupName": "hall", "thingName": "lamp-00001"}
    )
    assert joined.status_code == 200
    tally, _ = await create(client, path)
    assert (tally.present_count, tally.refused_count) == (3, 0)
    path.write_text(
        "name,model,site,floor,groups\nlamp-00001,untyped,ber,1,hall\nlamp-00002,untyped,ber,2,hall\n"
    )
    tally, _ = await create(client, path)
    assert [refused["thing_name"] for refused in tally.refused] == ["lamp-00002"]


# The batch itself


async def test_one_refusal_in_a_batch_stops_no_other(gateway: Gateway, http: httpx.AsyncClient) -> None:
    fleet = {"name": "hall", "model": "thermostat", "count": 10}
    assert (await http.post("/v1/fleets", json=fleet)).status_code == 201
    csr = generate_key_and_csr("").csr_pem
    things: list[dict[str, Any]] = [
        {"name": "good", "csr": csr},
        {"name": "same-key", "csr": csr},
        {"name": "good"},
        {"name": "hall-000003"},
        {"name": "a.b"},
        {"name": "toast", "model": "toaster"},
        {"name": "typed", "thing_type": "nothing"},
        {"name": "grouped", "groups": ["nowhere"]},
        {"name": "no-request", "csr": "x"},
        {"name": "last"},
    ]
    answer = await http.post("/v1/things/batch", json={"things": things})
    results = answer.json()["results"]
    assert [result["thing_name"] for result in results] == [thing["name"] for thing in things]
    told = {result["thing_name"]: result["detail"] for result in results if result["outcome"] == "refused"}
    for name, text in {
        "same-key": "new key",
        "good": "twice",
        "a.b": "thing name",
        "toast": "toaster",
        "typed": "thing type 'nothing'",
        "grouped": "thing group 'nowhere'",
        "no-request": "signing request",
    }.items():
        assert text in told[name], told
    assert [result["outcome"] for result in (results[0], results[-1])] == ["created", "created"]
    # One takes the place of a simulated device.
    assert results[3]["outcome"] == "created"
    assert await gateway.registry.things.count() == 3
    # The key of one in the registry refuses another one, and only that.
    things = [{"name": "thief", "csr": csr}, {"name": "honest"}]
    results = (await http.post("/v1/things/batch", json={"things": things})).json()["results"]
    assert [result["outcome"] for result in results] == ["refused", "created"]
    assert "certified before" in results[0]["detail"]
    # What is refused leaves nothing behind.
    twins = (await gateway.fleet.twins_table(["name", "origin"])).to_pylist()
    assert sorted(twin["name"] for twin in twins if twin["origin"] == "real") == [
        "good",
        "hall-000003",
        "honest",
        "last",
    ]


@pytest.mark.parametrize(
    "body",
    [{}, {"things": []}, {"things": [{"name": "x"}] * 501}, {"things": [{"nome": "x"}]}, {"things": 1}],
)
async def test_a_batch_that_is_none_is_refused_whole(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    refused = await http.post("/v1/things/batch", content=json.dumps(body))
    assert_problem(refused, 400, "InvalidRequestException")


async def test_many_things_are_deleted_with_one_revocation_for_all(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    names = [f"gone-{number}" for number in range(20)]
    things = [{"name": name, "csr": generate_key_and_csr(name).csr_pem} for name in (*names, "stays")]
    assert (await http.post("/v1/things/batch", json={"things": things})).status_code == 200
    reload_count = gateway.platform.reload_count
    answer = await http.post("/v1/things/batch-delete", json={"things": [*names, "never-there", "gone-0"]})
    assert answer.json() == {"deleted": names}
    assert gateway.platform.reload_count == reload_count + 1
    assert await gateway.registry.things.count() == 1
    assert (await gateway.fleet.twins_table(["name"])).to_pylist() == [{"name": "stays"}]
    refused: list[dict[str, Any]] = [{}, {"things": []}, {"things": ["x"] * 501}, {"things": ["a b"]}]
    for body in refused:
        assert (await http.post("/v1/things/batch-delete", json=body)).status_code == 400
