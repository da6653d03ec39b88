"""The load processes of a run: started, ordered about together, and ended; one that dies is told of by name.

Several, because a process has a limited number of descriptors, one for each connection, and because one core is not
enough for the handshakes of many devices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from actors.processes import open_file_count_max
from actors.settings import process_environment
from scenarios.errors import LoadFailed, NameTaken
from scenarios.load_orders import (
    Answer,
    Begin,
    LoadNews,
    LoadSettings,
    Order,
    decode_answer,
    encode_line,
)
from twins.messages import TickSummary

# Descriptors of a process that are no connections: files, pipes, the event loop's own, certificates being read.
_OTHER_FILES: Final = 100
# An interpreter starts within seconds, also on a machine that is busy.
_START_TIMEOUT_S: Final = 60.0
# A process whose input has ended says goodbye to its connections, which are thousands.
_STOP_TIMEOUT_S: Final = 20.0
# Answers hold counts and histograms: some kilobytes.
_LINE_BYTES_MAX: Final = 16 << 20


def process_count_for(device_count: int, wanted: int = 0) -> int:
    """Return how many load processes so many devices take: as many as wanted, but what descriptors ask for at least."""
    per_process = max(1, open_file_count_max() - _OTHER_FILES)
    # Devices are dealt out in blocks, so that one process may have a block more than the next.
    return max(1, wanted, -(-int(device_count * 1.05) // per_process))


@dataclass(slots=True)
class _Member:
    """One load process."""

    number: int
    process: Process
    errors: Path
    answer: Answer = field(default_factory=Answer)


class LoadCrew:
    """The load processes of one run; `start` makes them, and `stop` ends them whatever state they are in."""

    def __init__(self) -> None:
        self._members: list[_Member] = []

    @property
    def count(self) -> int:
        """Return the number of processes."""
        return len(self._members)

    @property
    def pids(self) -> list[int]:
        """Return the processes' ids."""
        return [member.process.pid for member in self._members]

    @property
    def answers(self) -> list[Answer]:
        """Return each process's latest answer."""
        return [member.answer for member in self._members]

    async def start(self, settings: LoadSettings, count: int, directory: Path) -> None:
        """Start so many processes; what they have to complain of goes to files in the directory."""
        for number in range(count):
            errors = directory / f"load-{number}.errors"
            with errors.open("wb") as stream:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "scenarios.load_process",
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=stream,
                    limit=_LINE_BYTES_MAX,
                    env=_environment(),
                    start_new_session=True,
                )
            self._members.append(_Member(number, process, errors))
        orders = [
            Begin(
                msgspec.structs.replace(
                    settings,
                    number=number,
                    process_count=count,
                    connect_rate=settings.connect_rate / count,
                )
            )
            for number in range(count)
        ]
        async with asyncio.timeout(_START_TIMEOUT_S):
            await self._order(orders)

    async def order(self, order: Order) -> tuple[dict[str, TickSummary], LoadNews]:
        """Have all processes carry out an order, and return the summaries by group and the news of them together.

        LoadFailed if a process has ended or could not do it, NameTaken if a thing of a device was there before.
        """
        return await self._order([order] * self.count)

    async def _order(self, orders: Sequence[Order]) -> tuple[dict[str, TickSummary], LoadNews]:
        # All of them, whatever becomes of one: an answer that nobody waits for would be taken for the next one.
        found = await asyncio.gather(
            *(self._ask(member, order) for member, order in zip(self._members, orders, strict=True)),
            return_exceptions=True,
        )
        answers = [each for each in found if isinstance(each, Answer)]
        for each in found:
            if isinstance(each, BaseException):
                raise each
        summaries: dict[str, TickSummary] = {}
        news = LoadNews()
        for answer in answers:
            news.add(answer.news)
            for name, summary in answer.summaries.items():
                summaries[name] = summaries.get(name, TickSummary()) + summary
        for answer in answers:
            if answer.taken:
                raise NameTaken("thing", answer.taken)
            if answer.error:
                raise LoadFailed(answer.error)
        return summaries, news

    async def _ask(self, member: _Member, order: Order) -> Answer:
        process = member.process
        if process.stdin is None or process.stdout is None:
            raise LoadFailed("a load process has no pipes")
        line = b""
        with contextlib.suppress(ConnectionError):
            process.stdin.write(encode_line(order) + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        if not line:
            code = await process.wait()
            why = _last_line(member.errors)
            raise LoadFailed(
                f"load process {member.number + 1} of {self.count} ended with {code}"
                + (f" ({why})" if why else "")
                + f"; its devices, {member.answer.news.online:,} of them connected, are gone with it"
            )
        member.answer = decode_answer(line)
        return member.answer

    async def stop(self) -> None:
        """End all processes; those that do not end in time are killed."""
        for member in self._members:
            if member.process.stdin is not None:
                member.process.stdin.close()
        for member in self._members:
            try:
                await asyncio.wait_for(member.process.wait(), _STOP_TIMEOUT_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    member.process.kill()
                await member.process.wait()
        self._members.clear()


def _last_line(file: Path) -> str:
    """Return the last line of a file, which of an interpreter's last words is the one that says why."""
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines() if file.exists() else []
    return lines[-1] if lines else ""


def _environment() -> dict[str, str]:
    """Return this process's environment, in which a load process finds the package wherever it was started from."""
    environment = process_environment()
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
