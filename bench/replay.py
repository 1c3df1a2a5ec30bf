"""``replay``: 10,000 events of one session, against a raw SELECT of the same rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import aiosqlite
import msgspec

from bench.competitors.sqlite.layout import DATABASE
from bench.figures import Bar, Figure, Section, paired
from bench.payload import EVENT_TYPE, MESSAGE
from bench.runner import Loop, Settings, Void, isolated, run_on

__all__ = ["Replay", "measure", "run"]

_BAR: Final = Bar(at_least=0.5)
_EVENTS: Final = 10_000
_QUICK_EVENTS: Final = 100
_REPEATS: Final = 5
"""Of each way of reading, after a first one that is not counted."""

_SELECT: Final = (
    "SELECT seq, stream, type, data, retry_ms, time_us FROM events WHERE incarnation = ? AND seq > 0 ORDER BY seq"
)


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Events per second of each way to read them all."""

    replay: float
    events: float
    fetchall: float
    stepped: float


def run(settings: Settings) -> list[Section]:
    """Replay by `Session.replay` and `Session.events`; the raw SELECT through aiosqlite, and by bare stepping."""
    count = _QUICK_EVENTS if settings.quick else _EVENTS
    runs: list[Replay] = []
    for number in range(settings.rounds):
        settings.progress(f"replay, round {number + 1}")
        runs.append(isolated(settings, partial(measure, settings.loop, count)))
    return [_section(count, runs)]


def _section(count: int, runs: list[Replay]) -> Section:
    def figure(name: str, values: list[float]) -> Figure:
        return Figure(name=name, unit="events/s", values=values)

    replay = figure("session.replay()", [run.replay for run in runs])
    events = figure("session.events()", [run.events for run in runs])
    fetchall = figure("raw SELECT, aiosqlite, fetchall", [run.fetchall for run in runs])
    stepped = figure("raw SELECT, sqlite3, rows dropped", [run.stepped for run in runs])
    ratios = [
        paired("replay / fetchall", replay, fetchall, _BAR),
        paired("events / fetchall", events, fetchall, _BAR),
        paired("replay / rows dropped", replay, stepped),
    ]
    title = f"replay: {count:,} events of one session, SQLite"
    return Section(title=title, figures=[replay, events, fetchall, stepped, *ratios])


def measure(loop: Loop, count: int, folder: Path) -> Replay:
    """Fill a session, then read it in each way. Raises: `Void`."""
    incarnation, replay, events = run_on(loop, _ours, folder, count)
    raw_loop: Loop = "asyncio" if loop == "trio" else loop
    fetchall = run_on(raw_loop, _fetchall, folder, incarnation, count)
    return Replay(replay=replay, events=events, fetchall=fetchall, stepped=_stepped(folder, incarnation, count))


async def _ours(folder: Path, count: int) -> tuple[int, float, float]:
    import holdfast

    async with holdfast.open(f"sqlite:///{folder / DATABASE}") as store:
        session = await store.create()
        await session.append_many([MESSAGE] * count, type=EVENT_TYPE)

        async def replay() -> int:
            return len([event async for event in session.replay()])

        async def events() -> int:
            return len(await session.events())

        return session.incarnation, await _rate(replay, count), await _rate(events, count)


async def _fetchall(folder: Path, incarnation: int, count: int) -> float:
    async with aiosqlite.connect(folder / DATABASE) as connection:

        async def select() -> int:
            rows = await connection.execute_fetchall(_SELECT, (incarnation,))
            return len(list(rows))

        return await _rate(select, count)


async def _rate(read: Callable[[], Awaitable[int]], count: int) -> float:
    """Events per second: the median of some repeats, after one that warms the caches."""
    elapsed_s: list[float] = []
    for _ in range(1 + _REPEATS):
        begin = perf_counter()
        found = await read()
        elapsed_s.append(perf_counter() - begin)
        if found != count:
            raise Void(f"{found} of {count} events were read")
    return count / median(elapsed_s[1:])


def _stepped(folder: Path, incarnation: int, count: int) -> float:
    """Rows are made and dropped one by one, in the loop's own thread: no hop, no list."""
    elapsed_s: list[float] = []
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        for _ in range(1 + _REPEATS):
            begin = perf_counter()
            found = sum(1 for _row in connection.execute(_SELECT, (incarnation,)))
            elapsed_s.append(perf_counter() - begin)
            if found != count:
                raise Void(f"{found} of {count} rows were read")
    return count / median(elapsed_s[1:])
