"""Runs several workers on one store, kills one now and then, and collects what they have seen."""

from __future__ import annotations

import dataclasses
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from holdfast.config import RetentionConfig
from tests.crash.harness import ROOT, environment
from tests.crash.opening import open_store
from tests.crash.stores import Server
from tests.histories import certificate, visibility
from tests.histories.history import FIRST_STATE, History, Operation, Recorder, read_operations

__all__ = ["Plan", "faults_of", "run_histories"]

LOOPS = ("asyncio", "trio", "uvloop")
EXPECTED = frozenset(
    {
        "cancelled", "Conflict", "EventGap", "SessionClosed", "SessionNotFound",
        "DeadlineExceeded", "OutcomeUnknown", "Unavailable", "Overloaded",
    }
)  # fmt: skip
"""What may be answered by a store that is sound. Everything else is a fault by itself."""
START_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run goes: for so many seconds from when all work. ``variants`` are the workers' stores, in turn."""

    seconds: float
    workers: int = 3
    sessions: int = 3
    """In turn: one that stays, one that is closed in the end, one deleted, one closed and deleted."""
    max_events: int | None = None
    kill_every_s: float | None = 1.0
    """On average; None: nobody is killed."""
    variants: Sequence[str] = ("sound",)
    pause_s: float = 0.01
    finish_s: float = 0.5
    """For the ends of the sessions, at the end of the time."""
    catch_up_s: float = 20.0
    """How long a subscription may take at the end to show all that is there."""
    end_s: float = 60.0
    """A worker that does not end in so long after its time hangs."""


class _Workers:
    """The processes of one run."""

    def __init__(self, url: str, folder: Path, plan: Plan, rng: random.Random) -> None:
        self._url = url
        self._folder = folder
        self._plan = plan
        self._rng = rng
        self._finish = folder / "finish"
        """There when it is time to end the sessions."""
        self._end = folder / "end"
        """There when the time is over."""
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._started = 0
        self.kills = 0

    def start(self) -> None:
        """One more; it works until the run's time is over."""
        number, self._started = self._started, self._started + 1
        plan = self._plan
        command = [
            sys.executable, "-m", "tests.histories.worker", self._url, str(self._folder / f"w{number}.jsonl"),
            *session_names(plan), "--seed", str(self._rng.getrandbits(32)), "--end", str(self._end),
            "--loop", LOOPS[number % len(LOOPS)], "--variant", plan.variants[number % len(plan.variants)],
            "--pause-s", str(plan.pause_s), "--catch-up-s", str(plan.catch_up_s), "--finish", str(self._finish),
            *([] if plan.max_events is None else ["--max-events", str(plan.max_events)]),
        ]  # fmt: skip
        with (self._folder / f"w{number}.stderr").open("wb") as stderr:
            self._running[number] = subprocess.Popen(command, stderr=stderr, cwd=ROOT, env=environment())

    def kill_one(self) -> None:
        """``kill -9``, of one that works: starting takes longer on some stores than the time between two kills."""
        self.wait_until_they_work()
        number = self._rng.choice(list(self._running))
        process = self._running.pop(number)
        assert process.poll() is None, f"worker {number} has ended by itself: {self._said(number)}"
        process.kill()
        process.wait()
        self.kills += 1

    def wait_until_they_work(self) -> None:
        """A busy machine may take its time to start them; the run's begins now.

        Raises: AssertionError if one does not.
        """
        deadline = time.monotonic() + START_S
        for number, process in self._running.items():
            file = self._folder / f"w{number}.jsonl"
            while not (file.exists() and file.stat().st_size):
                assert process.poll() is None, f"worker {number} has ended by itself: {self._said(number)}"
                assert time.monotonic() < deadline, f"worker {number} does not work"
                time.sleep(0.005)

    def finish(self) -> None:
        """Let the sessions end, and mostly one worker in the midst of it."""
        self.wait_until_they_work()
        self._finish.touch()
        if self._plan.kill_every_s is not None and len(self._running) > 1 and self._rng.random() < 0.7:
            time.sleep(self._rng.random() * 0.2)
            self.kill_one()

    def wait(self) -> list[str]:
        """Let them end. What is wrong with how they did, in words."""
        self._end.touch()
        faults = list[str]()
        for number, process in self._running.items():
            try:
                code = process.wait(self._plan.end_s)
            except subprocess.TimeoutExpired:
                faults.append(f"worker {number} hangs")
                continue
            if code != 0:
                faults.append(f"worker {number} ended with {code}: {self._said(number)}")
        return faults

    def end(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def _said(self, number: int) -> str:
        return (self._folder / f"w{number}.stderr").read_text(errors="replace")[-3000:]


def session_names(plan: Plan) -> list[str]:
    return [f"h{number}" for number in range(plan.sessions)]


def run_histories(
    url: str, folder: Path, plan: Plan, rng: random.Random, server: Server | None = None
) -> tuple[list[Operation], list[str]]:
    """Let workers loose on new sessions of the store. All that they did, and what they complained of.

    With ``server``, it is killed at first, and then now and then instead of a worker.
    Leaves the sessions there. The files of the workers stay in the folder.
    """
    recorder = Recorder(folder / "driver.jsonl")
    anyio.run(_create, url, recorder, plan)
    workers, server_kills = _Workers(url, folder, plan, rng), 0
    try:
        for _ in range(plan.workers):
            workers.start()
        workers.wait_until_they_work()
        end_s = time.monotonic() + plan.seconds
        while time.monotonic() + (pause_s := (plan.kill_every_s or math.inf) * rng.uniform(0.5, 1.5)) < end_s:
            time.sleep(pause_s)
            if server is not None and (not server_kills or rng.random() < 0.5):
                workers.wait_until_they_work()
                server.kill()
                time.sleep(rng.random() * 0.3)
                server.restart()
                server_kills += 1
            else:
                workers.kill_one()
                workers.start()
        time.sleep(max(0.0, end_s - plan.finish_s - time.monotonic()))
        workers.finish()
        time.sleep(max(0.0, end_s - time.monotonic()))
        complaints = workers.wait()
    finally:
        workers.end()
    anyio.run(_read_all, url, recorder, plan)
    recorder.close()
    operations = [op for path in sorted(folder.glob("*.jsonl")) for op in read_operations(path)]
    return operations, complaints


async def _create(url: str, recorder: Recorder, plan: Plan) -> None:
    async with open_store(url) as store:
        for name in session_names(plan):
            session = await store.create(name)
            number = recorder.called(name, FIRST_STATE, {"max_events": plan.max_events})
            info = await session.info()
            recorder.returned(number, [info.version, info.first_seq, info.last_seq])


async def _read_all(url: str, recorder: Recorder, plan: Plan) -> None:
    """What is there in the end."""
    async with open_store(url, retention=RetentionConfig(max_events=plan.max_events)) as store:
        for name in session_names(plan):
            number = recorder.called(name, "info", {})
            session = await store.get(name)
            if session is None:
                recorder.failed(number, "SessionNotFound", "no")
                continue
            info = await session.info()
            recorder.returned(number, [info.version, info.first_seq, info.last_seq])
            number = recorder.called(name, "state", {})
            recorder.returned(number, await session.state())
            number = recorder.called(name, "events", {"after": 0})
            recorder.returned(number, [[event.id, event.data] for event in await session.events()])


def faults_of(operations: list[Operation]) -> list[str]:
    """What all checkers have to say."""
    faults = [
        f"{operation}: no sound store answers so" for operation in operations
        if operation.error is not None and operation.error not in EXPECTED
    ]  # fmt: skip
    for history in History.by_session(operations):
        faults += [f"{history.session}, visibility: {fault}" for fault in visibility.check(history)]
        try:
            faults += [f"{history.session}, linearizability: {fault}" for fault in certificate.check(history)]
        except certificate.Undecided as exc:
            faults.append(f"{history.session}, linearizability: undecided; {exc}")
    return faults
