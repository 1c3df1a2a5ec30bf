"""``scaling``: one, two and four instances on one store, together with the same number of sessions."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Final, NamedTuple

import holdfast
from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.embedded import create_sessions
from bench.figures import Figure, Section, paired
from bench.fleet import meet, together
from bench.machine import usable_cores
from bench.payload import EVENT_TYPE, MESSAGE
from bench.runner import Loop, Settings, Void, empty_folder, run_on
from bench.servers import layout_of, place
from bench.stores import STORES, StoreName

__all__ = ["measure", "run"]

_INSTANCES: Final = (1, 2, 4)
_SESSIONS: Final = 1_000
_QUICK_SESSIONS: Final = 20
_QUICK_EVENTS_EACH: Final = 5


class _Span(NamedTuple):
    """When an instance began to append, and when its last append was durable; one clock for all processes."""

    begin: float
    end: float


def run(settings: Settings, store: StoreName) -> list[Section]:
    """Events per second of all instances together. Raises: `Void`, `NoServer`."""
    rates: dict[int, list[float]] = {instances: [] for instances in _INSTANCES}
    sessions = _QUICK_SESSIONS if settings.quick else _SESSIONS
    events_each = _QUICK_EVENTS_EACH if settings.quick else STORES[store].scale(sessions).batching // sessions
    for number in range(settings.rounds):
        for instances, measured in rates.items():
            settings.progress(f"scaling, {STORES[store].title}, round {number + 1}, {instances} instances")
            workload = Workload(sessions, events_each)
            with empty_folder(settings) as folder, place(store, folder, settings.url, settings.level) as found:
                measured.append(measure(store, settings.loop, instances, workload, found))
    figures = {
        instances: Figure(name=_named(instances), unit="events/s", values=measured)
        for instances, measured in rates.items()
    }
    one, *more = figures
    ratios = [paired(f"{_named(count)} / {_named(one)}", figures[count], figures[one]) for count in more]
    title = (
        f"scaling: {sessions:,} sessions on {STORES[store].title}, shared between the instances; "
        f"{usable_cores()} cores, shared between the instances and the server"
    )
    return [Section(title=title, figures=[*figures.values(), *ratios])]


def _named(instances: int) -> str:
    return f"{instances} instance{'' if instances == 1 else 's'}"


def measure(store: StoreName, loop: Loop, instances: int, workload: Workload, found: Place) -> float:
    """Events per second, from the first instance's first append to the last one's last. Raises: `Void`."""
    url = layout_of(store).store_url(found)
    shares = [len(range(number, workload.sessions, instances)) for number in range(instances)]
    spans = together([partial(_instance, loop, url, workload._replace(sessions=share)) for share in shares])
    stored = sorted(layout_of(store).stored(found))
    if stored != [workload.events_each] * workload.sessions:
        raise Void(f"scaling: {workload.events} events were acknowledged, {sum(stored)} are stored")
    return workload.events / (max(span.end for span in spans) - min(span.begin for span in spans))


def _instance(loop: Loop, url: str, workload: Workload) -> _Span:
    return run_on(loop, _append, url, workload)


async def _append(url: str, workload: Workload) -> _Span:
    async with holdfast.open(url) as store:
        sessions = await create_sessions(store, workload.sessions)
        await meet()  # all are ready
        begin = monotonic()
        await await_appends(workload, None, lambda index: sessions[index].append(MESSAGE, type=EVENT_TYPE))
        end = monotonic()
        await meet()  # nobody closes while another is measured
    return _Span(begin, end)
