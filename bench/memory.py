"""``memory``: what an idle hot session costs beyond its data."""

from __future__ import annotations

import gc
import os
import tracemalloc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import anyio

from bench.figures import Bar, Figure, Section
from bench.payload import MESSAGE, MESSAGE_JSON
from bench.runner import Loop, Settings, Void, isolated, run_on

if TYPE_CHECKING:
    import holdfast

__all__ = ["Gauge", "measure", "run"]

Gauge = Literal["resident", "traced"]

_BAR: Final = Bar(at_most=6.0)
_SESSIONS: Final = 5_000
_WARM_SESSIONS: Final = 500
"""Made first, so that code, caches, threads and the driver's buffers are not counted."""
_QUICK_SESSIONS: Final = 100
_KEY: Final = "progress"
_DATA_BYTES: Final = len(_KEY) + len(MESSAGE_JSON)
_AT_ONCE: Final = 50


def run(settings: Settings) -> list[Section]:
    """KiB per session over thousands of hot ones with a small key each; on SQLite, so that the store is not counted."""
    sessions = _QUICK_SESSIONS if settings.quick else _SESSIONS
    gauges: dict[str, Gauge] = {"resident memory of the process": "resident", "allocations by Python": "traced"}
    values: dict[str, list[float]] = {name: [] for name in gauges}
    for number in range(settings.rounds):
        for name, gauge in gauges.items():
            settings.progress(f"memory, round {number + 1}, {name}")
            values[name].append(isolated(settings, partial(measure, gauge, settings.loop, sessions)))
    figures = [Figure(name=name, unit="KiB", values=values[name], bar=_BAR) for name in gauges]
    return [Section(title="memory: an idle hot session, beyond its data", figures=figures)]


def measure(gauge: Gauge, loop: Loop, sessions: int, folder: Path) -> float:
    """KiB per session, less the bytes of its key and its value as JSON."""
    if gauge == "traced":
        tracemalloc.start()
    try:
        return run_on(loop, _growth_per_session, gauge, sessions, folder)
    finally:
        tracemalloc.stop()


async def _growth_per_session(gauge: Gauge, sessions: int, folder: Path) -> float:
    import holdfast

    async with holdfast.open(f"sqlite:///{folder}/bench.db") as store:
        await _make_hot(store, min(_WARM_SESSIONS, sessions))
        before = _bytes_in_use(gauge)
        hot_before = _hot(store)
        await _make_hot(store, sessions)
        grown = _bytes_in_use(gauge) - before
        if _hot(store) - hot_before != sessions:
            raise Void(f"{_hot(store) - hot_before} sessions are hot, not {sessions}")
        return (grown / sessions - _DATA_BYTES) / 1024


async def _make_hot(store: holdfast.Supervisor, count: int) -> None:
    """Create sessions and keep no handle; what stays is what the engine holds."""

    async def create(share: int) -> None:
        for _ in range(share):
            session = await store.create()
            await session.set(_KEY, MESSAGE)

    async with anyio.create_task_group() as tasks:
        for _ in range(_AT_ONCE):
            tasks.start_soon(create, count // _AT_ONCE)


def _hot(store: holdfast.Supervisor) -> int:
    return store.statistics().registry.hot_sessions


def _bytes_in_use(gauge: Gauge) -> int:
    gc.collect()
    if gauge == "traced":
        return tracemalloc.get_traced_memory()[0]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
