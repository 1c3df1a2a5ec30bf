"""Starts workers, kills them at moments drawn from a seed, and keeps the ledger."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash.ledger import Ledger
from tests.crash.stores import Server

ROOT = Path(__file__).parents[2]
START_S = 20.0
LOOPS = ("asyncio", "uvloop", "trio")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


class Worker:
    """One process under test. Its output is read to the last byte that it wrote."""

    def __init__(self, ledger: Ledger, url: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        self._ledger = ledger
        self._said: str | None = None
        """On standard error; not None when it has ended."""
        self.lines = 0
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.crash.worker", url, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
        )
        self._reader = threading.Thread(target=self._read, name="ledger")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):
                self._ledger.record(json.loads(line))
                self.lines += 1

    def wait_for_lines(self, count: int = 1) -> None:
        """Wait until it works. Raises: AssertionError with what it said, if it does not."""
        deadline = time.monotonic() + START_S
        while self.lines < count:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the worker does not work: {self.kill()}")
            time.sleep(0.002)

    def check_that_it_works(self) -> None:
        """Raises: AssertionError with what it said, if it has ended: whoever is dead cannot be killed."""
        if self._process.poll() is not None:
            raise AssertionError(f"the worker ended by itself: {self._end()}")

    def wait(self) -> str:
        """Let it end by itself; what it said on standard error."""
        return self._end()

    def kill(self) -> str:
        """``kill -9``, and read what is left in the pipe."""
        self._process.kill()
        return self._end()

    def _end(self) -> str:
        if self._said is not None:
            return self._said
        assert self._process.stderr is not None
        assert self._process.stdout is not None
        said = self._said = self._process.stderr.read().decode(errors="replace")
        self._process.wait()
        self._reader.join()
        self._process.stderr.close()
        self._process.stdout.close()
        return said


def kill_cycle(
    ledger: Ledger, url: str, rng: random.Random, name: str, *, durability: str = "process", variant: str = "sound",
    processes: int = 2, lines: int = 1, crowd: bool = False,
) -> None:  # fmt: skip
    """Start workers on one store, let each tell at least so many lines, and kill it at a moment of its own."""
    workers = [
        Worker(
            ledger, url, "--writer", f"{name}.{number}", "--durability", durability,
            "--variant", variant, "--loop", rng.choice(LOOPS), *(["--crowd"] if crowd else []),
        )
        for number in range(processes)
    ]  # fmt: skip
    try:
        for worker in workers:
            worker.wait_for_lines(lines)
            time.sleep(rng.random() * 0.15)
        for worker in workers:
            worker.check_that_it_works()
    finally:
        for worker in workers:
            worker.kill()


def kill_server_cycle(
    ledger: Ledger, url: str, server: Server, rng: random.Random, name: str, *, durability: str, processes: int = 2
) -> None:
    """Kill the server under workers, start it again, and see each of them go on by itself."""
    workers = [
        Worker(ledger, url, "--writer", f"{name}.{number}", "--durability", durability, "--loop", rng.choice(LOOPS))
        for number in range(processes)
    ]
    try:
        for worker in workers:
            worker.wait_for_lines()
        time.sleep(rng.random() * 0.3)
        server.kill()
        time.sleep(rng.random() * 0.3)
        server.restart()
        for worker in workers:
            worker.wait_for_lines(worker.lines + 50)
    finally:
        for worker in workers:
            worker.kill()
