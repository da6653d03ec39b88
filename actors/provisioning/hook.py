"""The pre-provisioning hook of a template: somebody else's word on whether a device may become what it asks to be.

A hook is a Python function (`package.module:function`), run in a process of its own, or an address (`https://...`) that
takes a POST. Either gets the question as a JSON object and answers with one: `allowProvisioning` and, if it likes,
`parameterOverrides`. It has five seconds. What fails, takes longer or answers anything else has denied.

As a program (`python -m actors.provisioning.hook module:function`) this module is the process that runs the function:
the question on its standard input, the answer on its standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final

import httpx
import msgspec

from actors.errors import DescriptionError, ProvisioningRefused

# AWS IoT's.
TIMEOUT_S: Final = 5.0
# Answers hold a word and some parameters; a template as a whole has 10 kB.
_ANSWER_BYTES_MAX: Final = 65_536
_HOOK_LENGTH_MAX: Final = 2_048
_NAME: Final = r"[A-Za-z_]\w*"
_ENTRY_POINT: Final = re.compile(rf"{_NAME}(?:\.{_NAME})*:{_NAME}", re.ASCII)
_ADDRESS: Final = re.compile(r"https?://[^\s/?#]+[^\s]*", re.ASCII)
# What the child is told instead of a question when it only has to find the function.
_CHECK: Final = "--check"
_TOO_LATE: Final = f"no answer within {TIMEOUT_S:g} s"
_LOG: Final = logging.getLogger(__name__)


class HookAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """What a hook says; overrides take the place of the device's parameters, or join them."""

    allow_provisioning: bool
    parameter_overrides: dict[str, str] | None = None


class _HookFailed(Exception):
    """A hook gave no answer that counts; the text says why, for the log."""


async def check_hook(hook: str) -> None:
    """Refuse, with DescriptionError, what is no hook, and a Python function that cannot be found."""
    if len(hook) > _HOOK_LENGTH_MAX or not (_ENTRY_POINT.fullmatch(hook) or _ADDRESS.fullmatch(hook)):
        problem = f"{hook!r} is none; name a Python function as `module:function`, or an http(s) address"
        raise DescriptionError("hook", problem)
    if _ENTRY_POINT.fullmatch(hook):
        try:
            await asyncio.to_thread(_run, [hook, _CHECK], b"")
        except _HookFailed as failure:
            problem = (
                f"{hook!r} cannot be run: {failure}; it must be importable where the platform was started"
            )
            raise DescriptionError("hook", problem) from None


async def ask_hook(hook: str, question: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the parameters that the hook overrides; ProvisioningRefused (403) if it does not allow the device."""
    encoded = msgspec.json.encode(question)
    try:
        if _ENTRY_POINT.fullmatch(hook):
            raw = await asyncio.to_thread(_run, [hook], encoded)
        else:
            raw = await _post(hook, encoded)
        answer = msgspec.json.decode(raw, type=HookAnswer)
    except (_HookFailed, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        _LOG.warning("hook %s counts as a denial: %s", hook, failure)
        answer = HookAnswer(allow_provisioning=False)
    if not answer.allow_provisioning:
        raise ProvisioningRefused(403, "ACCESS_DENIED", "The pre-provisioning hook did not allow it")
    return answer.parameter_overrides or {}


def _run(arguments: list[str], question: bytes) -> bytes:
    """Return what the process that runs a function answers; when this returns it is gone, with what it has started."""
    until_s = time.monotonic() + TIMEOUT_S
    command = [sys.executable, "-m", __spec__.name, *arguments]
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        raise _HookFailed(str(error)) from None
    try:
        # A device's payload at most, which a pipe holds, also if nobody reads it.
        with contextlib.suppress(BrokenPipeError), _opened(child.stdin) as asked:
            asked.write(question)
        with _opened(child.stdout) as answers, _opened(child.stderr) as said:
            answer, words = _ends_of((answers, said), until_s)
        exit_code = child.wait(max(0.0, until_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _HookFailed(_TOO_LATE) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if exit_code != 0:
        lines = words.decode(errors="replace").strip().splitlines()
        raise _HookFailed(lines[-1] if lines else f"it ended with exit code {exit_code}")
    if len(answer) > _ANSWER_BYTES_MAX:
        raise _HookFailed(f"an answer of more than {_ANSWER_BYTES_MAX} bytes")
    return answer


def _opened(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all three are pipes"
    return stream


def _ends_of(streams: Sequence[IO[bytes]], until_s: float) -> list[bytes]:
    """Return the last of what comes from each, one byte more than an answer may have, once all are closed."""
    ends = dict.fromkeys(streams, b"")
    with selectors.DefaultSelector() as waiting:
        for stream in streams:
            waiting.register(stream, selectors.EVENT_READ, stream)
        while waiting.get_map():
            ready = waiting.select(max(0.0, until_s - time.monotonic()))
            if not ready or time.monotonic() > until_s:
                raise _HookFailed(_TOO_LATE)
            for key, _ in ready:
                part = os.read(key.fd, _ANSWER_BYTES_MAX)
                ends[key.data] = (ends[key.data] + part)[-_ANSWER_BYTES_MAX - 1 :]
                if not part:
                    waiting.unregister(key.data)
    return list(ends.values())


async def _post(address: str, question: bytes) -> bytes:
    # As it is: what a few bytes unpack to would be in memory before it could be measured.
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    body = b""
    try:
        # The settings of this machine's user, proxies above all, are not the platform's.
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", address, content=question, headers=headers) as answer,
        ):
            async for part in answer.aiter_raw():
                body += part
                if len(body) > _ANSWER_BYTES_MAX:
                    raise _HookFailed(f"an answer of more than {_ANSWER_BYTES_MAX} bytes")
    except TimeoutError:
        raise _HookFailed(_TOO_LATE) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _HookFailed(f"{type(error).__name__}: {error}") from None
    if answer.status_code != httpx.codes.OK:
        raise _HookFailed(f"status {answer.status_code}")
    return body


def _function(hook: str) -> Callable[[Any], Any]:
    module, _, name = hook.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not callable(found):
        raise TypeError(f"{hook} is no function")
    function: Callable[[Any], Any] = found
    return function


def _main(arguments: list[str]) -> None:
    """Run the function named by the first argument; what it prints goes to standard error."""
    # Should the gateway be killed meanwhile, nobody else ends a function that hangs.
    signal.alarm(math.ceil(TIMEOUT_S) + 1)
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    function = _function(arguments[0])
    if arguments[1:] == [_CHECK]:
        return
    answer = function(msgspec.json.decode(sys.stdin.buffer.read()))
    with os.fdopen(answers, "wb") as pipe:
        pipe.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    _main(sys.argv[1:])
