"""The error tree of the pure core.

TwinError
├── RequestError            the caller can mend it; carries the wire code and message
│   ├── InvalidRequest      400
│   │   └── QueryError      400; a fleet query that can't be read
│   ├── ShadowNotFound      404
│   │   └── TwinNotFound    404
│   ├── VersionConflict     409
│   │   └── Overtaken       409; it came again after later ones
│   ├── PayloadTooLarge     413
│   ├── RolloutError        409; a rollout can't be so, or not in the state that it is in
│   ├── ExecutionError      a job's or a command's execution can't be so; names its error as on the wire
│   └── UnsupportedEncoding 415
├── ModelError              a device model, field or group is described wrongly
│   └── ModelInvalid        a device model has mistakes: all of them, each with its path
├── SnapshotError           a snapshot is damaged
│   └── SnapshotVersion     a snapshot is of a version that this program does not read
└── InvariantError          our bug: crash, keep the snapshot
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final


class TwinError(Exception):
    """Base of every error that the pure core raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make an equal error: its text and its facts, without the constructor that made the text."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # not in typeshed


class RequestError(TwinError):
    """A request that the caller can mend; `code` and `message` are what the wire says."""

    code = 400
    default_message = ""

    def __init__(self, message: str = "") -> None:
        self.message = message or self.default_message
        super().__init__(self.message)


class InvalidRequest(RequestError):
    """The request is malformed; `message` is one of the fixed texts of the shadow service."""


class QueryError(InvalidRequest):
    """A fleet query that can't be read; the text says where (`column`, from 1) and what to change."""

    def __init__(self, message: str = "", *, column: int = 1) -> None:
        self.column = column
        super().__init__(message)

    @classmethod
    def at(cls, column: int, problem: str) -> QueryError:
        """Return the error of a problem at a column, counted from 1."""
        return cls(f"column {column}: {problem}", column=column)


class ShadowNotFound(RequestError):
    """No shadow of that name exists."""

    code = 404

    @classmethod
    def named(cls, thing_name: str, shadow_name: str) -> ShadowNotFound:
        """Return the error for one shadow; the classic shadow is named by its thing alone."""
        label = f"{thing_name}~{shadow_name}" if shadow_name else thing_name
        return cls(f"No shadow exists with name: '{label}'")


class TwinNotFound(ShadowNotFound):
    """There is no twin of that name, real or simulated."""

    @classmethod
    def of(cls, thing_name: str) -> TwinNotFound:
        """Return the error for one name."""
        return cls(f"No twin exists with name: '{thing_name}'")


class VersionConflict(RequestError):
    """The request names a version that is not the shadow's current one."""

    code = 409
    default_message = "Version conflict"


class Overtaken(VersionConflict):
    """The request was delivered again after later ones of its device; it may have been accepted when it came first."""

    default_message = "This request came again after later ones; get the shadow to see what holds"


class PayloadTooLarge(RequestError):
    """The merged document would exceed the size limit."""

    code = 413
    default_message = "The payload exceeds the maximum size allowed"


class UnsupportedEncoding(RequestError):
    """The payload is not UTF-8."""

    code = 415
    default_message = "Unsupported documented encoding; supported encoding is UTF-8"


# Errors of job and command executions, as they are called on the wire, and their HTTP status.
EXECUTION_ERRORS: Final[Mapping[str, int]] = {
    "InvalidTopic": 400,
    "InvalidJson": 400,
    "InvalidRequest": 400,
    "ResourceNotFound": 404,
    # Not in the service's model of HTTP for an update; this is what it answers there.
    "VersionMismatch": 400,
    # What an operator is told of a version that is not the current one.
    "VersionConflict": 409,
    "InvalidStateTransition": 409,
    "TerminalStateReached": 410,
    "RequestThrottled": 429,
}


class RolloutError(RequestError):
    """A rollout is planned wrongly, or can't do this in the state that it is in; the text says what to change."""

    code = 409


class ExecutionError(RequestError):
    """What is asked of a job's or a command's execution can't be done; `kind` is one of `EXECUTION_ERRORS`.

    `state` is what the execution is in, where that is what stands in the way.
    """

    def __init__(self, kind: str, message: str, state: Mapping[str, Any] | None = None) -> None:
        self.kind = kind
        self.state = state
        super().__init__(message)
        self.code = EXECUTION_ERRORS[kind]


def request_error(code: int, message: str) -> RequestError:
    """Return the request error that a refusal with this wire code stands for."""
    kinds = (ShadowNotFound, VersionConflict, PayloadTooLarge, UnsupportedEncoding)
    return next((kind for kind in kinds if kind.code == code), InvalidRequest)(message)


class ModelError(TwinError):
    """A device model, one of its fields or a group of devices is described wrongly; the text says what to change."""


Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """One mistake in plain data: `path` leads to it; with `is_of_key` its last key is wrong, not the value of that."""

    path: Path
    text: str
    is_of_key: bool = False

    def __str__(self) -> str:
        where = path_text(self.path)
        return f"{where}: {self.text}" if where else self.text


def path_text(path: Path) -> str:
    """Return a path as people read it: `fields[2].start.low`."""
    parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(parts).removeprefix(".")


class ModelInvalid(ModelError):
    """A device model has mistakes; `mistakes` holds all of them."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        return "; ".join(map(str, self.mistakes))


class InvariantError(TwinError):
    """A state that the code rules out: a bug of ours, never the caller's fault."""


class SnapshotError(TwinError):
    """A snapshot is damaged, or does not fit what this program knows; the text says which."""


class SnapshotVersion(SnapshotError):
    """A snapshot is whole, and of a format that this program does not read: it is for another version of it."""
