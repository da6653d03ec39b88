"""`twinfleet job`: what many devices are to do, and how far they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from actors.gateway.arns import group_arn, thing_arn
from twinfleet.client import OperatorClient
from twinfleet.documents import compact, parse_duration_s
from twinfleet.errors import UsageFault
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_document, print_line, print_table, time_text

app = typer.Typer(help="Create, list, show, cancel and delete jobs.", rich_markup_mode=None)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of the job.")]
Force = Annotated[bool, typer.Option("--force", help="Also what devices have begun.")]
# As jobs count their executions, in the order of a device's life.
_STATUSES: Final = (
    "Queued",
    "InProgress",
    "Succeeded",
    "Failed",
    "Rejected",
    "TimedOut",
    "Canceled",
    "Removed",
)


@app.command(
    "create",
    epilog=example(
        'twinfleet job create update-7 \'{"operation": "install"}\' --thing lamp-1 --thing lamp-2',
        "twinfleet job create update-7 job.json --group hall --continuous --per-minute 60 --timeout 10m",
    ),
)
def create(
    job: JobId,
    content: Annotated[
        str, typer.Argument(metavar="DOCUMENT", help="What devices get: JSON, or a file that holds it.")
    ],
    *,
    thing: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A thing; may be given again.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A thing group; may be given again.")
    ] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Also for things that join a group later.")
    ] = False,
    per_minute: Annotated[
        int, typer.Option(min=0, metavar="N", help="Things that get it in a minute at most; 0: all at once.")
    ] = 0,
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="How long a device may take once it has begun, as 10m or 2h.")
    ] = "",
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Have things do what a document says, each once."""
    targets = [*map(thing_arn, thing or ()), *map(group_arn, group or ())]
    if not targets:
        raise UsageFault("name at least one --thing or --group")
    body: dict[str, Any] = {
        "targets": targets,
        "document": _document(content),
        "targetSelection": "CONTINUOUS" if continuous else "SNAPSHOT",
    }
    if description:
        body["description"] = description
    if per_minute:
        body["jobExecutionsRolloutConfig"] = {"maximumPerMinute": per_minute}
    if timeout:
        body["timeoutConfig"] = {"inProgressTimeoutInMinutes": max(1, round(parse_duration_s(timeout) / 60))}
    document = OperatorClient.of(data_dir).create_job(job, body)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"job {job} has begun; `twinfleet job show {job}` tells how far it is")


def _document(text: str) -> str:
    if text.lstrip().startswith(("{", "[", '"')):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFault(f"{text!r} is neither JSON nor a file that can be read ({error})") from None


@app.command("list", epilog=example("twinfleet job list"))
def list_jobs(data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """List the jobs."""
    client = OperatorClient.of(data_dir)
    document = client.jobs()
    if output is OutputFormat.JSON:
        print_document(document)
        return
    rows: list[tuple[object, ...]] = []
    while True:
        jobs: list[dict[str, Any]] = document.content["jobs"]
        rows += [
            (each["jobId"], each["status"], each["targetSelection"], time_text(int(each["createdAt"])))
            for each in jobs
        ]
        token = document.content.get("nextToken", "")
        if not token:
            break
        document = client.jobs(token)
    print_table(("JOB", "STATUS", "TARGETS", "CREATED"), rows)


@app.command("show", epilog=example("twinfleet job show update-7"))
def show(job: JobId, data_dir: DataDir = DEFAULT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """Tell what a job is, how far it is, and which things have not succeeded."""
    client = OperatorClient.of(data_dir)
    document = client.job(job)
    if output is OutputFormat.JSON:
        print_document(document)
        return
    found: dict[str, Any] = document.content["job"]
    details: dict[str, int] = found["jobProcessDetails"]
    print_table(
        ("JOB", job),
        [
            ("status", found["status"]),
            ("targets", " ".join(each.rpartition(":")[2] for each in found["targets"])),
            ("created", time_text(int(found["createdAt"]))),
            *((key, compact(found[key])) for key in ("description", "reasonCode", "comment") if key in found),
        ],
    )
    print_line("")
    counts = [(name, details[f"numberOf{name}Things"]) for name in _STATUSES]
    print_table(("EXECUTIONS", "THINGS"), [(name, count) for name, count in counts if count])
    executions: list[dict[str, Any]] = client.job_executions(job).content["executionSummaries"]
    rows = [
        (each["thingArn"].rpartition("/")[2], each["jobExecutionSummary"]["status"])
        for each in executions
        if each["jobExecutionSummary"]["status"] != "SUCCEEDED"
    ]
    if rows:
        print_line("")
        print_table(("THING", "STATUS"), rows)


@app.command("cancel", epilog=example("twinfleet job cancel update-7 --force --comment recalled"))
def cancel(
    job: JobId,
    *,
    force: Force = False,
    comment: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Cancel a job at the devices that have not begun it."""
    document = OperatorClient.of(data_dir).cancel_job(job, force=force, comment=comment)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"job {job} is cancelled" + ("" if force else "; what devices have begun goes on"))


@app.command("delete", epilog=example("twinfleet job delete update-7"))
def delete(
    job: JobId,
    *,
    force: Force = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Delete a job that is over, with all its executions."""
    document = OperatorClient.of(data_dir).delete_job(job, force=force)
    if output is OutputFormat.JSON:
        print_document(document)
    else:
        print_line(f"job {job} is being deleted with all its executions")
