"""Histories of rollouts in which everything goes wrong that may: at the end the rollout says what the devices are.

A history has devices with behaviours of their own, a coordinator that dies and comes back with what it had saved last,
orders that are lost or come twice, and words of devices that come late, twice and out of order.
"""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from twins import rollout_states as states
from twins.rollout import NOTHING, Orders, Progress, Rollout
from twins.rollout_plan import Group, HealthGate, Plan, Rate

HISTORIES: Final = 5_000
DEVICES: Final = 6
STEP_S: Final = 240
# Steps with trouble, and steps without, after which all must be settled.
TROUBLED_STEPS: Final = 6
CALM_STEPS: Final = 60

PLAN: Final = Plan(
    groups=(Group("first", count=2), Group("all", percent=100)),
    rate=Rate(per_minute=4),
    health=HealthGate(hold_s=60, timeout_s=400),
    site_budget=2,
    timeout_s=900,
    repeat_s=60,
)
# What a device comes to when it carries out an order, and whether it is then on the new release.
FATES: Final = {"good": True, "fails": False, "refuses": False, "boots back": False}


class Device:
    """A device that carries out each attempt once, with new luck, and says what came of it as often as it is asked."""

    def __init__(self, luck: random.Random) -> None:
        self.luck = luck
        self.fate = "good"
        self.attempt = 0
        self.is_new = False
        self.words: list[str] = []

    def update(self, attempt: int) -> None:
        if attempt > self.attempt:
            self.attempt = attempt
            self.fate = self.luck.choice(list(FATES))
            self.is_new = FATES[self.fate]
            self.words = {
                "good": [states.STARTED, states.UPDATED, states.HEALTHY],
                "fails": [states.STARTED, states.FAILED],
                "refuses": [states.REJECTED],
                "boots back": [states.STARTED, states.UPDATED, states.HEALTHY, states.ROLLED_BACK],
            }[self.fate]

    def go_back(self, attempt: int) -> None:
        if attempt > self.attempt:
            self.attempt, self.is_new, self.words = attempt, False, [states.RESTORED]


class History:
    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.devices = [Device(self.luck) for _ in range(DEVICES)]
        self.rollout = Rollout(PLAN, made_at_s=1000, seed=seed)
        numbers = np.arange(DEVICES)
        self.rollout.join(
            cohorts=(numbers % 2).astype(np.uint16),
            sites=(numbers % 3 - 1).astype(np.int32),
            zones=np.zeros(DEVICES, np.uint8),
        )
        self.rollout.command("start", 1000)
        self.now_s = 1000.0
        self.under_way: list[tuple[int, int, int]] = []
        self.saved = self.rollout.saved()

    def step(self, *, trouble: bool) -> None:
        self.now_s += STEP_S
        if trouble and self.luck.random() < 0.1:
            name = self.luck.choice(list(states.COMMANDS))
            if self.rollout.state in states.COMMANDS[name]:
                self.rollout.command(name, self.now_s)
        before = list(self.under_way)
        orders = self.rollout.step(self.now_s, self._heard(trouble=trouble))
        if trouble and self.luck.random() < 0.1:
            # It dies before it has saved: it has given no orders, and taken note of nothing.
            self.under_way = before
            self._come_back()
            return
        self.saved = self.rollout.saved()
        self._carry(orders, trouble=trouble)
        if trouble and self.luck.random() < 0.1:
            self._come_back()

    def _come_back(self) -> None:
        values, columns = self.saved
        self.rollout = Rollout.restored(PLAN, values, columns)

    def _heard(self, *, trouble: bool) -> Progress:
        coming, self.under_way = self.under_way, []
        if trouble:
            late = [word for word in coming if self.luck.random() < 0.2]
            self.under_way = [*late, *(word for word in coming if self.luck.random() < 0.1)]
            coming = [word for word in coming if word not in late]
            if self.luck.random() < 0.2:
                self.luck.shuffle(coming)
        if not coming:
            return NOTHING
        rows, attempts, heard = (list(column) for column in zip(*coming, strict=True))
        return Progress(np.array(rows, np.int32), np.array(attempts, np.uint8), np.array(heard, np.uint8))

    def _carry(self, orders: Orders, *, trouble: bool) -> None:
        new = [(row, attempt, False) for row, attempt in zip(orders.rows, orders.attempts, strict=True)]
        new += [
            (row, attempt, True) for row, attempt in zip(orders.back_rows, orders.back_attempts, strict=True)
        ]
        for row, attempt, is_back in new:
            if trouble and self.luck.random() < 0.2:
                continue
            device = self.devices[row]
            (device.go_back if is_back else device.update)(int(attempt))
            self.under_way += [(int(row), device.attempt, states.HEARD_CODES[word]) for word in device.words]
        # A device that is asked for its health says it as long as nobody has taken note.
        status = self.rollout.columns["status"]
        for row in np.flatnonzero(status == states.CODES[states.UPDATED]):
            self.under_way += [
                (int(row), self.devices[row].attempt, states.HEARD_CODES[word])
                for word in self.devices[row].words[2:]
            ]


def _status(rollout: Rollout) -> list[str]:
    return [states.STATUSES[code] for code in rollout.columns["status"]]


def _check_end(history: History, seed: int) -> None:
    told = f"history {seed}: {history.rollout.state}, {_status(history.rollout)}"
    assert not any(
        history.rollout.status_counts()[name] for name in (*states.UNDER_WAY, states.GOING_BACK)
    ), told
    for device, status in zip(history.devices, _status(history.rollout), strict=True):
        if status == states.SUCCEEDED:
            assert device.is_new, told
            assert device.fate == "good", told
        elif status in {states.FAILED, states.REJECTED, states.BACK}:
            assert not device.is_new, told
            assert status == states.BACK or device.fate != "good", told
        if history.rollout.state == states.COMPLETED:
            assert status != states.WAITING, told
    counts = np.bincount(history.rollout.columns["status"], minlength=len(states.STATUSES))
    assert list(history.rollout.status_counts().values()) == counts.tolist(), told


@pytest.mark.parametrize("part", range(10))
def test_after_any_history_the_rollout_says_what_the_devices_are(part: int) -> None:
    for seed in range(part * HISTORIES // 10, (part + 1) * HISTORIES // 10):
        history = History(seed)
        for _ in range(TROUBLED_STEPS):
            history.step(trouble=True)
        for _ in range(CALM_STEPS):
            history.step(trouble=False)
            if history.rollout.state == states.AWAITING_APPROVAL:
                history.rollout.command("approve", history.now_s)
            if history.rollout.state == states.PAUSED:
                history.rollout.command("resume", history.now_s)
            is_over = history.rollout.state in {
                states.COMPLETED,
                states.RETURNED,
                states.ABORTED,
                states.DRAFT,
            }
            if is_over and not history.under_way and not _has_timers(history.rollout):
                break
        _check_end(history, seed)


def _has_timers(rollout: Rollout) -> bool:
    due: NDArray[Any] = rollout.columns["due_s"]
    return bool(due.any())
