"""What a copy reports: what the target cannot take, and what the verification finds."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.backends.base import (
    Backend,
    Batch,
    Capabilities,
    Outcome,
    SessionFilter,
    SessionWrite,
)
from holdfast.copying import Copier, Problem
from holdfast.errors import StoreError
from holdfast.testing import FaultKind, FaultyBackend, ManualClock
from holdfast.testing.contract.direct import blind
from holdfast.testing.faults import touches
from tests.copying.conftest import SMALL, Make, content, fill, fill_many, opened, store

pytestmark = pytest.mark.anyio


# --- what the target cannot take -------------------------------------------------


class Narrow(FaultyBackend):
    """A target with limits of its own, which it enforces."""

    def __init__(self, inner: Backend, **limits: int) -> None:
        super().__init__(inner)
        self.limits = limits
        self.sessions = set[str]()

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self.inner.capabilities, **self.limits)

    async def commit(self, batch: Batch) -> list[Outcome]:
        limits = self.capabilities
        assert len(batch.writes) <= (limits.max_batch_sessions or 500)
        for write in batch.writes:
            self.sessions.add(write.id)
            values = [len(raw) for raw, _ in write.sets.values()]
            events = [len(event.raw) for event in write.events]
            names = [*write.sets, *write.removes, *(event.stream + event.type for event in write.events)]
            assert max(values, default=0) <= (limits.max_value_bytes or 1e9)
            assert max(events, default=0) <= (limits.max_event_bytes or 1e9)
            assert len(values) + len(write.removes) + len(events) <= (limits.max_unit_keys or 1e9)
            size = sum(values) + sum(events) + sum(len(name.encode()) for name in names)
            assert size <= (limits.max_unit_bytes or 1e9)
        return await super().commit(batch)


async def test_the_limits_of_the_target_are_kept(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill_many(make_source, clock)
    narrow = Narrow(target, max_batch_sessions=4, max_unit_keys=5, max_unit_bytes=60, max_event_bytes=20)
    report = await Copier(source, narrow, clock=clock).run()
    assert report.complete
    assert await content(target, clock) == await content(source, clock)


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"max_event_bytes": 50}, "event {last} has 102 bytes; the target takes 50"),
        ({"max_value_bytes": 50}, "state['big'] has 82 bytes; the target takes 50"),
        ({"max_unit_bytes": 84}, "state['big'] has 85 bytes; the target takes 84"),
        ({"max_unit_bytes": 90}, "event {last} has 109 bytes; the target takes 90"),
    ],
)
async def test_what_is_too_large_is_named_before_anything_of_its_session_is_written(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock, limits: dict[str, int], what: str
) -> None:
    """The last event of a long log is the one that is too large."""
    async with store(make_source, clock) as filled:
        small = await filled.create("small")
        await small.append_many(list(range(100)))
        large = await filled.create("large")
        await large.set("big", "x" * 80)
        events = await large.append_many([*range(3_000), "x" * 100])
    narrow = Narrow(target, max_unit_keys=50, **limits)
    report = await Copier(source, narrow, clock=clock).run()
    assert report.problems == {"large": Problem("large", "too large", what.format(last=events[-1].id))}
    assert narrow.sessions == {"small"}
    assert (report.copied, report.verified) == (1, 1)


async def test_an_earlier_copy_stays_where_a_new_one_would_be_too_large(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    """The log was trimmed past its copy, which would have to be made anew."""
    async with store(make_source, clock) as filled:
        session = await filled.create("s")
        await session.append("a")
        await Copier(source, target, clock=clock).run()
        before = await content(target, clock)
        events = await session.append_many([*range(100), "x" * 100])
        await session.delete_events_before(events[10].id)
    narrow = Narrow(target, max_unit_keys=50, max_event_bytes=50)
    report = await Copier(source, narrow, clock=clock).run()
    assert [problem.kind for problem in report.problems.values()] == ["too large"]
    assert await content(target, clock) == before


async def test_a_session_that_the_target_rejects_harms_no_other(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill_many(make_source, clock, 12)
    faulty = FaultyBackend(target)
    faulty.inject(FaultKind.REJECTED, times=None, when=touches("s3"))  # a small one, in a batch
    faulty.inject(FaultKind.REJECTED, times=None, when=touches("s10"))  # one that needs several commits
    report = await Copier(source, faulty, SMALL, clock=clock).run()
    assert {(problem.session_id, problem.kind) for problem in report.problems.values()} == {
        ("s3", "rejected"),
        ("s10", "rejected"),
    }
    assert (report.copied, report.verified) == (10, 10)
    report = await Copier(source, target, SMALL, clock=clock).run()
    assert (report.copied, report.already_there, report.complete) == (2, 10, True)


class Renumbering(FaultyBackend):
    """A target that starts every log at 1, whatever the row that it is given says."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        def plain(write: SessionWrite) -> SessionWrite:
            if write.create is None:
                return write
            return msgspec.structs.replace(
                write, create=msgspec.structs.replace(write.create, first_seq=1, last_seq=0, version=0)
            )

        return await super().commit(msgspec.structs.replace(batch, writes=[plain(write) for write in batch.writes]))


async def test_a_target_that_renumbers_is_found_out(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill(make_source, clock)
    with pytest.raises(StoreError, match="'trimmed' behind event 0 and version 0, not behind 12 and 0"):
        await Copier(source, Renumbering(target), clock=clock).run()


# --- verification ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    ("statement", "session_id", "detail"),
    [
        ("UPDATE events SET data = '\"7.4\"' WHERE data = '\"7.5\"'", "s7", "is not the same"),
        ("UPDATE events SET time_us = time_us + 1 WHERE data = '\"7.5\"'", "s7", "is not the same"),
        ("UPDATE events SET stream = 'x' WHERE data = '\"7.13\"'", "s7", "is not the same"),
        ("DELETE FROM events WHERE data = '\"7.5\"'", "s7", "event 6 is not at the target"),
        ("UPDATE state SET value = '8' WHERE value = '9'", "s10", "state['k9'] is not the same"),
        ("UPDATE state SET version = 3 WHERE value = '9'", "s10", "state['k9'] has version 2 at the source, 3 at"),
        ("DELETE FROM state WHERE value = '9'", "s10", "state['k9'] is only at the source"),
        ("INSERT INTO state SELECT incarnation, 'x', '1', 1 FROM state WHERE value = '9'", "s10", "only at the target"),
    ],
)
async def test_verification_finds_what_differs(
    make_source: Make,
    make_target: Make,
    source: Backend,
    tmp_path: Path,
    clock: ManualClock,
    statement: str,
    session_id: str,
    detail: str,
) -> None:
    await fill_many(make_source, clock, 11)
    async with opened(make_target) as [target]:
        await Copier(source, target, clock=clock).run()
    with sqlite3.connect(tmp_path / "target.db") as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()
    async with opened(make_target) as [target]:
        report = await Copier(source, target, clock=clock).run()
    [problem] = report.problems.values()
    assert (problem.session_id, problem.kind) == (session_id, "different")
    assert detail in problem.detail
    assert (report.already_there, report.verified) == (11, 10)


async def test_verification_finds_what_was_not_stored(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill_many(make_source, clock, 11)
    report = await Copier(source, Forgetful(target), clock=clock).run()
    assert report.problems == {"s7": Problem("s7", "different", "it is not at the target")}
    assert report.verified == 10


class Forgetful(FaultyBackend):
    """Loses session s7 after it was committed."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        outcomes = await super().commit(batch)
        for write in batch.writes:
            if write.id == "s7":
                delete = blind(write.create or pytest.fail("created at once"), version=write.units, delete=True)
                await super().commit(msgspec.structs.replace(batch, writes=[delete], marker=batch.marker))
        return outcomes

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> Any:
        pytest.fail("the target need not be listed")
