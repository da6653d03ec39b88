"""Ray itself: a private head that ends with its starter, nodes that join it, and drivers that do.

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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ray
from ray._private.node import Node
from ray._private.parameter import RayParams

from actors.errors import PlatformNotRunning, WorldError
from actors.placement import HEAD_NODE
from actors.processes import LOOPBACK
from actors.ray_watcher import end_processes_under
from actors.settings import Endpoints, RayEndpoint, export_environment

NAMESPACE: Final = "twinfleet"
# Under this label Ray knows the node of ours that one of its nodes belongs to: actors are bound to it.
NODE_LABEL: Final = "twinfleet-node"
# Objects that travel between processes are batches of 100 KB and answers of some megabytes.
_OBJECT_STORE_BYTES: Final = 200 * 2**20
# Processes that Ray may start at the same time; our actors ask for a hundredth each, so this limits nothing else.
_CPU_COUNT: Final = 4
# A driver that does not get through in three tries of a second each will not.
_JOIN_ATTEMPTS: Final = 3
# Without these two there is no Ray; its other processes (logs, metrics, autoscaler) nobody needs here.
_VITAL: Final = ("gcs_server", "raylet")
# It answers within a second.
_METADATA_TIMEOUT_S: Final = 20.0
_LOOK_UP_TIMEOUT_S: Final = 1.0


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
            # By default whoever misses the metadata service for a minute ends itself, with all its actors.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        }
    )
    # Ray has read the first two when it was imported. With the old values a driver would look for the platform at the
    # host's address, and hang.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    # Its handlers of SIGTERM would end this process wherever it stands; who starts Ray has its own.
    ray._private.utils.set_sigterm_handler = lambda _handler: None
    # A call that is made while Ray is away is an error, not a reason to start another Ray.
    ray._private.auto_init_hook.enable_auto_connect = False
    ray._raylet.Config.initialize("")  # type: ignore[attr-defined]  # not in its stubs


class _PrivateRay:
    """Ray processes with this one as their driver; they end with this process, however that dies.

    For the main thread only: the kernel ends Ray's processes when the thread that started them ends. A watcher in a
    session of its own ends what is left, and removes Ray's directory, after a kill -9 of this process.
    """

    def __init__(self, token_file: Path) -> None:
        # Actors of an earlier start are gone; whoever holds a handle has to find them anew when this has risen.
        self.start_count = 0
        self._token_file = token_file
        # Ray makes its directory readable for everybody, so it stands inside one that is not. Kept short: the names
        # of the sockets in it may have 107 bytes.
        self._outer = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
        self._watcher = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ray_watcher.py")), self._outer],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def _directory(self) -> str:
        return f"{self._outer}/r{self.start_count}"

    def _end(self) -> None:
        ray.shutdown()
        # Actors would outlive their node by some seconds, and one of them might be the bridge.
        end_processes_under(self._directory)

    def stop(self) -> None:
        """End all of it; nothing is left."""
        self._end()
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # It waits ten seconds for stragglers at most.
            self._watcher.wait(12)
        shutil.rmtree(self._outer, ignore_errors=True)


class _LeanNode(Node):
    """A node of Ray without what serves nobody here: its dashboard, and the reader of its workers' logs.

    Each would be a Python process of 60 to 100 MB that every start waits for.
    """

    def start_api_server(self, **_: Any) -> None:
        """Start no dashboard."""

    def start_log_monitor(self) -> None:
        """Start no reader of logs: they stay in their files."""


class RayHead(_PrivateRay):
    """A private Ray head, on loopback unless nodes of other machines are to reach it at another address."""

    def __init__(self, token_file: Path, *, address: str = LOOPBACK) -> None:
        super().__init__(token_file)
        self._address = address
        self._node: Any = None

    def start(self) -> RayEndpoint:
        """Start Ray with nothing in its memory, and return where drivers find it."""
        self.start_count += 1
        _tell_ray(self._token_file)
        export_environment(
            {
                # So that the death of its metadata service is not the death of every actor.
                "RAY_gcs_storage": "rocksdb",
                "RAY_gcs_storage_path": f"{self._outer}/g{self.start_count}",
                # A node that hangs is given up after 20 s in place of 65.
                "RAY_health_check_initial_delay_ms": "3000",
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_timeout_ms": "3000",
                "RAY_health_check_failure_threshold": "5",
            }
        )
        parameters = RayParams(
            node_ip_address=self._address,
            temp_dir=self._directory,
            labels={NODE_LABEL: HEAD_NODE},
            num_cpus=_CPU_COUNT,
            object_store_memory=_OBJECT_STORE_BYTES,
            # It starts machines, where there are any to start.
            no_monitor=True,
        )
        self._node = _LeanNode(parameters, head=True, shutdown_at_exit=False)
        ray.init(
            address=self._node.gcs_address,
            _temp_dir=self._directory,
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace=NAMESPACE,
        )
        return RayEndpoint(
            address=self._node.gcs_address,
            token_file=str(self._token_file),
            namespace=NAMESPACE,
        )

    def start_machines(self, autoscaling_config: Path) -> None:
        """Have Ray start other machines as a file says that `ray up` has written; for a head that has started."""
        self._node._ray_params.autoscaling_config = str(autoscaling_config)
        self._node.start_monitor()

    def pids(self) -> dict[str, int]:
        """Return the processes without which Ray does not work, by what they are: `gcs_server` and `raylet`."""
        return {
            name: infos[0].process.pid for name, infos in self._node.all_processes.items() if name in _VITAL
        }

    def dead(self) -> list[str]:
        """Return which of these processes have ended."""
        found = self._node.all_processes
        return [name for name in _VITAL if name not in found or found[name][0].process.poll() is not None]

    def restart_metadata_service(self) -> None:
        """Start the `gcs_server` again, where it was, with what it had; actors and their calls go on meanwhile."""
        node = self._node
        for info in node.all_processes.pop("gcs_server", []):
            info.process.kill()
            info.process.wait()
        # It refuses to start one while it knows the address of another; the port stays.
        node._gcs_address = node._gcs_client = None
        node.start_gcs_server()

    def await_metadata_service(self) -> None:
        """Return when the `gcs_server` answers; WorldError if it does not in time. May be called from any thread."""
        deadline_s = time.monotonic() + _METADATA_TIMEOUT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(ray.exceptions.RayError):
                require_metadata_service()
                return
        raise WorldError(f"Ray's gcs_server does not answer {_METADATA_TIMEOUT_S:g} s after its restart")

    def _end(self) -> None:
        super()._end()
        if self._node is not None:
            self._node.kill_all_processes(check_alive=False, allow_graceful=False)

    def restart(self) -> RayEndpoint:
        """End all of Ray and start it as if for the first time: every actor has to be made again."""
        self._end()
        return self.start()


class RayNode(_PrivateRay):
    """A Ray node that belongs to a head somewhere else."""

    def __init__(self, token_file: Path, name: str, *, address: str = LOOPBACK) -> None:
        super().__init__(token_file)
        self._name = name
        self._address = address
        self._node: Any = None

    @property
    def pid(self) -> int:
        """Return the process of the raylet, or of the last one."""
        return 0 if self._node is None else self._raylet().pid

    def _raylet(self) -> Any:
        return self._node.all_processes["raylet"][0].process

    def start(self, address: str) -> None:
        """Start the node and become a driver through it; WorldError if the head at `address` takes none."""
        self.start_count += 1
        _tell_ray(self._token_file)
        parameters = RayParams(
            gcs_address=address,
            node_ip_address=self._address,
            node_name=self._name,
            temp_dir=self._directory,
            labels={NODE_LABEL: self._name},
            num_cpus=_CPU_COUNT,
            object_store_memory=_OBJECT_STORE_BYTES,
            # Taken freely: other nodes may be on this machine.
            node_manager_port=0,
            min_worker_port=0,
            max_worker_port=0,
        )
        try:
            self._node = _LeanNode(parameters, head=False)
            ray.init(
                address=address,
                _temp_dir=self._directory,
                log_to_driver=False,
                logging_level=logging.WARNING,
                namespace=NAMESPACE,
            )
        except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            raise WorldError(f"Ray's head at {address} takes no node: {error}", retryable=True) from error

    def is_alive(self) -> bool:
        """Tell whether the node runs."""
        return self._raylet().poll() is None

    def restart(self, address: str) -> None:
        """End the node and start it again: every actor of it has to be made again."""
        self._end()
        self.start(address)

    def _end(self) -> None:
        super()._end()
        if self._node is not None:
            self._node.kill_all_processes(check_alive=False, allow_graceful=False)


def require_metadata_service() -> None:
    """Return if the `gcs_server` answers within a second; RayError if it does not, or there is no Ray.

    To be asked before what would wait for it: Ray waits for minutes, and with it the process that is to start it again.
    """
    if not ray.is_initialized():
        raise ray.exceptions.RayActorError(error_msg="Ray does not run")
    client: Any = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]  # by property
    client.internal_kv_exists(b"twinfleet", None, timeout=_LOOK_UP_TIMEOUT_S)


def find_actor(name: str) -> Any:
    """Return the handle of the actor that has a name; RayError if nobody can tell, ValueError if there is none."""
    require_metadata_service()
    return ray.get_actor(name)


@contextlib.contextmanager
def local_head(token_file: Path) -> Iterator[RayEndpoint]:
    """Run a Ray head of our own while the context is open, with this process as its driver."""
    head = RayHead(token_file)
    try:
        yield head.start()
    finally:
        head.stop()


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
