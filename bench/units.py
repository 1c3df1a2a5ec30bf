"""``units``: write units of DynamoDB per event, which is what an append costs there in money."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, Literal

from bench.competitors.base import Competitor, Place, Workload, check_stored
from bench.competitors.dynamodb.each import PairEach, TransactionEach
from bench.competitors.dynamodb.holdfast import HoldfastDynamoDB
from bench.figures import Bar, Figure, Section, paired
from bench.payload import MESSAGE_JSON
from bench.runner import Loop, Settings, isolated, run_on
from bench.servers import place
from tests.servers.http_proxy import HttpProxy

__all__ = ["Way", "measure", "run"]

Way = Literal["burst", "awaited", "pair", "transaction", "crowd"]

_LABELS: Final[dict[Way, str]] = {
    "burst": "holdfast, all appends of a session at once",
    "awaited": "holdfast, each append awaited",
    "pair": PairEach.label,
    "transaction": TransactionEach.label,
    "crowd": "holdfast, each append awaited, of 500 sessions",
}
_BAR: Final = Bar(at_most=0.5)
_WORKLOAD: Final = Workload(sessions=10, events_each=100)
_QUICK_WORKLOAD: Final = Workload(sessions=3, events_each=10)
_CROWD: Final = Workload(sessions=500, events_each=50)
_QUICK_CROWD: Final = Workload(sessions=100, events_each=5)
"""So many that they share journals. The plain driver's units do not depend on that."""


def run(settings: Settings) -> list[Section]:
    """Each way with the same events, in a table of its own. Raises: `Void`, `NoServer`."""
    workload = _QUICK_WORKLOAD if settings.quick else _WORKLOAD
    values: dict[Way, list[float]] = {way: [] for way in _LABELS}
    for number in range(settings.rounds):
        for way, measured in values.items():
            settings.progress(f"units, round {number + 1}, {way}")
            crowd = _QUICK_CROWD if settings.quick else _CROWD
            load = crowd if way == "crowd" else workload
            measured.append(isolated(settings, partial(measure, way, settings.loop, load, url=settings.url)))
    figures = {way: Figure(name=_LABELS[way], unit="units/event", values=values[way]) for way in _LABELS}
    ratios = [
        paired("at once / PutItem and UpdateItem", figures["burst"], figures["pair"], _BAR),
        paired("each awaited / PutItem and UpdateItem", figures["awaited"], figures["pair"]),
        paired("each awaited, 500 sessions / PutItem and UpdateItem", figures["crowd"], figures["pair"]),
    ]
    title = (
        f"units: DynamoDB write units, {workload.events:,} events of {len(MESSAGE_JSON)} bytes over "
        f"{workload.sessions} sessions (unless it says otherwise), as the server's ConsumedCapacity says"
    )
    return [Section(title=title, figures=[*figures.values(), *ratios])]


def measure(way: Way, loop: Loop, workload: Workload, folder: Path, *, url: str | None = None) -> float:
    """Write units per event, checked afterwards. Raises: `Void`, `NoServer`."""
    with place("dynamodb", folder, url) as found, HttpProxy(found.url) as meter:
        measured = _competitor(way, found._replace(url=meter.url), workload)
        fitting = loop if loop in measured.loops else measured.loops[0]
        units = run_on(fitting, _spend, measured, meter)
        check_stored(measured, workload)
    return units / workload.events


def _competitor(way: Way, found: Place, workload: Workload) -> Competitor:
    if way == "pair":
        return PairEach(found, workload)
    if way == "transaction":
        return TransactionEach(found, workload)
    # A burst is what a tool does that reports its progress: it appends without waiting, and waits for all at the end.
    return HoldfastDynamoDB(found, workload._replace(burst=workload.events_each if way == "burst" else 1))


async def _spend(competitor: Competitor, meter: HttpProxy) -> float:
    """Of the appends alone, without what it cost to make the sessions, as the server's answers say."""
    try:
        await competitor.setup()
        meter.metered = True
        await competitor.run(None)
        meter.metered = False
        return meter.write_units
    finally:
        await competitor.close()
