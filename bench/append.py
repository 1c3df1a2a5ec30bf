"""``append``: durable appends per second with 1, 100 and 1,000 waiting sessions, and the latency of one alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

import msgspec

from bench.competitors.base import Competitor, Workload, check_stored
from bench.figures import Figure, Section, paired, percentile
from bench.runner import Loop, Settings, isolated, run_on
from bench.servers import place
from bench.stores import STORES, Store, StoreName, competitor

__all__ = ["Timing", "measure", "run"]

_QUICK_EVENTS: Final = 20
_MOST_EVENTS_EACH: Final = 10_000
"""As many as Holdfast keeps of a session by default: past it, trimming would be measured too."""
_BARRED_SESSIONS: Final = 1_000


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one competitor."""

    label: str
    events_per_s: float
    cpu_us_per_event: float
    """Processor time of all the process's threads; other people's load distorts it less than the clock."""
    latencies_us: list[float]
    """Of each append, if only one session was appending."""


def run(
    settings: Settings,
    store: StoreName,
    sessions: Sequence[int],
    *,
    events: int | None = None,
    connections: int | None = None,
    burst: int = 1,
) -> list[Section]:
    """All competitors at each number of ``sessions``, interleaved: every round runs each of them once.

    ``events``: so many in each run, whatever the competitor. ``connections``, ``burst``: see `Workload`.
    Raises: `Void`, `NoServer`.
    """
    found = STORES[store]
    level = settings.level or found.levels[0]
    sections: list[Section] = []
    for count in sessions:
        timings: dict[str, list[Timing]] = {name: [] for name in found.names(count)}
        for number in range(settings.rounds):
            for name, measured in timings.items():
                settings.progress(f"append, {found.title}, {count:,} sessions, round {number + 1}, {name}")
                total = events or _events(store, name, count, quick=settings.quick)
                workload = Workload(count, min(max(burst, total // count), _MOST_EVENTS_EACH), connections, burst)
                call = partial(measure, store, name, settings.loop, workload, url=settings.url, level=level)
                measured.append(isolated(settings, call))
        sections += _sections(_title(found, level, count, burst), found, count, timings)
    return sections


def measure(
    store: StoreName,
    name: str,
    loop: Loop,
    workload: Workload,
    folder: Path,
    *,
    url: str | None = None,
    level: str | None = None,
) -> Timing:
    """One run of the competitor ``name`` in an empty ``folder``, checked afterwards. Raises: `Void`, `NoServer`."""
    with place(store, folder, url, level) as found:
        measured = competitor(store, name)(found, workload)
        latencies_s: list[float] | None = [] if workload.sessions == 1 else None
        fitting = loop if loop in measured.loops else measured.loops[0]
        elapsed_s, cpu_s = run_on(fitting, _timed_run, measured, latencies_s)
        check_stored(measured, workload)
    return Timing(
        label=measured.label,
        events_per_s=workload.events / elapsed_s,
        cpu_us_per_event=cpu_s / workload.events * 1e6,
        latencies_us=[latency * 1e6 for latency in latencies_s or ()],
    )


async def _timed_run(competitor: Competitor, latencies_s: list[float] | None) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    try:
        await competitor.setup()
        begin, cpu_begin = perf_counter(), process_time()
        await competitor.run(latencies_s)
        return perf_counter() - begin, process_time() - cpu_begin
    finally:
        await competitor.close()


def _events(store: StoreName, name: str, sessions: int, *, quick: bool) -> int:
    if quick:
        return _QUICK_EVENTS * sessions
    scale = STORES[store].scale(sessions)
    return scale.batching if competitor(store, name).batches else scale.single


def _title(store: Store, level: str, sessions: int, burst: int) -> str:
    waiting = "awaiting its appends" if burst == 1 else f"with {burst} appends in flight"
    return f"append: {sessions:,} session{'' if sessions == 1 else 's'}, each {waiting}, {store.title} at {level}"


def _sections(title: str, store: Store, sessions: int, timings: dict[str, list[Timing]]) -> list[Section]:
    barred = sessions == _BARRED_SESSIONS
    sections = [_throughput_section(title, store, timings, barred=barred), _cpu_section(title, timings)]
    return [*sections, _latency_section(store, timings)] if sessions == 1 else sections


def _throughput_section(title: str, store: Store, timings: dict[str, list[Timing]], *, barred: bool) -> Section:
    rates = {name: _figure(runs, "events/s", [run.events_per_s for run in runs]) for name, runs in timings.items()}
    ratios = [
        paired(f"holdfast / {peer.ratio}", rates["holdfast"], rates[peer.name], peer.bar if barred else None)
        for peer in store.peers
    ]
    return Section(title=title, figures=[*rates.values(), *ratios])


def _cpu_section(title: str, timings: dict[str, list[Timing]]) -> Section:
    figures = [_figure(runs, "µs/event", [run.cpu_us_per_event for run in runs]) for runs in timings.values()]
    return Section(title=f"{title}: processor time of the client", figures=figures)


def _figure(runs: list[Timing], unit: str, values: list[float]) -> Figure:
    return Figure(name=runs[0].label, unit=unit, values=values)


def _latency_section(store: Store, timings: dict[str, list[Timing]]) -> Section:
    """Of a session alone: who waits for each append, and Holdfast against them."""
    waiting = {name: runs for name, runs in timings.items() if runs[0].latencies_us}
    figures = {
        (name, share): Figure(
            name=f"{runs[0].label}, p{share * 100:.0f}",
            unit="µs",
            values=[percentile(run.latencies_us, share) for run in runs],
        )
        for name, runs in waiting.items()
        for share in (0.50, 0.99)
    }
    ratios: list[Figure] = []
    for peer in store.peers:
        if peer.name in waiting:
            for share, bar in ((0.50, peer.latency_bar), (0.99, None)):
                label = f"holdfast / {peer.ratio}, p{share * 100:.0f}"
                ratios.append(paired(label, figures["holdfast", share], figures[peer.name, share], bar))
    return Section(title=f"append: latency of one session alone, {store.title}", figures=[*figures.values(), *ratios])
