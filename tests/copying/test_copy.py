"""Copying one store into another: everything is kept."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from holdfast.backends.base import (
    Backend,
)
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import WriterConfig
from holdfast.copying import Copier
from holdfast.errors import EventGap
from holdfast.testing import FaultyBackend, ManualClock
from tests.copying.conftest import SMALL, Make, content, fill, fill_many, maker, opened, store

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("config", [WriterConfig(), SMALL], ids=["usual", "small"])
async def test_everything_is_kept(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock, config: WriterConfig
) -> None:
    await fill(make_source, clock)
    before = await content(source, clock)
    assert len(before) == 5
    assert before["closed"][0].status == "closed"
    assert (before["trimmed"][0].first_seq, before["all-trimmed"][0].first_seq) == (13, 4)

    report = await Copier(source, target, config, clock=clock).run()

    assert await content(target, clock) == before == await content(source, clock)
    assert (report.copied, report.already_there, report.caught_up, report.problems) == (5, 0, 0, {})
    assert report.events == report.verified_events == 2 + 20 + 18
    assert report.verified == 5


async def test_sessions_with_more_parts_than_versions_keep_their_versions(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill_many(make_source, clock)
    await Copier(source, target, SMALL, clock=clock).run()
    assert await content(target, clock) == await content(source, clock)


async def test_a_long_log(make_source: Make, source: Backend, target: Backend, clock: ManualClock) -> None:
    async with store(make_source, clock) as filled:
        session = await filled.create("long")
        await session.append_many([{"n": number, "pad": "x" * 100} for number in range(10_000)])
    counting = FaultyBackend(target)
    report = await Copier(source, counting, clock=clock).run()
    assert report.events == report.verified_events == 10_000
    assert counting.calls["commit"] == 11  # one to see whether the stores are two, then 1,000 events each
    assert await content(target, clock) == await content(source, clock)


async def test_old_cursors_go_on_at_the_target(
    make_source: Make, make_target: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    async with store(make_source, clock) as old:
        session = await old.create("s", owner="ann")
        events = await session.append_many(list("abcdef"))
        await session.delete_events_before(events[2].id)
        version = (await session.get_versioned("k"))[1]
        await session.compare_and_set("k", 1, version=version)
        _, version = await session.get_versioned("k")
    await Copier(source, target, clock=clock).run()
    async with store(make_target, clock) as new:
        session = await new.require("s", owner="ann")
        assert [event.data for event in await session.events(after=events[3].id)] == ["e", "f"]
        assert (await session.events(after=events[4].id))[0].id == events[5].id
        with pytest.raises(EventGap) as gap:
            await session.events(after=events[0].id)
        assert gap.value.first_id == events[2].id
        assert (await session.append("g")).seq == 7
        await session.compare_and_set("k", 2, version=version)


async def test_expired_sessions_are_left_out(
    make_source: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    async with store(make_source, clock) as filled:
        await filled.create("short", ttl_s=1)
        await filled.create("long", ttl_s=5)
        await clock.advance(2)
        report = await Copier(source, target, clock=clock).run()
    assert list(await content(target, clock)) == ["long"]
    assert (report.copied, report.verified) == (1, 1)
    await clock.advance(3)
    assert await content(target, clock) == {}, "the copy lives as long as the session"


async def test_markers_are_forgotten(make_source: Make, kind: str, tmp_path: Path, clock: ManualClock) -> None:
    data = MemoryData()
    make_target = (lambda: MemoryBackend(data)) if kind == "memory" else maker(kind, tmp_path / "target.db")
    await fill(make_source, clock)
    async with opened(make_source, make_target) as [source, target]:
        await Copier(source, target, clock=clock).run()
    if kind == "sqlite":
        with sqlite3.connect(tmp_path / "target.db") as connection:
            assert connection.execute("SELECT count(*) FROM markers").fetchone() == (0,)
        connection.close()
    assert data.markers == {}


async def test_lanes_share_the_work(make_source: Make, source: Backend, target: Backend, clock: ManualClock) -> None:
    """More sessions than a lane takes at once."""
    async with store(make_source, clock) as filled:
        for number in range(250):
            await (await filled.create()).append(number)
    report = await Copier(source, target, WriterConfig(lanes=3, max_batch_sessions=10), clock=clock).run()
    assert await content(target, clock) == await content(source, clock)
    assert (report.copied, report.verified) == (250, 250)


async def test_progress_adds_up(make_source: Make, source: Backend, target: Backend, clock: ManualClock) -> None:
    await fill_many(make_source, clock)
    seen: dict[str, tuple[int, int]] = {}

    def count(phase: str, sessions: int, events: int) -> None:
        old = seen.get(phase, (0, 0))
        seen[phase] = (old[0] + sessions, old[1] + events)

    copier = Copier(source, target, SMALL, clock=clock, progress=count)
    assert await copier.count() == 25
    await copier.run()
    assert seen == {"copying": (25, 600), "catching up": (25, 0), "verifying": (25, 600)}
