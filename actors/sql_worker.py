"""The process in which questions of others are answered: `python -m actors.sql_worker FD`, FD one end of a socket pair.

It holds no secret, has no network, writes no file, and is killed by its parent when it does not obey. Tables come as
Arrow streams in shared memory and are read where they lie; answers go back through the socket, as bytes of the wanted
form. Messages in both directions are `Order` and `Result`, each behind its length (4 bytes, big-endian).
"""

from __future__ import annotations

import contextlib
import csv
import io
import mmap
import os
import queue
import resource
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa

from actors.errors import AnswerTooLate, OperatorError
from actors.sql import SqlEngine, SqlPlan, SqlSession

AnswerForm = Literal["json", "csv", "arrow"]
LENGTH: Final = struct.Struct(">I")
# Tables of one question; there are four.
TABLE_COUNT_MAX: Final = 16
# An answer of the most rows, with some hundred bytes each.
_ANSWER_BYTES_MAX: Final = 64 << 20
# Address space of our own. 1.3 GB are set aside at the start, mostly unused; the rest is for the engine (512 MB, but
# for texts that it forgets to count) and for the answer in its forms. Tables are not ours.
_PRIVATE_BYTES_MAX: Final = 3 << 30
# The allocator gives nothing back: with so much set aside, another process goes on with more room.
_SPENT_BYTES: Final = 2 << 30
_encode_rows: Final = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


class Order(msgspec.Struct, frozen=True):
    """A question to be planned, or answered over the `tables` whose descriptors come with it."""

    sql: str
    is_plan: bool = False
    tables: tuple[str, ...] = ()
    form: AnswerForm = "json"
    timeout_s: float = 0.0
    row_max: int = 0


class Result(msgspec.Struct, frozen=True):
    """What came of an order: a plan, or an answer of so many rows in the wanted form; or the refusal of either."""

    refusal: str = ""
    is_late: bool = False
    # Whether the process is to be replaced before the next order.
    is_spent: bool = False
    tables: frozenset[str] | None = None
    columns: frozenset[str] | None = None
    row_count: int = 0
    # (name, type) of each column.
    schema: tuple[tuple[str, str], ...] = ()
    content: bytes = b""


def receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return the next message with the descriptors that came with it; None at the end of the connection."""
    head, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, TABLE_COUNT_MAX)
    if not head:
        return None
    head += _exactly(connection, LENGTH.size - len(head))
    return _exactly(connection, *LENGTH.unpack(head)), descriptors


def _exactly(connection: socket.socket, length: int) -> bytes:
    content = bytearray(length)
    view = memoryview(content)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the connection ended in the middle of a message")
        view = view[count:]
    return bytes(content)


def main() -> None:
    """Answer one order after the other until the connection ends, and with it the process."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _give_up_rights()
    orders: queue.Queue[tuple[bytes, list[int]]] = queue.Queue()
    # Beside the work, so that the end of the parent ends it.
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    engine = SqlEngine()
    while True:
        encoded, descriptors = orders.get()
        order = msgspec.msgpack.decode(encoded, type=Order)
        with contextlib.closing(engine.session()) as session:
            result = _carry_out(session, order, descriptors)
        if _own_bytes() > _SPENT_BYTES:
            result = msgspec.structs.replace(result, is_spent=True)
        answered = msgspec.msgpack.encode(result)
        connection.sendall(LENGTH.pack(len(answered)) + answered)


def _listen(connection: socket.socket, orders: queue.Queue[tuple[bytes, list[int]]]) -> None:
    try:
        while message := receive(connection):
            orders.put(message)
    finally:
        os._exit(0)


def _give_up_rights() -> None:
    """Write no file from now on, leave no core, take no more memory than is due, and be the first to go without."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_PRIVATE_BYTES_MAX, _PRIVATE_BYTES_MAX))
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # One core for the one who asks; the other cores serve devices.
    pa.set_cpu_count(1)


def _own_bytes() -> int:
    """Return the bytes that RLIMIT_DATA bounds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * mmap.PAGESIZE


def _carry_out(session: SqlSession, order: Order, descriptors: Sequence[int]) -> Result:
    tables = {name: _table(descriptor) for name, descriptor in zip(order.tables, descriptors, strict=True)}
    try:
        if order.is_plan:
            plan: SqlPlan = session.plan(order.sql)
            return Result(tables=plan.tables, columns=plan.columns)
        answer = session.answer(order.sql, tables, timeout_s=order.timeout_s, row_max=order.row_max)
        if answer.nbytes > _ANSWER_BYTES_MAX:
            raise OperatorError(f"the answer has more than {_ANSWER_BYTES_MAX >> 20} MB; ask for less")
        schema = tuple(
            (name, str(kind)) for name, kind in zip(answer.column_names, answer.schema.types, strict=True)
        )
        return Result(row_count=answer.num_rows, schema=schema, content=_FORMS[order.form](answer))
    except AnswerTooLate:
        return Result(is_late=True)
    except OperatorError as error:
        return Result(refusal=str(error))
    except (MemoryError, pa.ArrowMemoryError):
        return Result(refusal="the answer takes too much memory; ask for less")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError, ValueError) as error:
        # A value that the engine can hold and no form can: a date beyond all calendars, for one.
        return Result(refusal=f"the answer can't be written as {order.form}: {error}")


def _table(descriptor: int) -> pa.Table:
    """Return the table of an Arrow stream in shared memory, which stays where it is; closes the descriptor."""
    try:
        memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    return pa.ipc.open_stream(pa.py_buffer(memory)).read_all()


def _rows(answer: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in answer.columns), strict=True)


def _json(answer: pa.Table) -> bytes:
    """Return the rows as a JSON array of arrays; times as text, intervals as [months, days, ns]."""
    return _encode_rows(list(_rows(answer)))


def _csv(answer: pa.Table) -> bytes:
    """Return the rows with a heading; lists and objects in JSON, nothing where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer.column_names)
    for row in _rows(answer):
        writer.writerow([_cell(value) for value in row])
    return text.getvalue().encode(errors="replace")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return _encode_rows(value).decode() if isinstance(value, dict | list | tuple | bytes) else value


def _arrow(answer: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.schema) as writer:
        writer.write_table(answer)
    content: bytes = sink.getvalue().to_pybytes()
    return content


_FORMS: Final = {"json": _json, "csv": _csv, "arrow": _arrow}

if __name__ == "__main__":
    main()
