"""`twinfleet`: puts the commands together and turns every error into one line and an exit code.

Exit codes: 0 done, 1 refused, 2 typed wrongly, 3 no platform can be reached, 130 interrupted. `run` adds its own, for
what became of the scenario.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from actors.errors import ActorsError, OperatorError, PlatformNotRunning
from twinfleet import (
    __version__,
    commands_audit,
    commands_backup,
    commands_certificate,
    commands_cluster,
    commands_command,
    commands_device,
    commands_fleet,
    commands_job,
    commands_key,
    commands_model,
    commands_platform,
    commands_provisioning,
    commands_query,
    commands_report,
    commands_run,
    commands_scenario,
    commands_twin,
)
from twinfleet.errors import CommandError
from twinfleet.options import example

_USAGE: Final = 2
_REFUSED: Final = 1
_UNREACHABLE: Final = 3
# typer keeps the errors of its parser to itself, but for this one, whose parent is what all of them are.
_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    # Drawing help in boxes costs more start-up time than the commands themselves.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("up", epilog=example("twinfleet up --data-dir /var/lib/twinfleet --mqtt-port 8883"))(
    commands_platform.up
)
app.command("down", epilog=example("twinfleet down --data-dir /var/lib/twinfleet"))(commands_platform.down)
app.command("status", epilog=example("twinfleet status -o json"))(commands_platform.status)
app.add_typer(commands_twin.app, name="twin")
app.add_typer(commands_device.app, name="device")
app.add_typer(commands_certificate.app, name="certificate")
app.add_typer(commands_fleet.app, name="fleet")
app.add_typer(commands_job.app, name="job")
app.add_typer(commands_command.app, name="command")
app.add_typer(commands_model.app, name="model")
app.add_typer(commands_key.app, name="key")
app.add_typer(commands_provisioning.app, name="provisioning")
app.add_typer(commands_cluster.app, name="cluster")
app.add_typer(commands_audit.app, name="audit")
app.add_typer(commands_backup.app, name="backup")
app.command(
    "sql",
    epilog=example(
        'twinfleet sql "select site, count(*), avg(reported_temperature) from twins where not connected group by site"',
        "twinfleet sql \"from things select name, attributes['site']\" -o csv --timeout 10",
    ),
)(commands_query.sql)
app.command(
    "query",
    epilog=example(
        'twinfleet query "shadow.reported.temperature>30 AND attributes.site:ber" --by model',
        "twinfleet query 'NOT connectivity.connected:true' --of shadow.reported.battery --names 10",
    ),
)(commands_query.query)
app.add_typer(commands_scenario.app, name="scenario")
app.command(
    "run",
    epilog=example(
        "twinfleet run scenarios/library/smoke/first-light.yaml --seed 7",
        "twinfleet run first-light --fleet local --set groups[0].count=1000",
        "twinfleet run load.yaml --path wire --load-processes 2",
    ),
)(commands_run.run)
app.command(
    "report",
    epilog=example(
        "twinfleet report                                       of the last run",
        "twinfleet report .twinfleet/reports/20261128T055321Z-broker-restart-5506",
        "twinfleet report --schema > summary.schema.json",
    ),
)(commands_report.report)
app.command(
    "diff",
    epilog=example(
        "twinfleet diff reports/20261127T020000Z-nightly-1b5c reports/20261128T020000Z-nightly-77e0",
        "twinfleet diff runs/main runs/branch -o json           ten seeds on each side",
    ),
)(commands_report.diff)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"twinfleet {__version__}")
        raise typer.Exit


@app.callback(
    epilog=example(
        "twinfleet up                                 start a platform here",
        "twinfleet device create lamp-1 --out lamp-1  register a device",
        "twinfleet twin set lamp-1 set_point=21.5     tell it what is desired",
        "twinfleet twin watch lamp-1                  see it obey",
    )
)
def twinfleet(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Digital twins and fleet simulation for IoT devices."""


def run_command(arguments: Sequence[str]) -> int:
    """Run one command, print its error if it has one, and return its exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments) or ["--help"], prog_name="twinfleet", standalone_mode=False)
    except _USAGE_ERROR as error:
        return _fail(_with_hint(error), _USAGE)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except PlatformNotRunning as error:
        return _fail(str(error), _UNREACHABLE)
    except OperatorError as error:
        return _fail(str(error), _USAGE)
    except ActorsError as error:
        return _fail(str(error), _REFUSED)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Run the command that was typed, and end the process with its exit code."""
    sys.exit(run_command(sys.argv[1:]))


def _with_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    text = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
    message = " ".join(text.split()).rstrip(".")
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _fail(text: str, exit_code: int) -> int:
    print(f"twinfleet: {text}", file=sys.stderr)
    return exit_code
