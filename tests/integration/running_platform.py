"""A whole platform as a child process: started on free ports, asked through its command line and API, and ended.

It also finds every process that belongs to a platform, so that tests can say that none is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from actors.errors import PlatformNotRunning
from actors.pki import generate_key_and_csr
from actors.processes import wait_until
from actors.settings import DataDirectory, Endpoints

# A start takes about 12 s on two quiet cores, and below a minute when other tests keep them busy.
START_TIMEOUT_S: Final = 90.0
# A stop takes about 3 s; each part may take 10 s to save what it holds.
STOP_TIMEOUT_S: Final = 40.0
# A command takes a second; one that creates a fleet somewhat longer.
COMMAND_TIMEOUT_S: Final = 60.0
# Whatever else is waited for takes milliseconds on a quiet machine.
DEADLINE_S: Final = 30.0
FREE_PORTS: Final = ("--mqtt-port", "0", "--device-port", "0", "--api-port", "0")
# More than one, however few cores the machine has: what happens between them is part of what is tested.
SHARD_ACTORS: Final = ("--shard-actors", "2")
TWINFLEET: Final = ("-m", "twinfleet")
# Every process of a platform inherits this variable from the process that started it.
_MARK: Final = "TWINFLEET_STARTED_FOR"


def until(is_true: Callable[[], bool], what: str, *, timeout_s: float = DEADLINE_S) -> None:
    """Wait until the condition holds; the test fails with `what` was waited for when time is up."""
    assert wait_until(is_true, timeout_s=timeout_s), f"{what}: not within {timeout_s} s"


def environment_of(data_dir: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a platform of a test: nothing of this process's Ray, and an empty home directory."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    home = data_dir.with_name(f"{data_dir.name}-home")
    home.mkdir(exist_ok=True)
    return own | {"HOME": str(home), _MARK: str(data_dir), "COLUMNS": "200"} | dict(more or {})


def processes_of(data_dir: Path, *directories: Path) -> list[psutil.Process]:
    """Return what runs for the platform on `data_dir`, whoever its parent is; it may also work in `directories`."""
    return [process for process in psutil.process_iter() if _works_for(process, data_dir, *directories)]


def _works_for(process: psutil.Process, *directories: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(_MARK) == str(directories[0]):
            return True
        command = process.cmdline()
        # The kernel's own have no command. Ray's agents write their title over their environment, and even over
        # their arguments; what they hold open tells whose they are.
        texts = command + [file.path for file in process.open_files()] if command else []
        return any(f"{directory}/" in text for text in texts for directory in directories)
    except psutil.Error:
        # Gone meanwhile, or not ours to look into.
        return False


def run_twinfleet(
    *arguments: str, data_dir: Path, program: Sequence[str] = TWINFLEET, **more: str
) -> subprocess.CompletedProcess[str]:
    """Return what a command answered, typed in a shell of its own; `more` are environment variables."""
    return subprocess.run(
        [sys.executable, *program, *arguments, "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        env=environment_of(data_dir, more),
    )


class RunningPlatform:
    """A platform that was started by `start`, and may have ended since."""

    def __init__(self, data_dir: Path, process: subprocess.Popen[bytes], output: Path) -> None:
        self.data_dir: Final = data_dir
        self.directory: Final = DataDirectory(data_dir)
        self.process: Final = process
        self._output = output
        self._ray_directory: Path | None = None
        self._endpoints: Endpoints | None = None

    @classmethod
    def start(
        cls, data_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> RunningPlatform:
        """Start a platform, with more variables in its environment, and return at once."""
        output = data_dir.with_name(f"{data_dir.name}.output")
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "twinfleet",
                    "up",
                    "--data-dir",
                    str(data_dir),
                    *FREE_PORTS,
                    *SHARD_ACTORS,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment_of(data_dir, environment),
                start_new_session=True,
            )
        return cls(data_dir, process, output)

    def output(self) -> str:
        """Return what the platform has printed."""
        return self._output.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Return when the platform has written its endpoints."""

        def is_ready() -> bool:
            assert self.process.poll() is None, f"the platform ended while it started:\n{self.output()}"
            # The file of one that was killed is still there.
            with contextlib.suppress(PlatformNotRunning):
                return Endpoints.read(self.data_dir).pid == self.process.pid
            return False

        until(is_ready, f"the platform is ready; it says\n{self.output()}", timeout_s=START_TIMEOUT_S)
        self._endpoints = Endpoints.read(self.data_dir)
        assert self.ray_directory().is_dir()

    @property
    def endpoints(self) -> Endpoints:
        """Where the platform can be reached; it must be ready."""
        assert self._endpoints is not None
        return self._endpoints

    def ray_directory(self) -> Path:
        """Return the private temporary directory of the platform's Ray, which must have been made."""
        if self._ray_directory is None:
            self.processes()
        assert self._ray_directory is not None
        return self._ray_directory

    def processes(self) -> list[psutil.Process]:
        """Return every process of this platform that runs, whoever its parent is by now."""
        found = processes_of(self.data_dir, *([self._ray_directory] if self._ray_directory else []))
        for process in found:
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if any(word.endswith("ray_watcher.py") for word in command):
                    self._ray_directory = Path(command[-1])
        return found

    def child_names(self) -> set[str]:
        """Return the names of the supervisor's children and of theirs; cheap enough to be asked all the time."""
        names = set()
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    names.add(child.name())
        return names

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Return what a command answered that was told to talk to this platform."""
        return run_twinfleet(*arguments, data_dir=self.data_dir)

    def done(self, *arguments: str) -> str:
        """Return what a command printed; the test fails if the command does."""
        answer = self.run(*arguments)
        assert answer.returncode == 0, answer
        assert answer.stderr == "", answer
        return answer.stdout

    def json(self, *arguments: str) -> Any:
        """Return the document that a command printed."""
        return json.loads(self.done(*arguments, "-o", "json"))

    def api(self) -> httpx.Client:
        """Return a client of the operators' API; the caller closes it."""
        token = Path(self.endpoints.operator_token_file).read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        # Without `verify` each client would read all the certificates of the system first.
        return httpx.Client(
            base_url=self.endpoints.api.url, headers=headers, timeout=DEADLINE_S, verify=False
        )

    def enrol(self, name: str, directory: Path) -> None:
        """Register a device and write its files as `twinfleet device create` does, which takes a second longer."""
        pair = generate_key_and_csr(name)
        with self.api() as api:
            answer = api.post("/v1/things", json={"name": name, "model": "thermostat", "csr": pair.csr_pem})
        assert answer.status_code == 201, answer.text
        (directory / f"{name}.pem").write_text(answer.json()["certificate_pem"])
        (directory / f"{name}.key").write_text(pair.private_key_pem)
        (directory / "ca.pem").write_text(answer.json()["ca_pem"])

    def version_of(self, thing_name: str) -> int:
        """Return the version of a thing's shadow, 0 where it has none."""
        with self.api() as api:
            return int(api.get(f"/things/{thing_name}/shadow").json().get("version", 0))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the supervisor, and return its exit code once it has ended."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def expect_nothing_left(self) -> None:
        """Fail unless every process ends within seconds, and Ray's directory and the endpoints go with them."""
        # Once more, in case Ray's directory was made after the last look.
        self.processes()

        def all_ended() -> bool:
            return not self.processes()

        ended = wait_until(all_ended, timeout_s=DEADLINE_S)
        assert ended, [process.cmdline() for process in self.processes()]
        if self._ray_directory is not None:
            directory = self._ray_directory
            until(lambda: not directory.exists(), f"{directory} is removed")

    def end(self) -> None:
        """End the platform, by force if it must be; nothing happens if it has ended."""
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def platform_on(data_dir: Path, *arguments: str) -> Iterator[RunningPlatform]:
    """Give a platform that is ready; whatever becomes of it, it has ended afterwards."""
    platform = RunningPlatform.start(data_dir, *arguments)
    try:
        platform.wait_until_ready()
        yield platform
    finally:
        platform.end()
