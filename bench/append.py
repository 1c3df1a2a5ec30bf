"""``append``: durable appends per second with 1, 100 and 1,000 waiting sessions, and the latency of one alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Final, NamedTuple, cast

import msgspec

from bench.competitors.base import Competitor, Workload, check_stored
from bench.figures import Bar, Figure, Section, paired, percentile
from bench.runner import Loop, Settings, isolated, run_on

__all__ = ["COMPETITORS", "Timing", "measure", "run"]

COMPETITORS: Final = {
    "holdfast": "bench.competitors.holdfast_sqlite:HoldfastSqlite",
    "bulk": "bench.competitors.aiosqlite_bulk:AiosqliteBulk",
    "each": "bench.competitors.aiosqlite_each:AiosqliteEach",
    "mcp-persist": "bench.competitors.mcp_persist_sqlite:McpPersist",
    "inline": "bench.competitors.sqlite3_inline:Sqlite3Inline",
}
"""Where each is found; imported only in the process that measures it."""

_ALONE: Final = ("holdfast", "each", "inline", "mcp-persist", "bulk")
_TOGETHER: Final = ("holdfast", "bulk", "each", "mcp-persist")

_CEILING_BAR: Final = Bar(at_least=0.5)
_PEER_BAR: Final = Bar(at_least=5.0)
_ALONE_BAR: Final = Bar(at_most=1.5)


class _Scale(NamedTuple):
    """How many events one run appends in all: by stores that batch, and by those that flush for each."""

    batching: int
    single: int


_SCALES: Final = {1: _Scale(2_000, 2_000), 100: _Scale(50_000, 5_000), 1_000: _Scale(100_000, 10_000)}
_QUICK_EVENTS: Final = 20
_MOST_EVENTS_EACH: Final = 10_000
"""As many as Holdfast keeps of a session by default: past it, trimming would be measured too."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one competitor."""

    label: str
    events_per_s: float
    cpu_us_per_event: float
    """Processor time of all the process's threads; other people's load distorts it less than the clock."""
    latencies_us: list[float]
    """Of each append, if only one session was appending."""


def run(settings: Settings, sessions: Sequence[int], events: int | None = None) -> list[Section]:
    """All competitors at each number of ``sessions``, interleaved: every round runs each of them once.

    ``events``: so many in each run, whatever the competitor. Raises: `Void`.
    """
    sections: list[Section] = []
    for count in sessions:
        names = _ALONE if count == 1 else _TOGETHER
        timings: dict[str, list[Timing]] = {name: [] for name in names}
        for number in range(settings.rounds):
            for name in names:
                settings.progress(f"append, {count:,} sessions, round {number + 1}, {name}")
                workload = _workload(name, count, events, quick=settings.quick)
                timings[name].append(isolated(settings, partial(measure, name, settings.loop, workload)))
        sections += _sections(count, timings)
    return sections


def measure(name: str, loop: Loop, workload: Workload, folder: Path) -> Timing:
    """One run of the competitor ``name`` in an empty ``folder``, checked afterwards. Raises: `Void`."""
    competitor = _competitor(name)(folder, workload)
    latencies_s: list[float] | None = [] if workload.sessions == 1 else None
    fitting = loop if loop in competitor.loops else competitor.loops[0]
    elapsed_s, cpu_s = run_on(fitting, _timed_run, competitor, latencies_s)
    check_stored(competitor, workload)
    return Timing(
        label=competitor.label,
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


def _competitor(name: str) -> type[Competitor]:
    module, _, attribute = COMPETITORS[name].partition(":")
    return cast("type[Competitor]", getattr(import_module(module), attribute))


def _workload(name: str, sessions: int, events: int | None, *, quick: bool) -> Workload:
    if events is None and quick:
        events = _QUICK_EVENTS * sessions
    if events is None:
        scale = _SCALES.get(sessions, _SCALES[1_000])
        events = scale.batching if _competitor(name).batches else scale.single
    return Workload(sessions, min(max(1, events // sessions), _MOST_EVENTS_EACH))


def _sections(sessions: int, timings: dict[str, list[Timing]]) -> list[Section]:
    alone = sessions == 1
    title = f"append: {sessions:,} session{'' if alone else 's'}, each awaiting its appends, SQLite at disk"
    sections = [_throughput_section(title, timings, barred=sessions == 1_000), _cpu_section(title, timings)]
    return [*sections, _latency_section(timings)] if alone else sections


def _throughput_section(title: str, timings: dict[str, list[Timing]], *, barred: bool) -> Section:
    rates = {name: _figure(runs, "events/s", [run.events_per_s for run in runs]) for name, runs in timings.items()}
    ours = rates["holdfast"]
    ratios = [
        paired("holdfast / ceiling", ours, rates["bulk"], _CEILING_BAR if barred else None),
        paired("holdfast / a commit per append", ours, rates["each"]),
        paired("holdfast / mcp-persist", ours, rates["mcp-persist"], _PEER_BAR if barred else None),
    ]
    return Section(title=title, figures=[*rates.values(), *ratios])


def _cpu_section(title: str, timings: dict[str, list[Timing]]) -> Section:
    figures = [_figure(runs, "µs/event", [run.cpu_us_per_event for run in runs]) for runs in timings.values()]
    return Section(title=f"{title}: processor time", figures=figures)


def _figure(runs: list[Timing], unit: str, values: list[float]) -> Figure:
    return Figure(name=runs[0].label, unit=unit, values=values)


def _latency_section(timings: dict[str, list[Timing]]) -> Section:
    """Of a session alone. The bar is for the median, against the plain driver that makes the same rows durable."""
    figures: dict[tuple[str, float], Figure] = {}
    for name, runs in timings.items():
        for share in (0.50, 0.99):
            values = [percentile(timing.latencies_us, share) for timing in runs if timing.latencies_us]
            if values:
                label = f"{runs[0].label}, p{share * 100:.0f}"
                figures[name, share] = Figure(name=label, unit="µs", values=values)
    ratios = [
        paired(f"holdfast / {other}, p{share * 100:.0f}", figures["holdfast", share], figures[name, share], bar)
        for name, other, share, bar in (
            ("each", "aiosqlite", 0.50, _ALONE_BAR),
            ("each", "aiosqlite", 0.99, None),
            ("inline", "sqlite3 in the loop's thread", 0.50, None),
        )
    ]
    return Section(title="append: latency of one session alone", figures=[*figures.values(), *ratios])
