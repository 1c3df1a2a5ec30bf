"""The interface of a competitor: a store, and the way one would append events to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import ClassVar, NamedTuple, Protocol

import anyio

from bench.runner import Loop, Void

__all__ = ["Competitor", "Workload", "await_appends", "check_stored"]


class Workload(NamedTuple):
    """``sessions`` sessions append ``events_each`` events each."""

    sessions: int
    events_each: int

    @property
    def events(self) -> int:
        return self.sessions * self.events_each


class Competitor(Protocol):
    """One store under one workload. Used once: `setup`, `run`, `close`, `stored`."""

    label: ClassVar[str]
    """What the tables say."""
    loops: ClassVar[tuple[Loop, ...]]
    """Where it runs; asked for another loop, the bench takes the first of these."""
    batches: ClassVar[bool]
    """Whether it shares one flush between sessions. One that does not gets fewer events, to end in time."""

    def __init__(self, folder: Path, workload: Workload) -> None: ...

    async def setup(self) -> None:
        """Open the store, create the sessions, prepare all that is not to be measured."""
        ...

    async def run(self, latencies_s: list[float] | None) -> None:
        """Append all events; return when the last is durable. This is what the clock sees.

        If given a list, add how long each append was waited for.
        """
        ...

    async def close(self) -> None:
        """Close the store. Called after a failed `setup` or `run` too."""
        ...

    def stored(self) -> Sequence[int]:
        """How many events each session has now, as read from the closed store with the plain driver.

        Raises: `Void` if they are not numbered from 1 without gaps (where the store numbers by session).
        """
        ...


async def await_appends(
    workload: Workload, latencies_s: list[float] | None, append: Callable[[int], Awaitable[object]]
) -> None:
    """All sessions at once, each awaiting its appends one by one. ``append`` takes the session's index."""

    async def session(index: int) -> None:
        for _ in range(workload.events_each):
            await append(index)

    async def timed_session(index: int, latencies_s: list[float]) -> None:
        for _ in range(workload.events_each):
            begin = perf_counter()
            await append(index)
            latencies_s.append(perf_counter() - begin)

    async with anyio.create_task_group() as tasks:
        for index in range(workload.sessions):
            if latencies_s is None:
                tasks.start_soon(session, index)
            else:
                tasks.start_soon(timed_session, index, latencies_s)


def check_stored(competitor: Competitor, workload: Workload) -> None:
    """Raises: `Void` unless the store holds every event that was acknowledged, and no other."""
    found = sorted(competitor.stored())
    if found != [workload.events_each] * workload.sessions:
        raise Void(
            f"{competitor.label}: {workload.sessions} sessions × {workload.events_each} events were acknowledged, "
            f"but {len(found)} sessions hold {sum(found)} events"
        )
