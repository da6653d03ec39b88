"""The error tree of the command line; each error carries the exit code that it ends the command with.

CommandError
├── UsageFault              2   the command was typed wrongly
├── Refused                 1   the platform refuses; its own words
├── FilesInTheWay           1   a file that would be written is there already, or cannot be written
├── DoesNotStop             1   the platform was told to stop and still runs
├── DoesNotMove             1   shards were to move and still do not
└── PlatformUnreachable     3   no platform answers

Errors of `actors` get their exit codes in `cli`.
"""

from __future__ import annotations


class CommandError(Exception):
    """Base of every error that ends a command; its text is one line that says what to change."""

    exit_code = 1


class UsageFault(CommandError):
    """The command was typed wrongly."""

    exit_code = 2


class Refused(CommandError):
    """The platform refuses what was asked; `status` is HTTP's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class FilesInTheWay(CommandError):
    """A file that would be written is there already, or cannot be written."""


class DoesNotStop(CommandError):
    """The platform was told to stop and still runs."""


class DoesNotMove(CommandError):
    """Shards were to move, and are not yet where they should be."""


class PlatformUnreachable(CommandError):
    """No platform answers."""

    exit_code = 3
