"""The error tree of the world: what can go wrong outside the pure core.

ActorsError
├── WorldError                      a broker, store, shard or machine that does not do its part; `retryable` or not
│   ├── BrokerError                 the MQTT broker does not start, answer or accept its configuration
│   ├── StoreError                  Redis does not start, answer, or keep what it acknowledges
│   ├── LocationError               a place for snapshots or backups does not answer, or holds what can't be used
│   │   └── SnapshotsUnreadable     a shard has snapshots, and none of them can be read
│   ├── BackupUnusable              a backup is damaged, cut off, or of a newer version
│   ├── SnapshotGone                no snapshot fits the journal that a backup has copied (retryable)
│   ├── ShardUnavailable            a shard does not answer at present             (retryable)
│   │   └── ShardNotHere            the process that was asked does not serve it   (retryable)
│   ├── Overloaded                  too many calls to one part are under way       (retryable)
│   ├── SqlEngineError              the process of the SQL engine died over a question
│   ├── ShardFenced                 another process has taken over the shard       (retryable)
│   ├── BridgeSuperseded            another bridge has taken the place of this one
│   ├── PlatformNotRunning          no platform serves the data directory
│   ├── NodeNameTaken               another node of the platform has the name
│   ├── DataDirectoryBusy           another process holds the data directory
│   ├── DataDirectoryVersion        the data directory was written by a newer version
│   ├── PortInUse                   something else listens on the port
│   ├── ToolMissing                 a program of the system is not installed
│   ├── ProcessEnded                a managed process ended by itself
│   ├── CertificateStoreError       the certificate authority's files are damaged
│   └── VaultError                  the key file is damaged, or is not the one under which a secret was sealed
└── OperatorError                   a bad request of an operator, who can mend it
    ├── PlacementError              a shard is to go where there is no place for it
    ├── AnswerTooLate               a question about the fleet takes too long
    ├── BehaviorUnusable            a pinned twin's behaviour can't be imported, raises, or answers nonsense
    ├── BackupRefused               a backup cannot be made of what is named, or there
    ├── SettingsError               a setting is unknown, out of bounds or contradicts another
    ├── CertificateRequestError     a name or signing request that may not get a certificate
    ├── CertificateNameTaken        a certificate of that application or claim is in force
    ├── CertificateNotFound         no such certificate is registered
    ├── DescriptionError            a thing or fleet is described against the rules
    ├── ThingExists                 the thing name is taken
    ├── ThingNotFound               no such thing is registered
    ├── AccessKeyExists             the name of the access key is taken
    ├── AccessKeyNotFound           no such access key
    ├── SignatureRefused            a request's signature is malformed, out of date or wrong
    ├── FleetExists                 the fleet name is taken
    ├── FleetNotFound               no such standing fleet
    ├── RecordExists                the name of a thing type or thing group is taken
    ├── RecordNotFound              no such thing type or thing group
    ├── RecordVersionConflict       a thing or thing group is not of the version that was expected
    ├── RecordInUse                 something else still needs the record that is to be deleted
    └── ProvisioningRefused         a device that comes with a claim asks for what it may not have

Facts stand in attributes, the text is made from them, and every text says what to change.
"""

from __future__ import annotations

import copyreg
from pathlib import Path
from typing import Any


class ActorsError(Exception):
    """Base of every error that the world raises; it survives pickling, whatever its constructor takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make an equal error: its text and its facts, without the constructor that made the text."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # not in typeshed


class WorldError(ActorsError):
    """A part of the world does not do its part; `retryable` says whether the same call may succeed later."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class BrokerError(WorldError):
    """The MQTT broker does not start, does not answer or refuses its configuration."""


class StoreError(WorldError):
    """Redis does not start, does not answer, or would not keep what it acknowledges.

    `is_full` says that it refused because its memory is full: reads are answered, and what frees memory may help.
    """

    def __init__(self, message: str, *, retryable: bool = False, is_full: bool = False) -> None:
        super().__init__(message, retryable=retryable)
        self.is_full = is_full


class LocationError(WorldError):
    """A place for snapshots or backups cannot be read or written, or what lies there cannot be used.

    `location` is as the operator named it, without a secret that may stand in it.
    """

    def __init__(self, location: str, problem: str, *, retryable: bool = False) -> None:
        super().__init__(f"{location}: {problem}", retryable=retryable)
        self.location = location
        self.problem = problem


class SnapshotsUnreadable(LocationError):
    """A shard has snapshots, `names`, and none of them can be read: all are damaged."""

    def __init__(self, location: str, shard: int, names: list[str]) -> None:
        problem = f"no snapshot of shard {shard} can be read ({', '.join(names)}); restore a backup"
        super().__init__(location, problem)
        self.names = names


class BackupUnusable(WorldError):
    """A backup does not hold what was put into it, or this version does not know what that is."""

    def __init__(self, backup: str, problem: str) -> None:
        super().__init__(f"{backup}: {problem}")
        self.backup = backup
        self.problem = problem


class SnapshotGone(WorldError):
    """No snapshot of a shard could be copied that its journal goes on from."""

    def __init__(self, shard: int) -> None:
        problem = "they are damaged, or newer ones have replaced them meanwhile; try again"
        super().__init__(f"no snapshot of shard {shard} fits its journal: {problem}", retryable=True)
        self.shard = shard


class ShardUnavailable(WorldError):
    """A shard does not answer at present; the same batch may be sent again."""

    def __init__(self, shard: int, reason: str) -> None:
        super().__init__(f"shard {shard} does not answer: {reason}; try again", retryable=True)
        self.shard = shard
        self.reason = reason


class ShardNotHere(ShardUnavailable):
    """The process that was asked does not serve the shard, or not yet; it has done nothing of what it was asked."""


class Overloaded(WorldError):
    """Too many calls to one part are under way; this one was not made, and others may go through meanwhile."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"too many requests are under way to {subject}; try again", retryable=True)
        self.subject = subject


class SqlEngineError(WorldError):
    """The process of the SQL engine died over a question; another one has been started."""

    def __init__(self) -> None:
        super().__init__("the SQL engine died over this question, and was started again; ask it differently")


class ShardFenced(WorldError):
    """Another process has opened the shard since; this one must not serve it any more, that one will."""

    def __init__(self, shard: int, epoch: int) -> None:
        super().__init__(
            f"shard {shard} was taken over by another process after epoch {epoch}; try again", retryable=True
        )
        self.shard = shard
        self.epoch = epoch


class BridgeSuperseded(WorldError):
    """A later bridge has been heard; what this one brings may be older than what that one brought, so it must end."""

    def __init__(self, source: str) -> None:
        super().__init__(f"a later bridge has taken the place of {source}; this one ends")
        self.source = source


class PlatformNotRunning(WorldError):
    """No running platform serves the data directory."""

    def __init__(self, data_dir: Path, reason: str) -> None:
        super().__init__(
            f"no platform runs on {data_dir} ({reason}); start one with `twinfleet up --data-dir {data_dir}`, "
            "or name another directory with --data-dir"
        )
        self.data_dir = data_dir
        self.reason = reason


class NodeNameTaken(WorldError):
    """Another node of the platform runs under the name, or has until a moment ago."""

    def __init__(self, node: str) -> None:
        super().__init__(
            f"a node {node!r} runs already; choose another name, or wait some seconds if it has just ended"
        )
        self.node = node


class DataDirectoryBusy(WorldError):
    """Another process holds the data directory; `holder_pid` is None in the instant before it wrote its id."""

    def __init__(self, data_dir: Path, holder_pid: int | None) -> None:
        holder = "another process" if holder_pid is None else f"process {holder_pid}"
        super().__init__(
            f"{data_dir} is held by {holder}; stop that platform with `twinfleet down --data-dir {data_dir}`, "
            "or name another directory with --data-dir"
        )
        self.data_dir = data_dir
        self.holder_pid = holder_pid


class DataDirectoryVersion(WorldError):
    """The data directory's layout is not one that this version can read."""

    def __init__(self, format_file: Path, found: str, supported: int) -> None:
        super().__init__(
            f"{format_file} says layout {found!r}, this version reads layout {supported}; "
            "use the twinfleet that wrote it, or name another directory with --data-dir"
        )
        self.format_file = format_file
        self.found = found
        self.supported = supported


class PortInUse(WorldError):
    """Something else listens on the port; `option` is the command-line option that changes it."""

    def __init__(self, host: str, port: int, option: str) -> None:
        super().__init__(
            f"port {port} on {host} is in use; choose another with {option} PORT (0 takes a free one), "
            "or stop what listens there",
            retryable=True,
        )
        self.host = host
        self.port = port
        self.option = option


class ToolMissing(WorldError):
    """A program of the system is not installed; `searched` lists the directories that were looked in."""

    def __init__(self, tool: str, package: str, searched: tuple[Path, ...]) -> None:
        super().__init__(
            f"{tool} is not installed; run `./dev setup`, or as root `apt-get install {package}` "
            f"(looked in {', '.join(map(str, searched))})"
        )
        self.tool = tool
        self.package = package
        self.searched = searched


class ProcessEnded(WorldError):
    """A managed process ended by itself; `log_tail` holds the last lines that it wrote."""

    def __init__(self, name: str, exit_code: int | None, *, log_file: Path, log_tail: str) -> None:
        super().__init__(f"{name} ended with exit code {exit_code}; mend what {log_file} says:\n{log_tail}")
        self.name = name
        self.exit_code = exit_code
        self.log_file = log_file
        self.log_tail = log_tail


class CertificateStoreError(WorldError):
    """A file of the certificate authority is missing or damaged."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(
            f"{file}: {problem}; restore the file from a backup, or remove the whole directory {file.parent} "
            "to begin with a new authority (every device then needs a new certificate)"
        )
        self.file = file
        self.problem = problem


class VaultError(WorldError):
    """The key file cannot be used, or a sealed secret does not open under it; `key_file` is the one that was read."""

    def __init__(self, key_file: Path, problem: str) -> None:
        super().__init__(f"{key_file}: {problem}")
        self.key_file = key_file
        self.problem = problem


class OperatorError(ActorsError):
    """A bad request of an operator; the text says what to change."""


class BackupRefused(OperatorError):
    """A backup cannot be made of the `subject`, or put there."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"{subject}: {problem}")
        self.subject = subject
        self.problem = problem


class SettingsError(OperatorError):
    """A setting is unknown, of the wrong type, out of bounds or contradicts another.

    `source` is the file or `command line`, `key` the path of the key inside it ('' for the whole source).
    """

    def __init__(self, source: str, key: str, problem: str) -> None:
        place = f"{source}: {key}" if key else source
        super().__init__(f"{place}: {problem}")
        self.source = source
        self.key = key
        self.problem = problem


class AnswerTooLate(OperatorError):
    """A question about the fleet has no answer in the time that was given for it."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no answer within {timeout_s:g} s; ask for less, or allow more time")
        self.timeout_s = timeout_s


class PlacementError(OperatorError):
    """A shard is to go, or a node to be drained, where that can't be; `subject` is the shard or node at fault."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"{subject}: {problem}")
        self.subject = subject
        self.problem = problem


class BehaviorUnusable(OperatorError):
    """A behaviour, `module:Class`, that can't be made or called; `problem` says what is wrong with it."""

    def __init__(self, behavior: str, problem: str) -> None:
        super().__init__(f"behavior {behavior}: {problem}")
        self.behavior = behavior
        self.problem = problem


class CertificateRequestError(OperatorError):
    """A name or a signing request that may not get a certificate."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"{subject}: {problem}")
        self.subject = subject
        self.problem = problem


class CertificateNameTaken(OperatorError):
    """A certificate of an application or a claim (`kind`) of that name is in force already."""

    def __init__(self, kind: str, name: str) -> None:
        text = f"{kind} {name!r} has a certificate that is in force; choose another name"
        super().__init__(f"{text}, or revoke that one first")
        self.kind = kind
        self.name = name


class CertificateNotFound(OperatorError):
    """No certificate of that id or name is registered; `subject` says of whom it was sought."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"{subject} is not registered; look at the list of certificates")
        self.subject = subject


class DescriptionError(OperatorError):
    """A thing or a fleet is described against the rules; `subject` is the part at fault."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"{subject}: {problem}")
        self.subject = subject
        self.problem = problem


class ThingExists(OperatorError):
    """The thing name is taken, by a registered thing or by a simulated one; `reason` says by what and what to do."""

    def __init__(self, thing_name: str, reason: str) -> None:
        super().__init__(f"thing {thing_name!r} {reason}")
        self.thing_name = thing_name
        self.reason = reason


class ThingNotFound(OperatorError):
    """No thing of that name is registered."""

    def __init__(self, thing_name: str) -> None:
        super().__init__(
            f"no thing {thing_name!r} is registered; `twinfleet device list` shows those that are"
        )
        self.thing_name = thing_name


class AccessKeyExists(OperatorError):
    """An access key of that name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is an access key {name!r} already; delete it first, or choose another name")
        self.name = name


class AccessKeyNotFound(OperatorError):
    """No access key of that name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no access key {name!r}; `twinfleet key list` shows those that are")
        self.name = name


class SignatureRefused(OperatorError):
    """The signature of a request does not prove who sent it; `error_type` is the wire's name of the reason."""

    def __init__(self, error_type: str, problem: str) -> None:
        super().__init__(problem)
        self.error_type = error_type


class FleetExists(OperatorError):
    """The fleet name is taken; `reason` says by what and what to do."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"fleet {name!r} {reason}")
        self.name = name
        self.reason = reason


class FleetNotFound(OperatorError):
    """No standing fleet of that name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no fleet {name!r}; `twinfleet fleet list` shows those that are")
        self.name = name


class RecordExists(OperatorError):
    """The name of a `kind` ("thing type", "thing group") is taken by another one than is asked for."""

    def __init__(
        self,
        kind: str,
        name: str,
        reason: str = "exists already, and is another one; delete it first, or choose another name",
    ) -> None:
        super().__init__(f"{kind} {name!r} {reason}")
        self.kind = kind
        self.name = name
        self.reason = reason


class RecordNotFound(OperatorError):
    """There is no `kind` ("thing type", "thing group") of that name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name!r}; create it first, or name one that exists")
        self.kind = kind
        self.name = name


class RecordVersionConflict(OperatorError):
    """A record has another version than its changer expected; `subject` names it."""

    def __init__(self, subject: str, *, expected: int, current: int) -> None:
        super().__init__(
            f"{subject} has version {current}, not {expected}; read it again and decide on what it is now"
        )
        self.subject = subject
        self.expected = expected
        self.current = current


class RecordInUse(OperatorError):
    """A `kind` ("provisioning template") cannot be deleted: `users` still need it."""

    def __init__(self, kind: str, name: str, users: str) -> None:
        super().__init__(f"{kind} {name!r} is needed by {users}; remove that first")
        self.kind = kind
        self.name = name
        self.users = users


class ProvisioningRefused(OperatorError):
    """A device's provisioning request is refused; `status` and `error_code` are the wire's."""

    def __init__(self, status: int, error_code: str, problem: str) -> None:
        super().__init__(problem)
        self.status = status
        self.error_code = error_code
        self.problem = problem
