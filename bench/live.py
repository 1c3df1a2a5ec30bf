"""``live``: how soon a subscriber in one process has what another process appended."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Final, NamedTuple

import anyio
import msgspec

import holdfast
from bench.competitors.base import Place
from bench.figures import Bar, Figure, Section, percentile
from bench.fleet import meet, together
from bench.payload import EVENT_TYPE, MESSAGE
from bench.runner import Loop, Settings, Void, empty_folder, run_on
from bench.servers import layout_of, place
from bench.stores import STORES, StoreName

__all__ = ["Live", "Pace", "Seen", "measure", "run"]

_P50_BAR: Final = Bar(at_most=5.0)
_P99_BAR: Final = Bar(at_most=30.0)
_BARRED_STORE: Final = "postgres"
_BARRED_RATE: Final = 1_000
_PATIENCE_S: Final = 30.0
"""How long the last event may take before the run is void."""

_Moments = dict[tuple[int, int], float]
"""When something happened to an event, by its session's index and its number; one clock for all processes."""


class Pace(NamedTuple):
    """So many events per second are appended, turn by turn to each of the sessions."""

    rate: int = 1_000
    sessions: int = 50
    seconds: float = 10.0
    warm_up_s: float = 1.0
    """At the beginning, in which latencies are not counted."""

    @property
    def events(self) -> int:
        return int(self.rate * (self.seconds + self.warm_up_s))

    def session(self, number: int) -> int:
        """The index of the session that gets the ``number``-th event."""
        return number % self.sessions


_QUICK: Final = Pace(rate=200, sessions=5, seconds=0.5, warm_up_s=0.1)


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Latencies in ms."""

    events_per_s: float
    """As they were really appended."""
    since_call_ms: list[float]
    """From the call of `append` to the event's arrival in the other process."""
    since_ack_ms: list[float]
    """From the moment at which `append` returned; negative where the subscriber was faster."""


class Seen(NamedTuple):
    """By one of the two processes."""

    called: _Moments
    acked: _Moments
    arrived: _Moments


def run(settings: Settings, store: StoreName, rate: int | None = None) -> list[Section]:
    """Events at a fixed rate from one instance to another. Raises: `Void`, `NoServer`."""
    pace = _QUICK if settings.quick else Pace()
    pace = pace._replace(rate=rate or pace.rate)
    runs: list[Live] = []
    for number in range(settings.rounds):
        settings.progress(f"live, {STORES[store].title}, round {number + 1}")
        with empty_folder(settings) as folder, place(store, folder, settings.url, settings.level) as found:
            runs.append(measure(store, settings.loop, pace, found))
    return [_section(store, pace, runs)]


def _section(store: StoreName, pace: Pace, runs: list[Live]) -> Section:
    barred = store == _BARRED_STORE and pace.rate == _BARRED_RATE

    def figure(name: str, share: float, bar: Bar | None = None) -> Figure:
        latencies = [run.since_ack_ms if "ack" in name else run.since_call_ms for run in runs]
        return Figure(name=name, unit="ms", values=[percentile(values, share) for values in latencies], bar=bar)

    title = (
        f"live: from append in one instance to a subscriber in another, {pace.rate:,} events/s over "
        f"{pace.sessions} sessions, {STORES[store].title}"
    )
    return Section(
        title=title,
        figures=[
            Figure(name="appended", unit="events/s", values=[run.events_per_s for run in runs]),
            figure("since the call, p50", 0.50, _P50_BAR if barred else None),
            figure("since the call, p99", 0.99, _P99_BAR if barred else None),
            figure("since the ack, p50", 0.50),
            figure("since the ack, p99", 0.99),
        ],
    )


def measure(store: StoreName, loop: Loop, pace: Pace, found: Place) -> Live:
    """One run, in two processes. Raises: `Void` if an event does not arrive, or not in its order."""
    url = layout_of(store).store_url(found)
    publisher, subscriber = together([partial(_publisher, loop, url, pace), partial(_subscriber, loop, url, pace)])
    called, acked, arrived = publisher.called, publisher.acked, subscriber.arrived
    if len(acked) != pace.events or arrived.keys() != acked.keys():
        raise Void(f"live: {len(acked)} of {pace.events} events were acknowledged, {len(arrived)} have arrived")
    begin, end = min(called.values()), max(called.values())
    counted = [event for event, moment in called.items() if moment >= begin + pace.warm_up_s]
    return Live(
        events_per_s=(pace.events - 1) / (end - begin),
        since_call_ms=[(arrived[event] - called[event]) * 1e3 for event in counted],
        since_ack_ms=[(arrived[event] - acked[event]) * 1e3 for event in counted],
    )


def _publisher(loop: Loop, url: str, pace: Pace) -> Seen:
    return run_on(loop, _publish, url, pace)


def _subscriber(loop: Loop, url: str, pace: Pace) -> Seen:
    return run_on(loop, _subscribe, url, pace)


async def _publish(url: str, pace: Pace) -> Seen:
    """At the rate, whatever becomes of the appends before: a slow store does not slow the clock that it is held to."""
    called: _Moments = {}
    acked: _Moments = {}
    async with holdfast.open(url) as store:
        sessions = [await store.create(_id(index)) for index in range(pace.sessions)]

        async def append(index: int) -> None:
            moment = monotonic()
            event = await sessions[index].append(MESSAGE, type=EVENT_TYPE)
            acked[index, event.seq] = monotonic()
            called[index, event.seq] = moment

        await meet()  # the sessions are there
        await meet()  # the subscriber is ready
        begin = monotonic()
        async with anyio.create_task_group() as tasks:
            for number in range(pace.events):
                await anyio.sleep(max(0.0, begin + number / pace.rate - monotonic()))
                tasks.start_soon(append, pace.session(number))
    return Seen(called, acked, {})


async def _subscribe(url: str, pace: Pace) -> Seen:
    arrived: _Moments = {}
    async with holdfast.open(url) as store:
        await meet()
        sessions = [await store.require(_id(index)) for index in range(pace.sessions)]
        ready = 0

        async def receive(index: int) -> None:
            nonlocal ready
            expected = len(range(index, pace.events, pace.sessions))
            async with sessions[index].subscribe() as subscription:
                ready += 1
                if ready == pace.sessions:
                    tasks.start_soon(meet)
                for seq in range(1, expected + 1):
                    event = await anext(subscription)
                    arrived[index, event.seq] = monotonic()
                    if event.seq != seq:
                        raise Void(f"live: event {event.seq} came in place of {seq}")

        with anyio.move_on_after(pace.events / pace.rate + _PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                for index in range(pace.sessions):
                    tasks.start_soon(receive, index)
    return Seen({}, {}, arrived)


def _id(index: int) -> str:
    return f"live-{index}"
