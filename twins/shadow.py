"""The device shadow on plain JSON: merge, metadata, versions, delta, and the documents that announce a change.

This is the reference: the columns of `table` are held to it by a property test. It follows the shadow service of
AWS IoT; a rule that the public documentation leaves open is marked "open" with what was decided. State and metadata
are kept in separate trees, so that a device may use any key, `timestamp` included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from twins.errors import (
    InvalidRequest,
    PayloadTooLarge,
    ShadowNotFound,
    UnsupportedEncoding,
    VersionConflict,
)

Tree = dict[str, Any]

# Compact JSON of desired plus reported, after the merge; metadata and version do not count.
DOCUMENT_BYTES_MAX: Final = 8192
# Levels below desired or reported. Open: the service's error text says 6, its quota page 8; the looser one holds.
DEPTH_MAX: Final = 8
CLIENT_TOKEN_BYTES_MAX: Final = 64
# A shadow that is created again within 48 h goes on counting its version.
TOMBSTONE_S: Final = 48 * 3600
SECTIONS: Final = ("desired", "reported")
# Re-encoding may lengthen a number at most so many times (`1e15` becomes `1000000000000000.0`).
_GROWTH_MAX: Final = 5
_NOT_PLAIN: Final = frozenset({dict, list, type(None)})
_TOO_DEEP: Final = "JSON contains too many levels of nesting; maximum is 6"
_NODE: Final = {"desired": "Desired", "reported": "Reported"}

encode_json: Final = msgspec.json.Encoder().encode
_decode_json: Final = msgspec.json.Decoder().decode


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """When a leaf was last written, in whole seconds since the Unix epoch; encodes as the wire's metadata leaf."""

    timestamp: int


class UpdateRequest(msgspec.Struct, frozen=True, gc=False):
    """A valid update: `state` holds the sections that were sent, as sent; None empties the shadow."""

    state: Tree | None
    version: int | None
    client_token: str | None
    payload_bytes: int


class _ShadowBody(msgspec.Struct, omit_defaults=True, gc=False):
    """The body of `update/accepted` and `update/delta`; names and order are the wire's."""

    state: Tree | None
    metadata: Any
    version: int
    timestamp: int
    clientToken: str | None = None  # noqa: N815  (the wire's name)


class _Sections(msgspec.Struct, omit_defaults=True, gc=False):
    desired: Tree | None = None
    reported: Tree | None = None


class _CurrentBody(msgspec.Struct, gc=False):
    state: _Sections
    metadata: _Sections
    version: int


class _DocumentsBody(msgspec.Struct, omit_defaults=True, gc=False):
    previous: msgspec.Raw
    current: msgspec.Raw
    timestamp: int
    clientToken: str | None = None  # noqa: N815  (the wire's name)


class Announcement(msgspec.Struct, frozen=True, gc=False):
    """The bodies that one accepted update brings about; `delta` is None where desired and reported agree."""

    accepted: bytes
    documents: bytes
    delta: bytes | None


def decode_payload(payload: bytes) -> Any:
    """Return the JSON value of a payload; UnsupportedEncoding or InvalidRequest where there is none."""
    return _decode_with(_decode_json, payload)


def _decode_with(decode: Callable[[bytes], Any], payload: bytes) -> Any:
    try:
        # The decoder skips what it need not know; what it skips must be UTF-8 all the same.
        if not payload.isascii():
            payload.decode()
        return decode(payload)
    except UnicodeDecodeError:
        raise UnsupportedEncoding from None
    except RecursionError:
        raise InvalidRequest(_TOO_DEEP) from None
    except msgspec.DecodeError:
        raise InvalidRequest("Invalid JSON") from None


def client_token_of(payload: bytes) -> str | None:
    """Return the client token of a request, also of one that is refused; None where it has no valid one.

    All else is skipped, so that a request with a number beyond any float, or with a text that is not UTF-8, is told
    so under its token: a device that waits for its token would hear nothing else.
    """
    try:
        token = _decode_token(payload).clientToken
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return token if _is_client_token(token) else None


def _is_client_token(token: object) -> bool:
    if type(token) is not str:
        return False
    return len(token) <= CLIENT_TOKEN_BYTES_MAX and (
        token.isascii() or len(token.encode()) <= CLIENT_TOKEN_BYTES_MAX
    )


def check_simple_request(payload: bytes) -> str | None:
    """Return the client token of a get or delete request, whose payload may be empty or any JSON."""
    if not payload:
        return None
    token = request.get("clientToken") if isinstance(request := decode_payload(payload), dict) else None
    if token is not None and not _is_client_token(token):
        raise InvalidRequest("Invalid clientToken")
    return token


class _UpdateBody(msgspec.Struct, gc=False):
    state: Any = msgspec.UNSET
    version: Any = None
    clientToken: Any = None  # noqa: N815  (the wire's name)


class _TokenBody(msgspec.Struct, gc=False):
    clientToken: Any = None  # noqa: N815  (the wire's name)


_decode_token: Final = msgspec.json.Decoder(_TokenBody).decode
_decode_update: Final = msgspec.json.Decoder(_UpdateBody).decode


def parse_update(payload: bytes) -> UpdateRequest:
    """Return an update request, checked for all that does not depend on the shadow.

    RequestError says what is wrong.
    """
    body = _decode_with(_decode_update, payload)
    token, state, version = body.clientToken, body.state, body.version
    if token is not None and not _is_client_token(token):
        raise InvalidRequest("Invalid clientToken")
    if state is msgspec.UNSET:
        raise InvalidRequest("Missing required node: state")
    if state is not None:
        _check_state(state)
    if version is not None and (type(version) is not int or version < 0):
        raise InvalidRequest("Invalid version")
    return UpdateRequest(state, version, token, len(payload))


def _check_state(state: Any) -> None:
    if type(state) is not dict:
        raise InvalidRequest("State node must be an object")
    for name, section in state.items():
        if name not in _NODE:
            raise InvalidRequest("State contains an invalid node")
        if section is None:
            continue
        if type(section) is not dict:
            raise InvalidRequest(f"{_NODE[name]} node must be an object")
        if not _is_plain(section.values()):
            for value in section.values():
                if type(value) is dict or type(value) is list:
                    _check_value(value, 2)


def _check_value(value: Any, level: int) -> None:
    """Refuse nesting beyond DEPTH_MAX and null within an array; `level` is that of the container's children."""
    if level > DEPTH_MAX:
        raise InvalidRequest(_TOO_DEEP)
    is_array = type(value) is list
    for child in value if is_array else value.values():
        if child is None and is_array:
            raise InvalidRequest("State contains an invalid node")
        if type(child) is dict or type(child) is list:
            _check_value(child, level + 1)


def json_equal(left: Any, right: Any) -> bool:
    """Tell whether two JSON values are equal as JSON: 1 equals 1.0, true is not 1."""
    if type(left) is bool or type(right) is bool:
        return left is right
    if type(left) is dict and type(right) is dict:
        return left.keys() == right.keys() and all(
            json_equal(value, right[key]) for key, value in left.items()
        )
    if type(left) is list and type(right) is list:
        return len(left) == len(right) and all(json_equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _is_plain(values: Iterable[Any]) -> bool:
    """Tell whether there is no object, array or null among `values`: so it is with most that devices send."""
    return _NOT_PLAIN.isdisjoint(map(type, values))


def stamp_tree(value: Any, stamp: Stamp) -> Any:
    """Return the metadata of a value: `stamp` for each leaf, in objects and arrays of the value's shape."""
    if type(value) is dict:
        if _is_plain(value.values()):
            return dict.fromkeys(value, stamp)
        return {key: stamp_tree(child, stamp) for key, child in value.items()}
    if type(value) is list:
        return [stamp_tree(child, stamp) for child in value]
    return stamp


def without_nulls(value: Tree) -> Tree | None:
    """Return a new object minus its nulls; None if it held nothing but nulls. An empty object stays."""
    kept: Tree = {}
    for key, child in value.items():
        new = without_nulls(child) if type(child) is dict else child
        if new is not None:
            kept[key] = new
    return kept if kept or not value else None


def merge(state: Tree, metadata: Tree, patch: Tree, *, stamp: Stamp) -> Tree:
    """Merge `patch` into `state` and `metadata`, in place, and return the metadata of the patch itself.

    Null removes, objects merge, everything else replaces; each touched leaf gets `stamp`. An object that a null
    leaves empty goes too (open: the service may keep it as {}).
    """
    if _is_plain(patch.values()):
        stamps = dict.fromkeys(patch, stamp)
        state.update(patch)
        metadata.update(stamps)
        return stamps
    for key, value in patch.items():
        if value is None:
            state.pop(key, None)
            metadata.pop(key, None)
        elif type(value) is not dict:
            state[key] = value
            metadata[key] = stamp if type(value) is not list else stamp_tree(value, stamp)
        elif type(current := state.get(key)) is dict:
            was_empty = not current
            merge(current, metadata[key], value, stamp=stamp)
            if not current and not was_empty:
                del state[key], metadata[key]
        elif (new := without_nulls(value)) is not None:
            state[key] = new
            metadata[key] = stamp_tree(new, stamp)
    stamped: Tree = stamp_tree(patch, stamp)
    return stamped


def delta_of(desired: Tree, reported: Tree, metadata: Tree) -> tuple[Tree, Tree]:
    """Return what the device has yet to do, as state and metadata: each desired value that is not reported so.

    `metadata` is that of desired. Objects are compared key by key, arrays whole; keys only in `reported` never appear.
    """
    state: Tree = {}
    stamps: Tree = {}
    for key, wanted in desired.items():
        if key in reported:
            present = reported[key]
            if type(wanted) is dict and type(present) is dict:
                inner, inner_stamps = delta_of(wanted, present, metadata[key])
                if inner:
                    state[key], stamps[key] = inner, inner_stamps
                continue
            if json_equal(wanted, present):
                continue
        state[key], stamps[key] = wanted, metadata[key]
    return state, stamps


class ShadowDocument:
    """One shadow of one thing, with its past: `version` counts on over deletion for 48 h.

    `desired` and `reported` are the state, `desired_metadata` and `reported_metadata` the trees of stamps beside them;
    all four belong to this object. `changed_at_s` is the time of the last update or of the deletion.
    """

    __slots__ = (
        "_current",
        "_size_bound",
        "changed_at_s",
        "desired",
        "desired_metadata",
        "exists",
        "reported",
        "reported_metadata",
        "version",
    )

    def __init__(self) -> None:
        self.exists = False
        self.version = 0
        self.changed_at_s = 0
        self.desired: Tree = {}
        self.reported: Tree = {}
        self.desired_metadata: Tree = {}
        self.reported_metadata: Tree = {}
        self._current: bytes | None = None
        # Upper bound of the document's size, so that the exact one is only counted when it may matter.
        self._size_bound = 0

    def update(self, request: UpdateRequest, now_s: int) -> Announcement:
        """Apply an update, in place, and return what it announces; on RequestError nothing has changed."""
        if request.version is not None:
            self._check_version(request.version)
        previous = self._encode_current() if self.exists else b"null"
        self._size_bound += request.payload_bytes * _GROWTH_MAX
        if self._size_bound > DOCUMENT_BYTES_MAX:
            self._size_bound = self._size_bytes() + request.payload_bytes * _GROWTH_MAX
        if self._size_bound > DOCUMENT_BYTES_MAX:
            metadata = self._merge_checked(request, now_s)
        else:
            metadata = self._merge_state(request.state, Stamp(now_s))
        if not self.exists:
            if self.is_forgotten(now_s):
                self.version = 0
            self.exists = True
        self.version += 1
        self.changed_at_s = now_s
        self._current = None
        return self._announce(request, metadata, previous)

    def is_forgotten(self, now_s: int) -> bool:
        """Tell whether this shadow was deleted so long ago that its version begins anew."""
        return not self.exists and now_s - self.changed_at_s >= TOMBSTONE_S

    def forget_size(self) -> None:
        """Have the exact size counted at the next update, in place: for a shadow put together from stored parts."""
        self._size_bound = DOCUMENT_BYTES_MAX

    def _check_version(self, version: int) -> None:
        if self.exists and version != self.version:
            raise VersionConflict
        # Open: what the service says to a version of a shadow that does not exist; only the first one is let through.
        if not self.exists and version != 1:
            raise InvalidRequest("Invalid version")

    def _merge_checked(self, request: UpdateRequest, now_s: int) -> Stamp | Tree:
        """Merge on a copy, count the exact size, and adopt the copy only if it fits."""
        trial = copy.deepcopy(self)
        metadata = trial._merge_state(request.state, Stamp(now_s))
        self._size_bound = self._size_bytes()
        size_bytes = trial._size_bytes()
        if size_bytes > DOCUMENT_BYTES_MAX:
            raise PayloadTooLarge
        self.desired, self.desired_metadata = trial.desired, trial.desired_metadata
        self.reported, self.reported_metadata = trial.reported, trial.reported_metadata
        self._size_bound = size_bytes
        return metadata

    def _size_bytes(self) -> int:
        return len(encode_json(self.desired)) + len(encode_json(self.reported))

    def _merge_state(self, state: Tree | None, stamp: Stamp) -> Stamp | Tree:
        """Merge the sections of an update, in place, and return the update's own metadata."""
        if state is None:
            self._clear("desired")
            self._clear("reported")
            return stamp
        metadata: Tree = {}
        for name, patch in state.items():
            if patch is None:
                self._clear(name)
                metadata[name] = stamp
            elif name == "reported":
                metadata[name] = merge(self.reported, self.reported_metadata, patch, stamp=stamp)
            else:
                metadata[name] = merge(self.desired, self.desired_metadata, patch, stamp=stamp)
        return metadata

    def _clear(self, section: str) -> None:
        if section == "reported":
            self.reported, self.reported_metadata = {}, {}
        else:
            self.desired, self.desired_metadata = {}, {}

    def _announce(self, request: UpdateRequest, metadata: Stamp | Tree, previous: bytes) -> Announcement:
        token, version, now_s = request.client_token, self.version, self.changed_at_s
        accepted = encode_json(_ShadowBody(request.state, metadata, version, now_s, token))
        current = msgspec.Raw(self._encode_current())
        documents = encode_json(_DocumentsBody(msgspec.Raw(previous), current, now_s, token))
        return Announcement(accepted, documents, self._encode_delta(now_s, token))

    def delta(self, now_s: int) -> bytes | None:
        """Return the body of `update/delta` as it is now, None where nothing differs."""
        return self._encode_delta(now_s, None)

    def _encode_delta(self, now_s: int, token: str | None) -> bytes | None:
        if not self.desired:
            return None
        state, stamps = delta_of(self.desired, self.reported, self.desired_metadata)
        return encode_json(_ShadowBody(state, stamps, self.version, now_s, token)) if state else None

    def _encode_current(self) -> bytes:
        if self._current is None:
            state = _Sections(self.desired or None, self.reported or None)
            metadata = _Sections(
                self.desired_metadata if self.desired else None,
                self.reported_metadata if self.reported else None,
            )
            self._current = encode_json(_CurrentBody(state, metadata, self.version))
        return self._current

    def _state(self) -> Tree:
        state: Tree = {}
        if self.desired:
            state["desired"] = self.desired
        if self.reported:
            state["reported"] = self.reported
        return state

    def _metadata(self) -> Tree:
        metadata: Tree = {}
        if self.desired:
            metadata["desired"] = self.desired_metadata
        if self.reported:
            metadata["reported"] = self.reported_metadata
        return metadata

    def document(self, now_s: int) -> Tree:
        """Return the document as on `get/accepted`; its parts belong to this shadow and must not be changed."""
        state = self._state()
        delta, _ = delta_of(self.desired, self.reported, self.desired_metadata)
        if delta:
            state["delta"] = delta
        return {"state": state, "metadata": self._metadata(), "version": self.version, "timestamp": now_s}

    def delete(self, now_s: int) -> Tree:
        """Delete the shadow, in place, and return the body of `delete/accepted`, which names the deleted version."""
        body: Tree = {"version": self.version, "timestamp": now_s}
        self.desired, self.desired_metadata, self.reported, self.reported_metadata = {}, {}, {}, {}
        self.exists = False
        # The deletion counts as a version of its own.
        self.version += 1
        self.changed_at_s = now_s
        self._current = None
        self._size_bound = 0
        return body


def require_shadow(document: ShadowDocument | None, thing_name: str, shadow_name: str) -> ShadowDocument:
    """Return the shadow if it exists; ShadowNotFound otherwise."""
    if document is None or not document.exists:
        raise ShadowNotFound.named(thing_name, shadow_name)
    return document
