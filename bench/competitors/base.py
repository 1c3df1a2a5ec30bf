"""The interface of a competitor: a store, and the way one would append events to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import ClassVar, Final, NamedTuple, Protocol

import anyio

from bench.runner import Loop, Void

__all__ = ["Competitor", "Flush", "Place", "Workload", "await_appends", "check_stored", "flushes"]

FLUSH_EVENTS: Final = 1_000


class Place(NamedTuple):
    """Where one run keeps its data. Nothing of another run is there."""

    folder: Path
    """Empty as the run begins, but for a server's own data."""
    url: str
    """As the plain driver takes it: of the server, or of the database file."""
    name: str
    """All that is stored on a server goes below it: a schema, a prefix of keys, or a table."""
    level: str
    """The durability that everybody is held to: "disk", for instance."""


class Workload(NamedTuple):
    """``sessions`` sessions append ``events_each`` events each."""

    sessions: int
    events_each: int
    connections: int | None = None
    """How many connections a plain driver gets; None: what did best."""
    burst: int = 1
    """How many appends of a session are in flight at once."""

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

    def __init__(self, place: Place, workload: Workload) -> None: ...

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
    """All sessions at once, each awaiting its appends one by one, or burst by burst.

    ``append`` takes the session's index.
    """

    async def caller(index: int, appends: int) -> None:
        for _ in range(appends):
            await append(index)

    async def timed_caller(index: int, appends: int, latencies_s: list[float]) -> None:
        for _ in range(appends):
            begin = perf_counter()
            await append(index)
            latencies_s.append(perf_counter() - begin)

    shares = [len(range(number, workload.events_each, workload.burst)) for number in range(workload.burst)]
    async with anyio.create_task_group() as tasks:
        for index in range(workload.sessions):
            for share in shares:
                if latencies_s is None:
                    tasks.start_soon(caller, index, share)
                else:
                    tasks.start_soon(timed_caller, index, share, latencies_s)


class Flush(NamedTuple):
    """What one transaction of a bulk load appends."""

    events: Sequence[tuple[int, int]]
    """The session's index and the event's number."""
    heads: Mapping[int, tuple[int, int]]
    """By index: the last number, and how many events were added."""


def flushes(sessions: Sequence[int], events_each: int, *, connections: int = 1) -> Iterator[Flush]:
    """Every session's first event, then every session's second, and so on, cut into transactions.

    Those of all connections together hold 1,000 events. So at 1,000 sessions each is in a transaction once, and
    its head is written as often as by a store whose callers wait for every append.
    """
    total, size = len(sessions) * events_each, FLUSH_EVENTS // connections
    for begin in range(0, total, size):
        places = range(begin, min(begin + size, total))
        events = [(sessions[place % len(sessions)], place // len(sessions) + 1) for place in places]
        heads: dict[int, tuple[int, int]] = {}
        for index, seq in events:
            heads[index] = (seq, heads.get(index, (0, 0))[1] + 1)
        yield Flush(events, heads)


def check_stored(competitor: Competitor, workload: Workload) -> None:
    """Raises: `Void` unless the store holds every event that was acknowledged, and no other."""
    found = sorted(competitor.stored())
    if found != [workload.events_each] * workload.sessions:
        raise Void(
            f"{competitor.label}: {workload.sessions} sessions × {workload.events_each} events were acknowledged, "
            f"but {len(found)} sessions hold {sum(found)} events"
        )
