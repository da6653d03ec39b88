"""The pre-provisioning hook of a template: somebody else's word on whether a device may become what it asks to be.

A hook is a Python function (`package.module:function`), run in a process of its own, or an address (`https://...`) that
takes a POST. Either gets the question as a JSON object and answers with one: `allowProvisioning` and, if it likes,
`parameterOverrides`. It has five seconds. What fails, takes longer or answers anything else has denied.

As a program (`python -m actors.provisioning_hook module:function`) this module is the process that runs the function:
the question on its standard input, the answer on its standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

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
    except (_HookFailed, msgspec.DecodeError) as failure:
        _LOG.warning("hook %s counts as a denial: %s", hook, failure)
        answer = HookAnswer(allow_provisioning=False)
    if not answer.allow_provisioning:
        raise ProvisioningRefused(403, "ACCESS_DENIED", "The pre-provisioning hook did not allow it")
    return answer.parameter_overrides or {}


def _run(arguments: list[str], question: bytes) -> bytes:
    command = [sys.executable, "-m", "actors.provisioning_hook", *arguments]
    try:
        done = subprocess.run(command, input=question, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _HookFailed(f"no answer within {TIMEOUT_S:g} s") from None
    except OSError as error:
        raise _HookFailed(str(error)) from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _HookFailed(lines[-1] if lines else f"it ended with exit code {done.returncode}")
    if len(done.stdout) > _ANSWER_BYTES_MAX:
        raise _HookFailed(f"an answer of {len(done.stdout)} bytes, {_ANSWER_BYTES_MAX} at most")
    return done.stdout


async def _post(address: str, question: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}
    body = b""
    try:
        # The settings of this machine's user, proxies above all, are not the platform's.
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", address, content=question, headers=headers) as answer,
        ):
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _ANSWER_BYTES_MAX:
                    raise _HookFailed(f"an answer of more than {_ANSWER_BYTES_MAX} bytes")
    except TimeoutError:
        raise _HookFailed(f"no answer within {TIMEOUT_S:g} s") from None
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
    answers = sys.stdout.buffer
    with contextlib.redirect_stdout(sys.stderr):
        function = _function(arguments[0])
        if arguments[1:] == [_CHECK]:
            return
        answer = function(msgspec.json.decode(sys.stdin.buffer.read()))
        answers.write(msgspec.json.encode(answer))
        answers.flush()


if __name__ == "__main__":
    _main(sys.argv[1:])
