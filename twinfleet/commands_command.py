"""`twinfleet command`: tell devices to do something now, and see what became of it."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import msgspec
import typer

from twinfleet.client import OperatorClient
from twinfleet.documents import compact, parse_duration_s
from twinfleet.errors import UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_json, print_line, print_table, time_text

app = typer.Typer(help="Send commands to devices, and show what became of them.", rich_markup_mode=None)

ThingName = Annotated[str, typer.Argument(metavar="NAME", help="The name of the thing.")]
# How often it is asked for the answer of a device, and how much longer than the command is good for.
_LOOK_EVERY_S: Final = 0.2
_LONGER_S: Final = 5.0
_OPEN: Final = ("CREATED", "IN_PROGRESS")
_NOT_DONE: Final = 1


@app.command(
    "send",
    epilog=example(
        "twinfleet command send lamp-1 blink '{\"times\": 3}' --timeout 30s",
        "twinfleet command send --query 'attributes.site:berlin' reboot --timeout 1h",
    ),
)
def send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME] ACTION [JSON]", help="The thing (none with --query), what to do, and how."
        ),
    ],
    *,
    timeout: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How long it is good for; a device that comes later never gets it."
        ),
    ] = "10s",
    query: Annotated[str, typer.Option(metavar="QUERY", help="All things that a fleet query asks for.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the answer of the device.")] = True,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Send a command to a device, or to many, and say how it went.

    An offline device gets it when it comes back in time. The exit code is 1 if the device did not succeed.
    """
    timeout_s = parse_duration_s(timeout)
    body: dict[str, Any] = {"timeout_s": timeout_s, **_addressed(words, query)}
    client = OperatorClient.of(data_dir)
    document = client.send_command(body)
    executions: list[dict[str, Any]] = document.content["executions"]
    if query or not wait:
        if output is OutputFormat.JSON:
            print_document(document)
        else:
            _print_sent(executions)
        return
    found = _answer(client, executions[0], timeout_s)
    if output is OutputFormat.JSON:
        print_json(found)
    else:
        _print_execution(found)
    if found["status"] != "SUCCEEDED":
        raise typer.Exit(_NOT_DONE)


def _addressed(words: list[str], query: str) -> dict[str, Any]:
    """Return what the words say: to whom, what to do, and how."""
    names, rest = ([], words) if query else (words[:1], words[1:])
    if not 1 <= len(rest) <= 2:
        order = "ACTION [JSON] after --query" if query else "NAME ACTION [JSON]"
        raise UsageFault(f"type {order}; got {' '.join(words)!r}")
    body: dict[str, Any] = {"query": query} if query else {"thing": names[0]}
    body["action"] = rest[0]
    if len(rest) == 2:
        try:
            body["parameters"] = msgspec.json.decode(rest[1])
        except msgspec.DecodeError as error:
            raise UsageFault(f"{rest[1]!r} is not JSON ({error}); write it as '{{\"times\": 3}}'") from None
    return body


def _answer(client: OperatorClient, sent: dict[str, Any], timeout_s: int) -> dict[str, Any]:
    """Return an execution when it is over, or as it is when that takes too long."""
    deadline_s = time.monotonic() + timeout_s + _LONGER_S
    found = sent
    while found["status"] in _OPEN and time.monotonic() < deadline_s:
        time.sleep(_LOOK_EVERY_S)
        found = client.command(sent["thingName"], sent["executionId"]).content
    return found


def _print_sent(executions: list[dict[str, Any]]) -> None:
    refused = [each for each in executions if each["status"] == "REFUSED"]
    print_line(f"sent to {len(executions) - len(refused)} things")
    for each in refused:
        print_line(f"{each['thingName']}: {each['reason']}")


def _print_execution(found: dict[str, Any]) -> None:
    reason = found["statusReason"] or {}
    rows = [
        ("execution", found["executionId"]),
        ("status", found["status"]),
        *((name, reason[name]) for name in ("reasonCode", "reasonDescription") if name in reason),
        *((f"result {name}", next(iter(value.values()))) for name, value in found["result"].items()),
    ]
    print_table(("COMMAND", found["command"]), rows)


@app.command("list", epilog=example("twinfleet command list lamp-1"))
def list_commands(
    name: ThingName, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """List the commands of a thing, the latest first."""
    document = OperatorClient.of(data_dir).commands(name)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    rows = [
        (
            each["executionId"],
            each["command"],
            each["status"],
            time_text(int(each["createdAt"])),
            (each["statusReason"] or {}).get("reasonCode", "")
            or (compact(each["result"]) if each["result"] else ""),
        )
        for each in document.content["executions"]
    ]
    print_table(("EXECUTION", "COMMAND", "STATUS", "SENT", "REASON OR RESULT"), rows)


@app.command("show", epilog=example("twinfleet command show lamp-1 5b1f3c1e-6a51-4c53-8a39-7d7a2a4f2c11"))
def show(
    name: ThingName,
    execution: Annotated[str, typer.Argument(metavar="EXECUTION", help="The id of the execution.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Tell what became of a command."""
    document = OperatorClient.of(data_dir).command(name, execution)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        _print_execution(document.content)
