"""A copy that is stopped goes on; a source in use is copied on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from holdfast.backends.base import (
    Backend,
    EventPage,
    EventQuery,
    TrimPolicy,
)
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.copying import Copier, Problem
from holdfast.errors import Unavailable
from holdfast.testing import FaultKind, FaultyBackend, ManualClock
from holdfast.testing.faults import InjectedCrash, touches
from tests.copying.conftest import SMALL, Make, content, cut_short, fill, fill_many, opened, store

pytestmark = pytest.mark.anyio


# --- stopped and run again -------------------------------------------------------


async def test_a_second_run_writes_nothing(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill(make_source, clock)
    await Copier(source, target, clock=clock).run()
    watched_source, watched_target = FaultyBackend(source), FaultyBackend(target)
    report = await Copier(watched_source, watched_target, clock=clock).run(verify=False)
    assert (report.copied, report.already_there, report.events, report.verified) == (0, 5, 0, None)
    assert watched_target.calls["commit"] == 1, "only to see whether the stores are two"
    assert watched_source.calls["read_events"] == watched_source.calls["load"] == 0, "heads are enough to tell"


@pytest.mark.parametrize("kind", ["memory"])
async def test_stopped_at_every_commit_it_goes_on(
    make_source: Make, source: Backend, kind: str, clock: ManualClock
) -> None:
    """After one more commit each time, up to the last; no event is ever written twice."""
    await fill_many(make_source, clock, 12)
    whole = await content(source, clock)
    target = MemoryBackend(MemoryData())
    written = runs = 0
    while True:
        faulty = FaultyBackend(target)
        faulty.inject(FaultKind.CRASH, "commit", skip=2)
        copier = Copier(source, faulty, SMALL, clock=clock)
        runs += 1
        try:
            await copier.run()
            break
        except InjectedCrash:
            written += copier.report.events
    assert runs > 20
    assert written + copier.report.events == sum(len(events) for _, _, events in whole.values())
    assert await content(target, clock) == whole


async def test_an_unknown_outcome_is_found_out(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill_many(make_source, clock, 12)
    faulty = FaultyBackend(target)
    kinds = [FaultKind.UNKNOWN_DONE, FaultKind.UNKNOWN_LOST] * 5
    faults = [faulty.inject(kind, skip=skip) for skip, kind in enumerate(kinds)]
    async with clock.flowing():
        report = await Copier(source, faulty, SMALL, clock=clock).run()
    assert faulty.calls["resolve"] == sum(fault.hits for fault in faults) == 10
    assert (report.copied, report.already_there, report.problems) == (12, 0, {})
    assert await content(target, clock) == await content(source, clock)


async def test_a_store_that_is_away_is_waited_for(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill(make_source, clock)
    away, back = FaultyBackend(source), FaultyBackend(target)
    for operation in ("list_sessions", "load", "read_events"):
        away.inject(FaultKind.UNAVAILABLE, operation, times=3)
    back.inject(FaultKind.UNAVAILABLE, "load", times=3)
    back.inject(FaultKind.UNAVAILABLE, "commit", times=3)
    async with clock.flowing():
        report = await Copier(away, back, clock=clock).run()
    assert report.complete
    assert report.verified == 5


@pytest.mark.parametrize(("name", "operation"), [("source", "load"), ("source", "list_sessions"), ("target", "commit")])
async def test_a_store_that_stays_away_is_named(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock, name: str, operation: Any
) -> None:
    await fill(make_source, clock)
    stores = {"source": FaultyBackend(source), "target": FaultyBackend(target)}
    stores[name].inject(FaultKind.UNAVAILABLE, operation, times=None, skip=1)
    started = clock.monotonic()
    async with clock.flowing(1):
        with pytest.raises(Unavailable, match=f"the {name}: injected"):
            await Copier(stores["source"], stores["target"], SMALL, clock=clock).run()
    assert clock.monotonic() - started >= SMALL.retry_for_s
    report = await Copier(source, target, SMALL, clock=clock).run()
    assert (report.complete, report.verified) == (True, 5)


async def test_two_copiers_at_once_neither_double_nor_mix(
    make_source: Make, make_target: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill_many(make_source, clock)
    async with opened(make_target) as [second]:
        copiers = [Copier(source, backend, SMALL, clock=clock) for backend in (target, second)]
        async with anyio.create_task_group() as tasks:
            for copier in copiers:
                tasks.start_soon(copier.run)
    assert await content(target, clock) == await content(source, clock)
    assert sum(copier.report.events for copier in copiers) == 600
    for copier in copiers:
        assert {problem.kind for problem in copier.report.problems.values()} <= {"changing"}


async def test_a_commit_that_was_overtaken_changes_nothing(
    make_source: Make, make_target: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    """A copier stops in the middle of a session, just before a commit; another one copies all; the first goes on."""
    await fill_many(make_source, clock, 12)
    faulty = FaultyBackend(target)
    held = faulty.inject(FaultKind.HELD, skip=1, when=touches("s11"))
    first = Copier(source, faulty, SMALL, clock=clock)
    async with opened(make_target) as [second], anyio.create_task_group() as tasks:
        tasks.start_soon(first.run)
        await held.struck()
        report = await Copier(source, second, SMALL, clock=clock).run()
        assert (report.problems, report.verified) == ({}, 12)
        held.release()
    assert first.report.complete
    assert await content(target, clock) == await content(source, clock)


async def test_a_part_that_has_expired_is_gone_on_with(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    """The session has been used at the source since; what there is of its copy has not."""
    async with store(make_source, clock) as used:
        session = await used.create("s", ttl_s=10)
        await session.append_many(list(range(50)))
        await cut_short(source, target, clock, commits=4, config=SMALL)
        await clock.advance(8)
        await session.append("still here")
        await clock.advance(8)
        assert await content(target, clock) == {}
        report = await Copier(source, target, SMALL, clock=clock).run()
    assert (report.problems, report.copied, report.events) == ({}, 1, 51 - 21)
    assert await content(target, clock) == await content(source, clock)


async def test_a_log_trimmed_past_its_copy_is_copied_anew(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    """More events than are removed at once: what is left of the first copy must not meet the second."""
    async with store(make_source, clock) as filled:
        session = await filled.create("long")
        events = await session.append_many(list(range(9_000)))
        await cut_short(source, target, clock, commits=8)
        await session.delete_events_before(events[8_500].id)
        await session.append("new")
    report = await Copier(source, target, clock=clock).run()
    assert report.complete
    assert await content(target, clock) == await content(source, clock)
    await target.trim(None, TrimPolicy(), 100_000)
    assert await content(target, clock) == await content(source, clock)


async def test_what_is_left_of_an_expired_part_is_cleared(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    """As above, only that the target has removed the part by itself."""
    async with store(make_source, clock) as filled:
        session = await filled.create("long", ttl_s=10)
        await session.append_many(list(range(9_000)))
        await cut_short(source, target, clock, commits=8)
        await clock.advance(8)
        await session.touch()
        await clock.advance(8)
        assert [expired.id for expired in await target.expire(clock.now_us(), 10)] == ["long"]
        report = await Copier(source, target, clock=clock).run()
    assert (report.problems, report.events) == ({}, 9_000)
    await target.trim(None, TrimPolicy(), 100_000)
    assert await content(target, clock) == await content(source, clock)


async def test_a_copy_short_of_versions_is_made_anew(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    """One unit has made more parts than fit in a commit: they cannot all be fenced by a version of their own."""
    async with store(make_source, clock) as filled:
        session = await filled.create("s")
        await session.append("a")
        await Copier(source, target, SMALL, clock=clock).run()
        await session.append_many(list(range(50)))
    report = await Copier(source, target, SMALL, clock=clock).run()
    assert report.complete
    assert await content(target, clock) == await content(source, clock)


# --- a source in use ---------------------------------------------------------------


class Busy(FaultyBackend):
    """A source that is written to by others: ``act`` runs ahead of the n-th call of an operation."""

    def __init__(self, inner: Backend, operation: str, number: int, act: Callable[[], Any]) -> None:
        super().__init__(inner)
        self._moment = (operation, number)
        self._act = act

    async def _before(self, operation: Any, argument: object) -> Any:
        fault = await super()._before(operation, argument)
        if (operation, self.calls[operation]) == self._moment:
            await self._act()
        return fault


@pytest.mark.parametrize(("operation", "number"), [("list_sessions", 2), ("load", 1), ("read_events", 1), ("load", 2)])
async def test_what_changes_at_the_source_is_copied_on(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock, operation: str, number: int
) -> None:
    await fill_many(make_source, clock, 12)
    async with store(make_source, clock) as used:

        async def use() -> None:
            await clock.advance(1)
            await (await used.require("s11")).append("more")
            s9 = await used.require("s9")
            await s9.remove("k3")
            await s9.set("k4", "other")
            await s9.set_metadata({"new": True})
            await s9.delete_events_before((await s9.events())[5].id)
            await (await used.require("s8")).close()
            await (await used.create("late")).append("new")

        report = await Copier(Busy(source, operation, number, use), target, SMALL, clock=clock).run()
    assert report.problems == {}
    assert await content(target, clock) == await content(source, clock)
    assert report.copied == report.verified == 13
    assert report.caught_up == (3 if operation == "list_sessions" else report.caught_up)


async def test_touches_and_trims_of_a_closed_session_are_copied_on(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    async with store(make_source, clock) as used:
        session = await used.create("s")
        events = await session.append_many(list("abc"))
        await session.close()
        await Copier(source, target, clock=clock).run()
        await clock.advance(5)
        await session.touch()
        await session.delete_events_before(events[1].id)
    report = await Copier(source, target, clock=clock).run()
    assert (report.problems, report.events) == ({}, 0)
    assert await content(target, clock) == await content(source, clock)


async def test_a_session_that_goes_away_during_its_copy_is_reported(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill_many(make_source, clock, 12)
    async with store(make_source, clock) as used:

        async def delete() -> None:
            await used.delete("s11")

        report = await Copier(Busy(source, "load", 1, delete), target, SMALL, clock=clock).run()
    [problem] = report.problems.values()
    assert (problem.session_id, problem.kind) == ("s11", "changing")
    assert "deleted at the source" in problem.detail
    assert report.verified == 11


async def test_a_session_that_never_keeps_still_is_reported(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    """Events that the head promises and the log does not have: as after a trim, or a damaged store."""
    await fill_many(make_source, clock, 4)
    report = await Copier(Holed(source), target, clock=clock).run()
    [problem] = report.problems.values()
    assert problem == Problem("s3", "changing", "event 4 is not at the source")
    assert report.verified == 3


class Holed(FaultyBackend):
    """Session s3 has no event 4."""

    async def read_events(self, query: EventQuery) -> EventPage | None:
        page = await super().read_events(query)
        if page is None or query.id != "s3":
            return page
        return page._replace(events=[event for event in page.events if event.seq != 4])
