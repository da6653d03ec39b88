"""Ray itself: a private head on loopback that ends with its starter, and drivers that join one.

Ray is told everything through its environment and arguments; nothing of it is read from or written to the home
directory.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ray

from actors.errors import PlatformNotRunning, WorldError
from actors.settings import Endpoints, RayEndpoint, export_environment

NAMESPACE: Final = "twinfleet"
# Objects that travel between processes are batches of 100 KB and answers of some megabytes.
_OBJECT_STORE_BYTES: Final = 200 * 2**20
# Processes that Ray may start at the same time; our actors ask for a hundredth each, so this limits nothing else.
_CPU_COUNT: Final = 4
# A driver that does not get through in three tries of a second each will not.
_JOIN_ATTEMPTS: Final = 3


def _tell_ray(token_file: Path) -> None:
    """Give Ray its settings, for this process and for those that it starts; whether Ray was imported before or not."""
    export_environment(
        {
            # Ray then keeps 127.0.0.1 instead of replacing it by the host's address, and listens there only.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Otherwise a fixed port, which two platforms on one machine would fight for.
            "AUTOSCALER_METRIC_PORT": "0",
            # Workers would run at nice 15, behind the broker and the store that they serve.
            "RAY_worker_niceness": "0",
            "RAY_NUM_REDIS_GET_RETRIES": str(_JOIN_ATTEMPTS),
        }
    )
    # Ray has read the first two when it was imported. With the old values a driver would look for the platform at the
    # host's address, and hang.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    # Its handlers of SIGTERM would end this process wherever it stands; who starts Ray has its own.
    ray._private.utils.set_sigterm_handler = lambda _handler: None
    ray._raylet.Config.initialize("")  # type: ignore[attr-defined]  # not in its stubs


@contextlib.contextmanager
def local_head(token_file: Path) -> Iterator[RayEndpoint]:
    """Run a Ray head of our own while the context is open, with this process as its driver.

    For the main thread only: the kernel ends Ray's processes when the thread that started them ends. A watcher in a
    session of its own ends what is left, and removes Ray's directory, however this process dies.
    """
    # Ray makes its directory readable for everybody, so it stands inside one that is not. Kept short: the names of
    # the sockets in it may have 107 bytes.
    outer = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
    watcher = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ray_watcher.py")), outer],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _tell_ray(token_file)
        context: Any = ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            _temp_dir=f"{outer}/r",
            include_dashboard=False,
            num_cpus=_CPU_COUNT,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace=NAMESPACE,
        )
        try:
            address = context.address_info["gcs_address"]
            yield RayEndpoint(address=address, token_file=str(token_file), namespace=NAMESPACE)
        finally:
            ray.shutdown()
    finally:
        if watcher.stdin is not None:
            watcher.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # It waits ten seconds for stragglers at most.
            watcher.wait(12)
        shutil.rmtree(outer, ignore_errors=True)


def _require_listener(endpoints: Endpoints) -> None:
    """Raise PlatformNotRunning at once where nothing listens: Ray would try for minutes."""
    host, _, port = endpoints.ray.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_JOIN_ATTEMPTS).close()
    except OSError as error:
        data_dir = Path(endpoints.ray.token_file).parent
        raise PlatformNotRunning(
            data_dir, f"Ray at {endpoints.ray.address} does not answer: {error}"
        ) from error


def join(endpoints: Endpoints) -> None:
    """Make this process a driver of the platform's Ray; PlatformNotRunning if that does not answer."""
    _tell_ray(Path(endpoints.ray.token_file))
    _require_listener(endpoints)
    if ray.is_initialized():
        raise WorldError("this process is already part of a Ray cluster; use a process of its own")
    try:
        ray.init(
            address=endpoints.ray.address,
            namespace=endpoints.ray.namespace,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ray.exceptions.RayError) as error:
        data_dir = Path(endpoints.ray.token_file).parent
        raise PlatformNotRunning(
            data_dir, f"Ray at {endpoints.ray.address} does not answer: {error}"
        ) from error
