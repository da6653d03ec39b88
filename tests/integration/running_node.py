"""A further node of a platform, run by a child process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.integration.running_platform import (
    SHARD_ACTORS,
    START_TIMEOUT_S,
    TWINFLEET,
    environment_of,
    processes_of,
    until,
)


class RunningNode:
    """A node that was started for the head at `head`; it is called as its own data directory is.

    `prefix` is a command that runs the node's, with more variables in its environment.
    """

    def __init__(
        self,
        head: Path,
        data_dir: Path,
        *arguments: str,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_name(f"{data_dir.name}.output")
        command = ["up", "--join", str(head), "--node", data_dir.name, *SHARD_ACTORS, *arguments]
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *TWINFLEET, *command, "--data-dir", str(data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment_of(data_dir, environment),
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when the node says that it serves."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            return "ready" in self.output.read_text().splitlines()

        until(is_ready, f"{self.data_dir.name} is ready", timeout_s=START_TIMEOUT_S)

    def expect_nothing_left(self) -> None:
        """Fail unless every process of the node ends within seconds."""
        until(lambda: not processes_of(self.data_dir), f"every process of {self.data_dir.name} has ended")

    def end(self) -> None:
        """End the node without a word, if it has not ended; what it has started ends with it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
