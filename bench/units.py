"""``units``: write units of DynamoDB per event, which is what an append costs there in money."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast
from unittest import mock

from aiobotocore.session import AioSession  # type: ignore[import-untyped]

from bench.competitors.base import Competitor, Place, Workload, check_stored
from bench.competitors.dynamodb.each import PairEach, TransactionEach
from bench.competitors.dynamodb.holdfast import HoldfastDynamoDB
from bench.figures import Bar, Figure, Section, paired
from bench.payload import MESSAGE_JSON
from bench.runner import Loop, Settings, isolated, run_on
from bench.servers import place

__all__ = ["Way", "measure", "run"]

Way = Literal["burst", "awaited", "pair", "transaction"]

_LABELS: Final[dict[Way, str]] = {
    "burst": "holdfast, all appends of a session at once",
    "awaited": "holdfast, each append awaited",
    "pair": PairEach.label,
    "transaction": TransactionEach.label,
}
_BAR: Final = Bar(at_most=0.5)
_WORKLOAD: Final = Workload(sessions=10, events_each=100)
_QUICK_WORKLOAD: Final = Workload(sessions=3, events_each=10)
_WRITES: Final = ("PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems", "BatchWriteItem")


def run(settings: Settings) -> list[Section]:
    """Each way with the same events, in a table of its own. Raises: `Void`, `NoServer`."""
    workload = _QUICK_WORKLOAD if settings.quick else _WORKLOAD
    values: dict[Way, list[float]] = {way: [] for way in _LABELS}
    for number in range(settings.rounds):
        for way, measured in values.items():
            settings.progress(f"units, round {number + 1}, {way}")
            measured.append(isolated(settings, partial(measure, way, settings.loop, workload, url=settings.url)))
    figures = {way: Figure(name=_LABELS[way], unit="units/event", values=values[way]) for way in _LABELS}
    ratios = [
        paired("at once / PutItem and UpdateItem", figures["burst"], figures["pair"], _BAR),
        paired("each awaited / PutItem and UpdateItem", figures["awaited"], figures["pair"]),
    ]
    title = (
        f"units: DynamoDB write units, {workload.events:,} events of {len(MESSAGE_JSON)} bytes over "
        f"{workload.sessions} sessions, as the server's ConsumedCapacity says"
    )
    return [Section(title=title, figures=[*figures.values(), *ratios])]


def measure(way: Way, loop: Loop, workload: Workload, folder: Path, *, url: str | None = None) -> float:
    """Write units per event, checked afterwards. Raises: `Void`, `NoServer`."""
    with place("dynamodb", folder, url) as found:
        measured = _competitor(way, found, workload)
        fitting = loop if loop in measured.loops else measured.loops[0]
        with _metered() as meter:
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


async def _spend(competitor: Competitor, meter: _Meter) -> float:
    """Of the appends alone, without what it cost to make the sessions."""
    try:
        await competitor.setup()
        before = meter.units
        await competitor.run(None)
        return meter.units - before
    finally:
        await competitor.close()


class _Meter:
    """Adds up what the server says that writes have cost."""

    def __init__(self) -> None:
        self.units: float = 0.0

    def ask(self, params: dict[str, Any], **_: Any) -> None:
        params["ReturnConsumedCapacity"] = "TOTAL"

    def read(self, parsed: dict[str, Any], **_: Any) -> None:
        consumed: Any = parsed.get("ConsumedCapacity", [])
        by_table: Any = [consumed] if "CapacityUnits" in consumed else consumed  # a list if of a transaction
        self.units += sum(float(each["CapacityUnits"]) for each in by_table)


@contextmanager
def _metered() -> Generator[_Meter]:
    """All clients that the SDK makes meanwhile are on the meter, Holdfast's too."""
    meter, session_type = _Meter(), cast("Any", AioSession)
    create_client = session_type.create_client

    def create_metered_client(session: Any, *args: Any, **kwargs: Any) -> Any:
        for write in _WRITES:
            session.register(f"before-parameter-build.dynamodb.{write}", meter.ask)
            session.register(f"after-call.dynamodb.{write}", meter.read)
        return create_client(session, *args, **kwargs)

    with mock.patch.object(session_type, "create_client", create_metered_client):
        yield meter
