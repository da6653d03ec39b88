"""Devices that report, operators that wish, and the history of what they did and heard.

A device writes its rising numbers into `reported`, over the broker; with each it reports what it last heard was
desired. An operator writes into `desired`, directly. Each names its updates by client tokens, `<client>.<number>`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from actors.errors import ActorsError
from actors.fleet import shadow_request
from scenarios.history import Answered, Event, Observed, Outcome, Sent, Settled
from tests.simulation.protocol.broker import Broker
from tests.simulation.protocol.hosts import Cluster
from tests.simulation.protocol.scheduler import Process, VirtualLoop
from twins.messages import Operation, Reply, Request, encode
from twins.sharding import shard_of
from twins.topics import shadow_prefix

# A client that waits for longer knows nothing of what it asked for.
PATIENCE_S: Final = 12.0
_decode: Final = msgspec.json.Decoder().decode
_decode_reply: Final = msgspec.msgpack.Decoder(Reply).decode


class Device:
    """A device, its number, and what it heard was desired."""

    def __init__(self, thing_name: str) -> None:
        self.thing_name = thing_name
        self.number = 0
        self.wished: dict[str, int] = {}
        self.wished_version = 0
        self.is_report_due = False


class Clients:
    """All clients of one history."""

    def __init__(self, loop: VirtualLoop, things: list[str]) -> None:
        self.history: list[Event] = []
        self.process = Process("clients")
        self.devices = {name: Device(name) for name in things}
        # Operations without an answer.
        self.open: set[tuple[str, int]] = set()
        self._put_off_count = 0
        self._published: list[tuple[float, str, bytes]] = []
        self._numbers: dict[str, int] = {}
        self._loop = loop
        self.broker: Broker
        self.cluster: Cluster

    @property
    def is_busy(self) -> bool:
        """Tell whether somebody waits for an answer, or is about to do something."""
        return bool(self.open or self._put_off_count) or any(
            device.is_report_due for device in self.devices.values()
        )

    def note(self, event: Event) -> None:
        """Add to the history."""
        self.history.append(event)

    # Devices

    def report(self, thing_name: str) -> None:
        """Let a device report its next number, and what it applied; later, while the broker is away."""
        if self.broker.is_down:
            self._put_off(self.report, thing_name)
            return
        device = self.devices[thing_name]
        device.number += 1
        device.is_report_due = False
        reported = {thing_name: device.number, **device.wished}
        self._send(device, {f"reported.{name}": value for name, value in reported.items()})
        token = f"{thing_name}.{device.number}"
        payload = msgspec.json.encode({"state": {"reported": reported}, "clientToken": token})
        self._publish(f"{shadow_prefix(thing_name)}/update", payload)

    def get(self, thing_name: str) -> None:
        """Let a device ask for its shadow."""
        if self.broker.is_down:
            self._put_off(self.get, thing_name)
            return
        device = self.devices[thing_name]
        device.number += 1
        self._send(device, {})
        payload = b'{"clientToken":"%b.%d"}' % (thing_name.encode(), device.number)
        self._publish(f"{shadow_prefix(thing_name)}/get", payload)

    def measure(self, thing_name: str) -> None:
        """Let a device send telemetry, which nobody answers."""
        if not self.broker.is_down:
            self._publish(f"telemetry/{thing_name}/climate", b'{"temperature":20.5}')

    def _put_off(self, do: Callable[[str], None], thing_name: str) -> None:
        self._put_off_count += 1
        self._loop.deliver(self.process, 0.5, self._do_now, do, thing_name)

    def _do_now(self, do: Callable[[str], None], thing_name: str) -> None:
        self._put_off_count -= 1
        do(thing_name)

    def _publish(self, topic: str, payload: bytes) -> None:
        self._published.append((self._loop.time(), topic, payload))
        self.broker.publish(topic, payload)

    def publish_again(self, since_s: float) -> None:
        """Let devices publish again, in their order, what they have published since then: its PUBACK was lost."""
        for at_s, topic, payload in self._published:
            if at_s >= since_s:
                self.broker.publish(topic, payload)

    def _send(self, device: Device, values: dict[str, int]) -> None:
        self.note(Sent(self._loop.time(), device.thing_name, device.number, device.thing_name, "", values))
        self._expect(device.thing_name, device.number)

    def _expect(self, client: str, number: int) -> None:
        self.open.add((client, number))
        self._loop.deliver(self.process, PATIENCE_S, self._give_up, client, number)

    def _give_up(self, client: str, number: int) -> None:
        if (client, number) in self.open:
            self._conclude(client, number, Outcome.INFO, detail=f"no answer in {PATIENCE_S:g} s")

    def _conclude(
        self, client: str, number: int, outcome: Outcome, *, body: Any = None, detail: str = ""
    ) -> None:
        self.open.discard((client, number))
        version = body["version"] if body is not None else 0
        values = _fields(body["state"]) if body is not None and outcome is Outcome.OK else {}
        self.note(Answered(self._loop.time(), client, number, outcome, version, values, detail))

    def hear(self, messages: list[tuple[str, bytes]]) -> None:
        """Take what the broker hands out."""
        for topic, payload in messages:
            _, _, thing_name, _, verb, kind = topic.split("/")
            body = _decode(payload)
            if kind == "delta":
                self._hear_delta(thing_name, body)
            elif kind == "documents":
                current = body["current"]
                self._observe(thing_name, kind, current["version"], _fields(current["state"]), is_whole=True)
            else:
                client, number = _of_token(body["clientToken"])
                if client not in self.devices:
                    continue
                if kind == "rejected":
                    self._conclude(client, number, Outcome.FAIL, detail=str(body["code"]))
                else:
                    self._conclude(client, number, Outcome.OK, body=body)
                    if verb == "get":
                        self._apply(thing_name, body["version"], body["state"].get("desired", {}))

    def _hear_delta(self, thing_name: str, body: Any) -> None:
        wished = {f"desired.{name}": value for name, value in body["state"].items()}
        self._observe(thing_name, "delta", body["version"], wished, is_whole=False)
        self._apply(thing_name, body["version"], body["state"])

    def _observe(
        self, thing_name: str, topic: str, version: int, values: dict[str, int], *, is_whole: bool
    ) -> None:
        at_s = self._loop.time()
        self.note(Observed(at_s, "watcher", thing_name, "", topic, version, values, is_whole))

    def _apply(self, thing_name: str, version: int, wished: dict[str, int]) -> None:
        """Do what a device does with a delta: apply it unless it is old, and report soon."""
        device = self.devices[thing_name]
        if version < device.wished_version:
            return
        device.wished_version = version
        if wished.items() <= device.wished.items():
            return
        device.wished.update(wished)
        if not device.is_report_due:
            device.is_report_due = True
            self._loop.deliver(self.process, 0.05, self.report, thing_name)

    # Operators

    def wish(self, thing_name: str) -> None:
        """Let the operator of a thing wish for its next number."""
        client = f"op-{thing_name}"
        if any(waiting == client for waiting, _ in self.open):
            # What is under way at the same time has no order.
            self._put_off(self.wish, thing_name)
            return
        number = self._number(client)
        body = {"state": {"desired": {client: number}}, "clientToken": f"{client}.{number}"}
        values = {f"desired.{client}": number}
        self._ask(client, number, update_desired(thing_name, msgspec.json.encode(body)), values)

    def look(self, thing_name: str) -> None:
        """Let another operator look at a shadow."""
        client = f"reader-{thing_name}"
        self._ask(client, self._number(client), shadow_request(thing_name), {})

    def _number(self, client: str) -> int:
        self._numbers[client] = number = self._numbers.get(client, 0) + 1
        return number

    def _ask(self, client: str, number: int, request: Request, values: dict[str, int]) -> None:
        thing_name = request.thing_name
        self.note(Sent(self._loop.time(), client, number, thing_name, "", values, is_direct=True))
        self._expect(client, number)
        shard = shard_of(thing_name, self.cluster.shard_count)
        name = self.cluster.placements.placement.homes[shard]
        answer = self.cluster.call(self.process, name, "ask", encode(request))
        answer.add_done_callback(lambda _: self._hear_reply(client, number, answer))

    def _hear_reply(self, client: str, number: int, answer: Any) -> None:
        error = answer.exception()
        if (client, number) not in self.open:
            return
        if error is not None:
            if not isinstance(error, ActorsError):
                raise error
            self._conclude(client, number, Outcome.INFO, detail=type(error).__name__)
            return
        reply = _decode_reply(answer.result())
        if reply.status == 200:
            self._conclude(client, number, Outcome.OK, body=_decode(reply.payload))
        else:
            self._conclude(client, number, Outcome.FAIL, detail=str(reply.status))

    def settle(self, thing_name: str, version: int, state: dict[str, dict[str, int]]) -> None:
        """Note how a shadow was found at the end."""
        self.note(Settled(self._loop.time(), thing_name, "", version, _fields(state), follower=thing_name))


def _fields(state: dict[str, dict[str, int]]) -> dict[str, int]:
    """Return the fields of a shadow's state, named by section and key; what only follows from them is left out."""
    return {
        f"{section}.{name}": value
        for section, values in state.items()
        if section != "delta"
        for name, value in values.items()
    }


def update_desired(thing_name: str, payload: bytes) -> Request:
    """Return a direct request to change what is desired."""
    return Request(Operation.SHADOW_UPDATE, thing_name, payload, "", True)


def _of_token(token: str) -> tuple[str, int]:
    client, number = token.split(".")
    return client, int(number)
