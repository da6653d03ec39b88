"""What the managed servers of the system, broker and store, have in common: how they are started, watched and ended.

What a server is told, and when it counts as ready, is for the module of that server.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

import jinja2

from actors.errors import WorldError
from actors.processes import ManagedProcess, end_leftover, find_process, find_tool
from actors.settings import DataDirectory, PlatformSettings, write_atomically

TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).absolute().parent.parent / "broker_config"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    # Configuration files, not HTML.
    autoescape=False,
)
# A server on loopback answers within milliseconds; one that is busy reading its files back gets asked again.
PROBE_TIMEOUT_S: Final = 1.0
# A start writes configuration, log and process id; less room than this is none.
_ROOM_MIN_BYTES: Final = 1 << 20


def pid_file(home: Path) -> Path:
    """Return the file that holds the process id of the server with its files in `home`."""
    return home / "pid"


class ManagedServer(ABC):
    """A server that runs as a child of this process; `home` holds its files, `configuration` is one of them.

    The caller holds the data directory's lock.
    """

    # Its name for people, its program and Debian package, and the error that it raises.
    label: ClassVar[str]
    program: ClassVar[str]
    error: ClassVar[type[WorldError]]

    def __init__(
        self, settings: PlatformSettings, *, home: Path, configuration: Path, log_file: Path
    ) -> None:
        self._settings = settings
        self._directory = DataDirectory(settings.data_dir)
        self._home = home
        self._configuration = configuration
        self._log_file = log_file
        self._process: ManagedProcess | None = None

    def start(self) -> None:
        """Start the server and return when it is ready."""
        self.spawn()
        self.wait_until_ready()

    @abstractmethod
    def spawn(self) -> None:
        """Start the server without waiting for it; PortInUse, ToolMissing or ProcessEnded if it cannot be."""

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether the server answers at this moment; takes PROBE_TIMEOUT_S at most."""

    @abstractmethod
    def wait_until_ready(self) -> None:
        """Return when the server does its work; its error if that takes too long."""

    def obstacle(self) -> str:
        """Return what plainly keeps the server from its work, whether it runs or not: a full disk; else ''."""
        try:
            system = os.statvfs(self._home)
        except OSError:
            return ""
        # Root may use what is kept back from others.
        block_count = system.f_bfree if os.geteuid() == 0 else system.f_bavail
        return f"the disk of {self._home} is full" if block_count * system.f_frsize < _ROOM_MIN_BYTES else ""

    def _launch(self, configure: Callable[[], None], *options: str) -> None:
        """Start the program on its configuration, which `configure` writes once no former process uses it."""
        tool = find_tool(self.program, package=self.program, tool_directories=[self._directory.tools])
        # After a kill -9 of its parent a child saves its files for a moment; two on one directory would destroy them.
        pid = find_process(pid_file(self._home), program=self.program, argument=str(self._configuration))
        if pid is not None:
            end_leftover(pid, timeout_s=self._settings.stop_timeout_s)
        configure()
        self._process = ManagedProcess.start(
            self._log_file.stem,
            [tool.path, *options, self._configuration],
            log_file=self._log_file,
            environment=tool.environment,
        )
        try:
            write_atomically(pid_file(self._home), f"{self._process.pid}\n".encode())
        except OSError:
            # Nobody would find it when this process has died.
            self._process.send_signal(signal.SIGKILL)
            self._process.stop(timeout_s=self._settings.stop_timeout_s)
            raise

    def _wait_until(self, is_ready: Callable[[], bool]) -> None:
        process, timeout_s = self._require_process(), self._settings.start_timeout_s
        if not process.wait_until(is_ready, timeout_s=timeout_s):
            raise self.error(
                f"{self.label} did not become ready in {timeout_s} s; see {process.log_file}:\n{process.log_tail()}"
            )

    def stop(self) -> None:
        """End the server, with time to save what it keeps. Nothing happens if it does not run."""
        if self._process is not None:
            self._process.stop(timeout_s=self._settings.stop_timeout_s)
            pid_file(self._home).unlink(missing_ok=True)

    def is_alive(self) -> bool:
        """Tell whether the server's process runs."""
        return self._process is not None and self._process.is_alive()

    def end(self) -> str:
        """Return how the server's process ended: `ended with signal 9`; for after it has."""
        return self._require_process().end()

    @property
    def pid(self) -> int:
        """The server's process id; it must have been started."""
        return self._require_process().pid

    def _require_process(self) -> ManagedProcess:
        if self._process is None:
            raise self.error(f"{self.label} has not been started; start it first")
        return self._process
