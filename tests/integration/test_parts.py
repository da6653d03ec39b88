"""Parts of a platform that can't be brought back at present say why, and come back when they can."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from actors.errors import WorldError
from actors.parts import ServerPart
from actors.servers import pid_file
from actors.settings import DataDirectory
from tests.integration.running_platform import until
from tests.running_store import running_store


async def test_a_server_that_cannot_be_written_a_file_comes_back_when_it_can(tmp_path: Path) -> None:
    with running_store(tmp_path / "store") as server:
        part = ServerPart("store", server)
        os.kill(part.pid, signal.SIGKILL)
        until(lambda: not server.is_alive(), "the store ends")
        # What a full disk does: the file of the process id can't be put into its place.
        file = pid_file(DataDirectory(tmp_path / "store").redis)
        file.unlink()
        (file / "in the way").mkdir(parents=True)
        with pytest.raises(WorldError, match="it can't be started") as refusal:
            await part.revive()
        assert refusal.value.retryable
        (file / "in the way").rmdir()
        file.rmdir()
        await part.revive()
        assert await part.trouble() == ""
