"""`twinfleet backup`: everything of a platform in one sealed file, the check of such a file, and the way back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from actors.settings import DataDirectory, PlatformSettings, absolute_location
from twinfleet import __version__
from twinfleet.options import DEFAULT_DATA_DIR, DataDir, Output, OutputFormat, example
from twinfleet.printing import print_json, print_line, print_table, time_text

if TYPE_CHECKING:
    from rich.console import Console

    from actors.backup.content import Summary

app = typer.Typer(help="Back a platform up, check a backup, restore one.", rich_markup_mode=None)

# A log wants one line a second.
_LINE_EVERY_S: Final = 1.0
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="The key of backups (default: DIR/backup.key)."),
]
Backup = Annotated[
    str, typer.Argument(metavar="BACKUP", help="A file, or the URI of an object (s3://).", show_default=False)
]


@app.command(
    "create",
    epilog=example(
        "twinfleet backup create --out /backups/monday.backup --key-file /media/safe/backup.key",
        "twinfleet backup create --out s3://bucket/fleet/monday.backup?region=eu-central-1",
    ),
)
def create(
    *,
    out: Annotated[str, typer.Option(metavar="BACKUP", help="A file, or the URI of an object (s3://).")],
    key_file: KeyFile = None,
    snapshots: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where a stopped platform has its snapshots, if `up` was told."),
    ] = None,
    vault_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The key file of a stopped platform, if `up` was told."),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Back up a platform, running or stopped, to a file or object that is not there yet.

    It is sealed under the key in the key file, which is made if there is none. The key is not in the backup: keep a
    copy of it apart from this machine, for without it no backup can be read.
    """
    # Arrow takes a second to import, which no other command should wait for.
    from actors.backup.create import create_backup  # noqa: PLC0415

    overrides = {
        "snapshot_location": None if snapshots is None else absolute_location(snapshots, Path()),
        "key_file": None if vault_key_file is None else vault_key_file.absolute(),
    }
    settings = PlatformSettings.load(data_dir, overrides)
    key_file = _key_file(key_file, data_dir)
    is_new = not key_file.exists()
    with _shown("backup") as progress:
        summary = create_backup(settings, out, key_file=key_file, version=__version__, progress=progress)
    _print_summary(summary, output)
    if is_new and output is OutputFormat.TABLE:
        print_line(f"{key_file} is new: keep a copy of it apart, without it no backup can be read")


@app.command("verify", epilog=example("twinfleet backup verify /backups/monday.backup --key-file backup.key"))
def verify(
    backup: Backup,
    key_file: KeyFile = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Read all of a backup and print what it holds; every snapshot is loaded, every entry of a journal decoded."""
    from actors.backup.verify import verify_backup  # noqa: PLC0415

    with _shown("check") as progress:
        summary = verify_backup(backup, key_file=_key_file(key_file, data_dir), progress=progress)
    _print_summary(summary, output)


@app.command(
    "restore",
    epilog=example(
        "twinfleet backup restore /backups/monday.backup --key-file backup.key --data-dir /var/lib/twinfleet"
    ),
)
def restore(
    backup: Backup,
    *,
    key_file: Annotated[Path, typer.Option(metavar="FILE", help="The key of the backup.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Restore a backup into a data directory that is empty or not there yet; `twinfleet up` then serves it."""
    from actors.backup.restore import restore_backup  # noqa: PLC0415

    with _shown("restore") as progress:
        summary = restore_backup(backup, data_dir, key_file=key_file, progress=progress)
    _print_summary(summary, output)
    if output is OutputFormat.TABLE:
        print_line(
            f"restored; start it with `twinfleet up --data-dir {data_dir} --shards {len(summary.shards)}`"
        )


def _key_file(key_file: Path | None, data_dir: Path) -> Path:
    return key_file or DataDirectory(data_dir).path / "backup.key"


def _print_summary(summary: Summary, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(summary)
        return
    rows = [
        (
            number,
            shard.snapshot or "-",
            shard.twin_count,
            f"{shard.first} to {shard.last}" if shard.first else f"up to {shard.last or '-'}",
            shard.entry_count,
        )
        for number, shard in enumerate(summary.shards)
    ]
    print_table(("SHARD", "SNAPSHOT", "TWINS IN IT", "JOURNAL", "ENTRIES"), rows)
    records = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.records.items()))
    kinds = records.replace("_", " ").replace("-", " ") or "empty"
    print_line(f"registry up to {summary.registry_position or '-'}: {kinds}")
    print_line(f"files: {', '.join(summary.files)}")
    print_line(f"the platform as of {time_text(int(summary.cut_s))}, twinfleet {summary.twinfleet_version}")


@contextlib.contextmanager
def _shown(title: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """Give what shows the progress on standard error: a line that moves on a terminal, else a line a second."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(title) as status:
            yield lambda what, done, total: status.update(_progress_text(title, what, done, total))
    else:
        yield _Lines(console, title)


def _progress_text(title: str, what: str, done: int, total: int | None) -> str:
    count = f" {done:,}" if total is None and done else f" {done:,} of {total:,}" if total else ""
    return f"{title}: {what}{count}"


class _Lines:
    """Prints one line a second."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._next_s = 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _LINE_EVERY_S
            text = _progress_text(self._title, what, done, total)
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)
