"""Child processes of the platform: found, started, watched and stopped, and never outliving their parent.

Owns how a child is bound to its parent and where its output goes. What a child is told to do, and when it counts as
ready, is for the module that starts it. Linux only: the bond to the parent is the kernel's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from actors.errors import PortInUse, ProcessEnded, ToolMissing
from actors.settings import is_process_alive, process_environment, search_path

# <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1
# How often a condition is looked at again: well below what a person notices, far above what it costs.
_POLL_S: Final = 0.02
# A log is set aside at the next start once it is larger: some 100,000 lines.
_LOG_BYTES_MAX: Final = 16 << 20
# Enough of a log to see why a process ended.
_LOG_TAIL_LINES: Final = 15
_LOG_TAIL_BYTES: Final = 4096
# Servers lie in sbin, which is not on the PATH of ordinary users.
_SYSTEM_DIRECTORIES: Final = (
    Path("/usr/sbin"),
    Path("/usr/local/sbin"),
    Path("/usr/bin"),
    Path("/sbin"),
)
# Where `./dev setup` unpacks packages when it may not install them.
_CHECKOUT_TOOLS: Final = Path(__file__).absolute().parent.parent / ".twinfleet" / "tools"
# The kernel's own default for a hard limit that is not lower (fs.nr_open).
_OPEN_FILE_COUNT_MAX: Final = 1_048_576
# A process stops within microseconds, unless it waits for a disk.
_STANDSTILL_TIMEOUT_S: Final = 0.005
# The numbers of epoll_wait and epoll_pwait (<asm/unistd.h>).
_EPOLL_CALLS: Final = {"x86_64": ("232", "281"), "aarch64": ("22",)}
# The number of pidfd_getfd, the same on all machines (Linux 5.6).
_PIDFD_GETFD: Final = 438
LOOPBACK: Final = "127.0.0.1"
LOOPBACK_V6: Final = "::1"

# Loaded before any fork: the child may only call it, not look it up.
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Tool:
    """A program of the system, and what its environment needs beyond ours."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def find_tool(name: str, *, package: str, tool_directories: Sequence[Path] = ()) -> Tool:
    """Return the program: from PATH or the system's directories, else from an unpacked package.

    `tool_directories` are looked in before the checkout's own; each is the root of unpacked Debian packages.
    ToolMissing says how to get it.
    """
    system = (*search_path(), *_SYSTEM_DIRECTORIES)
    for directory in system:
        if _is_program(directory / name):
            return Tool(directory / name)
    roots = (*tool_directories, _CHECKOUT_TOOLS)
    unpacked = tuple(root / "usr" / part for root in roots for part in ("sbin", "bin"))
    for directory in unpacked:
        if _is_program(directory / name):
            return Tool(directory / name, _library_environment(directory.parent.parent))
    raise ToolMissing(name, package, tuple(dict.fromkeys((*system, *unpacked))))


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _library_environment(root: Path) -> dict[str, str]:
    # Debian's libraries lie in one directory per architecture, named by its triplet.
    places = [place for part in ("usr/lib", "lib") for place in sorted(root.glob(f"{part}/*-linux-gnu*"))]
    earlier = process_environment().get("LD_LIBRARY_PATH")
    directories = [*map(str, places), *([earlier] if earlier else [])]
    return {"LD_LIBRARY_PATH": os.pathsep.join(directories)} if directories else {}


class ManagedProcess:
    """A child process in a session of its own, so that a terminal's Ctrl-C reaches the parent first.

    It gets SIGTERM from the kernel when its parent dies, however the parent dies.
    """

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        *,
        log_file: Path,
        log_start: int,
    ) -> None:
        self.name: Final = name
        self.log_file: Final = log_file
        # Where in the log this run begins.
        self.log_start: Final = log_start
        self._process: Final = process

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        *,
        log_file: Path,
        environment: Mapping[str, str],
    ) -> ManagedProcess:
        """Start `command` with `environment` added to ours; what it writes is appended to `log_file`.

        It may open as many files and connections as `open_file_count_max` says.
        For the main thread only: the kernel ends the child when the *thread* that forked it ends.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "children are started from the main thread: they die with the thread that started them"
            )
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log_file.exists() and log_file.stat().st_size > _LOG_BYTES_MAX:
            log_file.replace(log_file.with_suffix(".log.old"))
        with _open_log(log_file) as log:
            log_start = os.lseek(log, 0, os.SEEK_END)
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**process_environment(), **environment},
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  (nothing else can set the bond before exec)
            )
        return cls(name, process, log_file=log_file, log_start=log_start)

    @property
    def pid(self) -> int:
        """The process id, also after the process has ended."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Tell whether the process still runs."""
        return self._process.poll() is None

    def end(self) -> str:
        """Return how the process ended, for people; it must have."""
        code = self._process.poll()
        return (
            f"ended with signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        )

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float) -> bool:
        """Wait until `is_ready()`, and return whether it came to be in time; ProcessEnded if the process ends."""
        return wait_until(lambda: self._require_alive() and is_ready(), timeout_s=timeout_s)

    def _require_alive(self) -> bool:
        if not self.is_alive():
            raise ProcessEnded(
                self.name,
                self._process.returncode,
                log_file=self.log_file,
                log_tail=self.log_tail(),
            )
        return True

    def log_tail(self) -> str:
        """Return the last lines that this process has written."""
        with self.log_file.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            # Not the lines of an earlier run in the same file.
            log.seek(max(self.log_start, end - _LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def send_signal(self, number: signal.Signals) -> None:
        """Send the process a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def stop(self, *, timeout_s: float) -> None:
        """End the process: SIGTERM, and SIGKILL after `timeout_s`. Nothing happens if it has ended."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with(parent_pid: int) -> Callable[[], None]:
    file_count_max = open_file_count_max()

    def bind() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file_count_max, file_count_max))
        # SIGTERM, not SIGKILL: mosquitto then saves the sessions, and Redis closes its file.
        if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0 or os.getppid() != parent_pid:
            # The parent died before the bond held.
            os._exit(1)

    return bind


def open_file_count_max() -> int:
    """Return how many files and connections a child may have open: as many as may be allowed without special rights.

    The usual soft limit of 1024 is for programs that use select(); a broker's connections are over that at once.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard if 0 <= hard < _OPEN_FILE_COUNT_MAX else _OPEN_FILE_COUNT_MAX


@contextmanager
def _open_log(log_file: Path) -> Iterator[int]:
    # Appending, so that two writers of one log do not overwrite each other.
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def wait_until(is_true: Callable[[], bool], *, timeout_s: float) -> bool:
    """Wait until the condition holds, and return whether it did in time."""
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def find_process(pid_file: Path, *, program: str, argument: str) -> int | None:
    """Return the process id in `pid_file` if that process is `program` started with `argument`, else None.

    A process id alone proves nothing: after a crash the number may be another program's.
    """
    try:
        pid = int(pid_file.read_text(encoding="utf-8"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        executable = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    if executable != program or argument.encode() not in words or not is_process_alive(pid):
        return None
    return pid


@contextmanager
def standstill(pid: int) -> Iterator[bool]:
    """Hold a process of our user still, give whether it stands where it waits for events and has none, and let it go.

    False where it was at work, or could not be held within milliseconds: it may do more of what it had begun. Where the
    system does not let us see into the process (Yama, for one, unless it descends from this one), it counts as waiting.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        yield _is_held(pid) and _is_in_epoll_wait(pid) and not _has_events(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _is_held(pid: int) -> bool:
    deadline_s = time.monotonic() + _STANDSTILL_TIMEOUT_S
    while time.monotonic() < deadline_s:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The state follows the program's name, which stands in parentheses and may itself hold any character.
        if status.rpartition(")")[2].split()[0] == "T":
            return True
    return False


def _is_in_epoll_wait(pid: int) -> bool:
    """Tell whether a held process is in epoll_wait; yes where the system does not say."""
    numbers = _EPOLL_CALLS.get(platform.machine(), ())
    try:
        number = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()[0]
    except OSError:
        return True
    return not numbers or number in numbers


def _has_events(pid: int) -> bool:
    """Tell whether epoll_wait has something to return to another process; no where the system does not say."""
    # The call may have found events when the signal came; they stay ready until the process has read them.
    try:
        files = Path(f"/proc/{pid}/fd").iterdir()
        numbers = [int(file.name) for file in files if file.readlink().name == "anon_inode:[eventpoll]"]
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        return any(_is_readable(process, number) for number in numbers)
    finally:
        os.close(process)


def _is_readable(process: int, number: int) -> bool:
    """Tell whether an open file of another process has something to read; no where we may not look at it."""
    copy = _libc.syscall(_PIDFD_GETFD, process, number, 0)
    if copy < 0:
        return False
    try:
        poll = select.poll()
        poll.register(copy, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(copy)


def end_leftover(pid: int, *, timeout_s: float) -> None:
    """End a process that outlived its parent by a moment, and return when it is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if wait_until(lambda: not is_process_alive(pid), timeout_s=timeout_s):
            return


def loopback_addresses() -> tuple[str, ...]:
    """Return the machine's loopback addresses: 127.0.0.1, and ::1 where the machine has it."""
    try:
        with closing(socket.socket(socket.AF_INET6, socket.SOCK_STREAM)) as probe:
            probe.bind((LOOPBACK_V6, 0))
    except OSError:
        return (LOOPBACK,)
    return (LOOPBACK, LOOPBACK_V6)


def is_port_free(host: str, port: int) -> bool:
    """Tell whether nothing listens on the port of this address now, so that a server with the right to it could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        # As servers do: connections of an earlier server that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            # Without the right to a port below 1024 the server itself says so, better than "in use" would.
            return error.errno == errno.EACCES
    return True


def free_port() -> int:
    """Return a port that is free on all loopback addresses now; it is not held, so use it at once."""
    while True:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if all(is_port_free(host, port) for host in loopback_addresses()):
            return port


def require_port_free(host: str, port: int, *, option: str) -> None:
    """Raise PortInUse, which names `option` as the way to choose another, unless the port is free."""
    if not is_port_free(host, port):
        raise PortInUse(host, port, option)
