"""The error tree of the pure core.

TwinError
├── RequestError            the caller can mend it; carries the wire code and message
│   ├── InvalidRequest      400
│   ├── ShadowNotFound      404
│   ├── VersionConflict     409
│   ├── PayloadTooLarge     413
│   └── UnsupportedEncoding 415
├── ModelError              a device model, field or group is described wrongly
├── SnapshotError           a snapshot is damaged or of another version
└── InvariantError          our bug: crash, keep the snapshot
"""

from __future__ import annotations


class TwinError(Exception):
    """Base of every error that the pure core raises."""


class RequestError(TwinError):
    """A request that the caller can mend; `code` and `message` are what the wire says."""

    code = 400
    default_message = ""

    def __init__(self, message: str = "") -> None:
        self.message = message or self.default_message
        super().__init__(self.message)


class InvalidRequest(RequestError):
    """The request is malformed; `message` is one of the fixed texts of the shadow service."""


class ShadowNotFound(RequestError):
    """No shadow of that name exists."""

    code = 404

    @classmethod
    def named(cls, thing_name: str, shadow_name: str) -> ShadowNotFound:
        """Return the error for one shadow; the classic shadow is named by its thing alone."""
        label = f"{thing_name}~{shadow_name}" if shadow_name else thing_name
        return cls(f"No shadow exists with name: '{label}'")


class VersionConflict(RequestError):
    """The request names a version that is not the shadow's current one."""

    code = 409
    default_message = "Version conflict"


class PayloadTooLarge(RequestError):
    """The merged document would exceed the size limit."""

    code = 413
    default_message = "The payload exceeds the maximum size allowed"


class UnsupportedEncoding(RequestError):
    """The payload is not UTF-8."""

    code = 415
    default_message = "Unsupported documented encoding; supported encoding is UTF-8"


def request_error(code: int, message: str) -> RequestError:
    """Return the request error that a refusal with this wire code stands for."""
    kinds = (ShadowNotFound, VersionConflict, PayloadTooLarge, UnsupportedEncoding)
    return next((kind for kind in kinds if kind.code == code), InvalidRequest)(message)


class ModelError(TwinError):
    """A device model, one of its fields or a group of devices is described wrongly; the text says what to change."""


class InvariantError(TwinError):
    """A state that the code rules out: a bug of ours, never the caller's fault."""


class SnapshotError(TwinError):
    """A snapshot is damaged or was written by a newer version; the text says which."""
