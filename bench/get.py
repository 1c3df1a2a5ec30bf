"""``get``: a hot session's value where nobody else can write, so that no I/O is needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Final

from bench.figures import Bar, Figure, Section
from bench.payload import MESSAGE
from bench.runner import Loop, Settings, Void, isolated, run_on

__all__ = ["STORES", "measure", "run"]

STORES: Final = {
    "memory://": "memory://",
    "SQLite, held exclusively": "sqlite:///{folder}/bench.db?exclusive=true",
}
_EMPTY: Final = "an empty coroutine"

_BAR: Final = Bar(at_most=5.0)
_AWAITS: Final = 100_000
_QUICK_AWAITS: Final = 200
_KEY: Final = "progress"


def run(settings: Settings) -> list[Section]:
    """Microseconds per ``await session.get(key)``, one after the other; the value is decoded each time."""
    awaits = _QUICK_AWAITS if settings.quick else _AWAITS
    values: dict[str, list[float]] = {name: [] for name in (*STORES, _EMPTY)}
    for number in range(settings.rounds):
        for name, measured in values.items():
            settings.progress(f"get, round {number + 1}, {name}")
            measured.append(isolated(settings, partial(measure, STORES.get(name), settings.loop, awaits)))
    figures = [
        Figure(name=name, unit="µs", values=measured, bar=_BAR if name in STORES else None)
        for name, measured in values.items()
    ]
    return [Section(title="get: a hot value of 200 bytes of JSON, where nobody else can write", figures=figures)]


def measure(url: str | None, loop: Loop, awaits: int, folder: Path) -> float:
    """Microseconds per get from the store at ``url``; None: per await of a coroutine that does nothing."""
    if url is None:
        return run_on(loop, _time_nothing, awaits)
    return run_on(loop, _time_get, url.format(folder=folder), awaits)


async def _time_get(url: str, awaits: int) -> float:
    import holdfast

    async with holdfast.open(url) as store:
        session = await store.create()
        await session.set(_KEY, MESSAGE)
        value = None
        begin = perf_counter()
        for _ in range(awaits):
            value = await session.get(_KEY)
        elapsed_s = perf_counter() - begin
        if value != MESSAGE:
            raise Void(f"{url}: get gave {value!r}")
        return elapsed_s / awaits * 1e6


async def _time_nothing(awaits: int) -> float:
    async def nothing() -> None:
        pass

    begin = perf_counter()
    for _ in range(awaits):
        await nothing()
    return (perf_counter() - begin) / awaits * 1e6
