"""Trying whether a behaviour can be made, in a process that ends afterwards: whoever asks runs none of its code."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError

from actors.behaviors import load_behavior
from actors.errors import BehaviorUnusable
from actors.placement import HEAD_NODE
from actors.ray_runtime import NODE_LABEL

# Importing a large library takes seconds on a busy machine.
LOAD_TIMEOUT_S: Final = 30.0


async def try_behavior(name: str, *, directory: Path) -> None:
    """Return if a behaviour, `module:Class`, can be made; BehaviorUnusable says why it can't."""
    task: Any = ray.remote(num_cpus=0.01, max_retries=0, max_calls=1)(_load)
    reference = task.options(label_selector={NODE_LABEL: HEAD_NODE}).remote(name, str(directory))
    try:
        await asyncio.wait_for(reference, LOAD_TIMEOUT_S)
    except RayTaskError as error:
        raise error.cause from None
    except TimeoutError:
        with suppress(RayError):
            ray.cancel(reference, force=True)
        raise BehaviorUnusable(name, f"was not imported after {LOAD_TIMEOUT_S:.0f} s") from None
    except RayError as error:
        raise BehaviorUnusable(name, f"ended its process: {str(error).splitlines()[0]}") from None


def _load(name: str, directory: str) -> None:
    load_behavior(name, Path(directory))
