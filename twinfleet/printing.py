"""How answers look on the terminal: plain aligned columns, or the wire's document as it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from twinfleet.client import Document


def print_document(document: Document) -> None:
    """Print a document exactly as it came over the wire, on a line of its own."""
    sys.stdout.write(document.raw.decode() + "\n")
    sys.stdout.flush()


def print_json(content: object) -> None:
    """Print what this command itself has to say, as JSON on one line."""
    sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
    sys.stdout.flush()


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in aligned columns; nothing is cut, so that every name can be copied."""
    lines = [tuple(headings), *(tuple(_printable(str(cell)) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print_line("  ".join(cells).rstrip())


def print_line(text: str) -> None:
    """Print a line, at once also into a pipe."""
    print(_printable(text), flush=True)


def time_text(seconds: int) -> str:
    """Return a time (seconds since the Unix epoch) as a person reads it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _printable(text: str) -> str:
    # What devices report is shown, not obeyed: no control character reaches the terminal.
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
