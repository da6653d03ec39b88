"""`twinfleet twin`: look at a twin and steer it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinfleet.client import Document, OperatorClient
from twinfleet.documents import (
    changes,
    compact,
    connectivity_words,
    described_shadow,
    flatten,
    parse_assignments,
    shadow_rows,
)
from twinfleet.errors import Refused
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table, time_text

# Quick enough to watch a device obey, and nothing to a platform.
_POLL_S: Final = 0.5

app = typer.Typer(help="Look at twins and steer them.", rich_markup_mode=None)

ThingName = Annotated[str, typer.Argument(metavar="NAME", help="The thing's name.")]
ShadowName = Annotated[str, typer.Option("--shadow", metavar="S", help="A named shadow; else the classic.")]


@app.command("get", epilog=example("twinfleet twin get lamp-1 --shadow config -o json"))
def get(
    name: ThingName,
    *,
    shadow: ShadowName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show a twin's shadow: what is desired, what the device reported, where they differ (*)."""
    _print_shadow(OperatorClient.of(data_dir).shadow(name, shadow), name, output)


@app.command("describe", epilog=example("twinfleet twin describe lamp-1"))
def describe(
    name: ThingName, *, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Show all that a twin is: model, attributes, connection, every shadow, and what the device says of itself."""
    document = OperatorClient.of(data_dir).twin(name)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    twin = document.content
    attributes = "".join(f"  {key}={value}" for key, value in twin["attributes"].items())
    print_line(f"{name}  {twin['origin']} {twin['model']}{attributes}")
    words, since_s = connectivity_words(twin["connectivity"])
    print_line(words if since_s is None else f"{words} since {time_text(since_s)}")
    if twin["pin"]:
        print_line(f"pinned to {twin['pin']['behavior']}")
    shadows = {"shadow": twin["shadow"]} if twin["shadow"] else {}
    shadows |= {f"shadow {key}": shadow for key, shadow in twin["namedShadows"].items()}
    for title, shadow in shadows.items():
        print_line("")
        print_line(f"{title}  version {shadow['version']}")
        _print_fields(described_shadow(shadow))
    if twin["defender"]:
        report = dict(twin["defender"])
        print_line("")
        print_line(f"device metrics  received {time_text(report.pop('received_at'))}")
        print_table(("FIELD", "VALUE"), [(path, compact(value)) for path, value in flatten(report)])


@app.command(
    "set",
    epilog=example("twinfleet twin set lamp-1 set_point=21.5 mode.night=true label=hall old_field=null"),
)
def set_desired(
    name: ThingName,
    fields: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help="What is desired.")],
    *,
    shadow: ShadowName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Set what is desired of a device; it hears of the difference at once, or when it connects.

    Values are JSON where they can be read so, else text; null removes a field; dots make objects in objects.
    """
    desired = parse_assignments(fields)
    document = OperatorClient.of(data_dir).update_desired(name, desired, shadow)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"{name}: accepted as version {document.content['version']}")


@app.command("give-back", epilog=example("twinfleet twin give-back hall-000017"))
def give_back(
    name: ThingName, *, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Give a simulated device's place back that a real device has taken over; the simulation goes on from there.

    The next time that the real device connects it takes the place over again, unless it has been deleted.
    """
    document = OperatorClient.of(data_dir).give_back(name)
    _print_done(document, f"{name}: simulated again", output)


@app.command("pin", epilog=example("twinfleet twin pin hall-000017 --behavior heating:Boiler"))
def pin(
    name: ThingName,
    *,
    behavior: Annotated[
        str,
        typer.Option(metavar="MODULE:CLASS", help="The Python class that plays the device; see the README."),
    ] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give one twin a process of its own, in which a Python class plays its device; its shadow goes on.

    Without --behavior the device does at once what is desired of it.
    """
    document = OperatorClient.of(data_dir).pin(name, behavior)
    text = f"{name}: pinned to {document.content['behavior']}; `twinfleet status` tells how it fares"
    _print_done(document, text, output)


@app.command("unpin", epilog=example("twinfleet twin unpin hall-000017"))
def unpin(
    name: ThingName, *, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE
) -> None:
    """Fold a pinned twin back into its shard; a simulated device goes on from what was reported last."""
    document = OperatorClient.of(data_dir).unpin(name)
    _print_done(document, f"{name}: pinned no more", output)


@app.command("watch", epilog=example("twinfleet twin watch lamp-1 --count 3"))
def watch(
    name: ThingName,
    *,
    shadow: ShadowName = "",
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after N versions.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Print each new version of a twin's shadow with what changed, until Ctrl-C.

    It looks twice a second; of versions that follow faster, it shows the last.
    """
    before: dict[str, Any] = {}
    for document in itertools.islice(_versions(data_dir, name, shadow), count):
        if output is OutputFormat.JSON:
            print_document(document)
        else:
            content = document.content
            print_line(f"{time_text(content['timestamp'])}  version {content['version']}")
            for line in changes(before, content):
                print_line(f"  {line}")
            before = content


def _versions(data_dir: Path, name: str, shadow: str) -> Iterator[Document]:
    """Give each version of the shadow that is seen, beginning with the present one; never ends by itself."""
    client = OperatorClient.of(data_dir)
    seen: int | None = None
    while True:
        try:
            document = client.shadow(name, shadow)
        except Refused as refusal:
            # A shadow may come, go and come again while somebody watches for it.
            if refusal.status != 404:
                raise
        else:
            if document.content["version"] != seen:
                seen = document.content["version"]
                yield document
        time.sleep(_POLL_S)


def _print_done(document: Document, text: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(text)


def _print_shadow(document: Document, name: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_document(document)
        return
    content = document.content
    print_line(f"{name}  version {content['version']}  at {time_text(content['timestamp'])}")
    _print_fields(content)


def _print_fields(content: Mapping[str, Any]) -> None:
    rows = [
        (path, desired, reported, time_text(int(at)) if at.isdigit() else at, differs)
        for path, desired, reported, at, differs in shadow_rows(content)
    ]
    print_table(("FIELD", "DESIRED", "REPORTED", "REPORTED AT", ""), rows)
