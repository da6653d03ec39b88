"""`twinfleet audit`: an independent client holds the platform to what it accepted."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from actors.errors import WorldError
from twinfleet.documents import parse_duration_s
from twinfleet.errors import PlatformUnreachable, UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_json, print_line

if TYPE_CHECKING:
    from scenarios.auditor import AuditResult

app = typer.Typer(help="Drive load and check that nothing accepted was lost.", rich_markup_mode=None)

_CONTRADICTED: Final = 1


@app.command(
    "run",
    epilog=example(
        "twinfleet audit run",
        "twinfleet audit run --things 20 --duration 5m --rate 200 --history audit.jsonl",
    ),
)
def run(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    *,
    things: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="How many devices.")] = 4,
    duration: Annotated[str, typer.Option(metavar="DURATION", help="How long the load lasts.")] = "30s",
    rate: Annotated[
        float, typer.Option(min=1, max=1000, metavar="R", help="Operations a second, of all together.")
    ] = 40.0,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the history goes (default: a new file).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="What the clients draw from.")] = 0,
    settle: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it may take until all is quiet.")
    ] = "60s",
    other: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="FILE", help="A history of somebody else, to be judged together."),
    ] = None,
    keep_things: Annotated[
        bool, typer.Option("--keep-things", help="Leave the devices in the platform.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Drive devices over MQTT and operators over HTTP, and check what they were told: nothing accepted is lost.

    Whatever you do to the platform meanwhile, it must hold. Ctrl-C ends the load early; what was sent until then is
    judged. Exit codes: 0 it held, 1 a contradiction, whose history is printed, 3 no platform, or none that can be read
    at the end.
    """
    # Imported here, because the MQTT client need not be waited for by other commands.
    from scenarios.auditor import AuditSettings, audit  # noqa: PLC0415
    from scenarios.interruption import interruptible  # noqa: PLC0415

    if history is None:
        history = Path(tempfile.mkdtemp(prefix="twinfleet-audit-")) / "history.jsonl"
    elif history.exists() and history.stat().st_size:
        raise UsageFault(f"{history} holds a history already; name a new file")
    settings = AuditSettings(
        data_dir,
        history,
        thing_count=things,
        duration_s=parse_duration_s(duration),
        rate=rate,
        seed=seed,
        settle_s=parse_duration_s(settle),
        others=tuple(other or ()),
        keeps_things=keep_things,
    )

    async def main() -> AuditResult:
        with interruptible() as interrupt:
            return await audit(settings, interrupt, _tell)

    try:
        result = asyncio.run(main())
    except WorldError as error:
        raise PlatformUnreachable(f"{error}; the history is in {history}") from None
    if output is OutputFormat.JSON:
        print_json(msgspec.to_builtins(result))
    else:
        counts = f"{result.accepted:,} accepted, {result.refused:,} refused, {result.unknown:,} unknown"
        print_line(f"{result.operations:,} operations of {result.things} things: {counts}")
        print_line(f"history: {result.history}")
        _print_verdict(result.contradiction)
    if result.contradiction:
        raise typer.Exit(_CONTRADICTED)


@app.command("check", epilog=example("twinfleet audit check audit.jsonl"))
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Histories, judged together.")],
) -> None:
    """Judge histories that were written before; several are put together by time.

    Exit codes: 0 it held, 1 a contradiction, whose history is printed.
    """
    from scenarios.auditor import judge  # noqa: PLC0415

    try:
        found = judge(files)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageFault(f"no history: {error}") from None
    _print_verdict(str(found or ""))
    if found is not None:
        raise typer.Exit(_CONTRADICTED)


def _print_verdict(contradiction: str) -> None:
    for line in (f"contradiction: {contradiction}" if contradiction else "no contradiction").splitlines():
        print_line(line)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
