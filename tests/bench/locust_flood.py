"""Locust's own MQTT user (locust.contrib.mqtt, which is paho) at full speed, where Locust is installed.

Run as a process: `python -m tests.bench.locust_flood HOST PORT QOS USERS SECONDS`.
As `flood`: prints "ready", publishes
when it gets a line, and prints how many messages were taken in how many seconds, by Locust's own words: at QoS 1 those
that were acknowledged, at QoS 0 those that were written.
"""

from __future__ import annotations

# Locust first: it replaces the standard library's blocking calls when it is imported.
from locust import constant, task  # type: ignore[import-not-found]  # isort: skip  # it is no dependency
from locust.contrib.mqtt import MqttUser  # type: ignore[import-not-found]  # isort: skip  # likewise
from locust.env import Environment  # type: ignore[import-not-found]  # isort: skip  # likewise

import importlib
import sys
import time
from typing import Any

from tests.bench.flood import PAYLOAD, WINDOW, topic_of

HOST, PORT, QOS, USERS, SECONDS = sys.argv[1:] if __name__ == "__main__" else ("", "0", "0", "0", "0")
# By name, so that no checker of types asks for it where it is not installed.
gevent = importlib.import_module("gevent")
_users: list[MqttUser] = []
_state: dict[str, Any] = {"is_flooding": False, "taken": 0}


class Flooder(MqttUser):  # type: ignore[misc]  # its base is unknown where Locust is not installed
    """A user that publishes a window of messages whenever the last one was taken."""

    host = HOST
    port = int(PORT)
    wait_time = constant(0)

    def on_start(self) -> None:
        """Tell that this user is there."""
        _users.append(self)

    @task  # type: ignore[untyped-decorator]  # likewise
    def flood(self) -> None:
        """Publish as many as fit the window."""
        if not _state["is_flooding"]:
            gevent.sleep(0.01)
            return
        room = WINDOW - len(self.client._publish_requests)
        for _ in range(room):
            self.client.publish(topic_of(f"{id(self) % 10**10:010}"), PAYLOAD, qos=int(QOS))
        gevent.sleep(0)


def main() -> None:
    """Start the users, wait for a line, and let them publish."""
    environment = Environment(user_classes=[Flooder])
    runner = environment.create_local_runner()

    def on_request(exception: Any = None, name: str = "", **_: Any) -> None:
        if exception is None and name.startswith("publish"):
            _state["taken"] += 1

    environment.events.request.add_listener(on_request)
    runner.start(int(USERS), spawn_rate=int(USERS))
    while sum(user.client.is_connected() for user in _users) < int(USERS):
        gevent.sleep(0.05)
    print("ready", flush=True)
    sys.stdin.readline()
    begun_s = time.perf_counter()
    _state["is_flooding"] = True
    gevent.sleep(float(SECONDS))
    print(_state["taken"], time.perf_counter() - begun_s, flush=True)
    runner.quit()


if __name__ == "__main__":
    main()
