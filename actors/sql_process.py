"""The process of the SQL engine as its parent sees it: started when it is needed, killed when it does not obey."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from actors.errors import AnswerTooLate, OperatorError, SqlEngineError
from actors.sql import SqlPlan
from actors.sql_worker import LENGTH, AnswerForm, Order, Result, receive

# A question that was interrupted ends within milliseconds; one that has not by then is beyond interrupting.
_GRACE_S: Final = 0.5
# The start of the process takes 0.4 s on a quiet core; a question waits for it.
_START_S: Final = 10.0
# Reading a question takes less than a millisecond, whatever it is.
_PLAN_TIMEOUT_S: Final = 2.0
# Some columns of a million twins; what is larger is given back before the next question.
_KEPT_BYTES_MAX: Final = 64 << 20
_ROOT: Final = Path(__file__).resolve().parents[1]


class SqlProcess:
    """Answers one question at a time, in a process of its own; methods block, and may be called from any thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_new = False
        # Descriptors of the tables' memory, used again and again: a process reads it only until it has answered.
        self._files: list[int] = []
        # How often a process was killed, or died, over a question.
        self.death_count = 0

    @property
    def pid(self) -> int:
        """Return the process id; 0 while there is no process."""
        return 0 if self._process is None else self._process.pid

    def plan(self, sql: str) -> SqlPlan:
        """Return what a question reads, as `SqlSession.plan`; SqlEngineError if the engine died over it."""
        result = self._carry_out(Order(sql, is_plan=True), {}, timeout_s=_PLAN_TIMEOUT_S)
        return SqlPlan(result.tables, result.columns)

    def answer(
        self, sql: str, tables: Mapping[str, pa.Table], *, form: AnswerForm, timeout_s: float, row_max: int
    ) -> Result:
        """Return the answer to a question as bytes of the wanted form, as `SqlSession.answer`.

        AnswerTooLate if it takes longer than `timeout_s`; a process that does not end it then is killed. SqlEngineError
        if the process died over it.
        """
        order = Order(sql, tables=tuple(tables), form=form, timeout_s=timeout_s, row_max=row_max)
        return self._carry_out(order, tables, timeout_s=timeout_s)

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._turn:
            self._end()

    def _carry_out(self, order: Order, tables: Mapping[str, pa.Table], *, timeout_s: float) -> Result:
        with self._turn:
            begun_s = time.monotonic()
            connection = self._started()
            # The process's own start is not the question's time.
            start_s = _START_S if self._is_new else 0.0
            descriptors = [self._in_shared_memory(n, table) for n, table in enumerate(tables.values())]
            message = msgspec.msgpack.encode(order)
            left_s = max(0.0, begun_s + timeout_s - time.monotonic())
            try:
                connection.settimeout(left_s + start_s + _GRACE_S)
                socket.send_fds(connection, [LENGTH.pack(len(message))], descriptors)
                connection.sendall(message)
                answered = receive(connection)
            except TimeoutError:
                self.death_count += 1
                self._replace()
                raise AnswerTooLate(timeout_s) from None
            except (OSError, EOFError):
                answered = None
            if answered is None:
                self.death_count += 1
                self._replace()
                raise SqlEngineError
            self._is_new = False
            result = msgspec.msgpack.decode(answered[0], type=Result)
            if result.is_spent:
                self._replace()
        if result.is_late:
            raise AnswerTooLate(timeout_s)
        if result.refusal:
            raise OperatorError(result.refusal)
        return result

    def _started(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            # It died while nobody asked.
            self._end()
        if self._connection is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "actors.sql_worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    # Nothing of ours: no token, no address, no home.
                    env={"PYTHONPATH": str(_ROOT), "TZ": "UTC", "LC_ALL": "C.UTF-8"},
                    start_new_session=True,
                )
            self._connection = ours
            self._is_new = True
        return self._connection

    def _in_shared_memory(self, number: int, table: pa.Table) -> int:
        """Return the descriptor of a file in memory that holds a table as an Arrow stream; `number` counts them.

        The file is that of an earlier question, if it is not too large: pages that are there need not be cleared.
        """
        while len(self._files) <= number:
            self._files.append(os.memfd_create("table"))
        if os.fstat(self._files[number]).st_size > _KEPT_BYTES_MAX:
            os.close(self._files[number])
            self._files[number] = os.memfd_create("table")
        descriptor = self._files[number]
        os.lseek(descriptor, 0, os.SEEK_SET)
        with (
            pa.PythonFile(os.fdopen(os.dup(descriptor), "wb", buffering=0), "w") as file,
            pa.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table)
        return descriptor

    def _replace(self) -> None:
        self._end()
        # At once, so that the next question need not wait for it.
        self._started()

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        process, self._process = self._process, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()
        # What others have had is not for the next process to find.
        while self._files:
            os.close(self._files.pop())
