"""Whether a session at the target is an earlier state of the source's, or another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.backends.base import (
    Backend,
    Head,
)
from holdfast.copying import Copier, Problem
from holdfast.copying.plan import Verdict, compare
from holdfast.errors import ConfigError
from holdfast.testing import ManualClock
from tests.copying.conftest import Make, content, fill, maker, opened, store

pytestmark = pytest.mark.anyio


async def test_another_session_of_the_same_id_is_left_alone(
    make_source: Make, make_target: Make, source: Backend, target: Backend, clock: ManualClock
) -> None:
    await fill(make_source, clock)
    async with store(make_target, clock) as used:
        await (await used.create("plain", ttl_s=10)).set("mine", 1)
        await used.create("only-here")
    before = await content(target, clock)
    report = await Copier(source, target, clock=clock).run()
    assert report.problems == {
        "plain": Problem("plain", "conflict", "the target has another session of this id"),
    }
    assert (report.copied, report.verified) == (4, 4)
    after = await content(target, clock)
    assert {name: after[name] for name in before} == before
    assert len(after) == 6

    await clock.advance(10)
    report = await Copier(source, target, clock=clock).run()
    assert (report.problems, report.copied) == ({}, 1), "one that has expired is no conflict"
    assert (await content(target, clock))["plain"] == (await content(source, clock))["plain"]


@pytest.mark.parametrize(
    ("what", "source_later"),
    [("event", True), ("event", False), ("close", True), ("close", False), ("state", True), ("state", False)],
)
async def test_a_session_used_in_both_stores_is_left_alone(
    make_source: Make,
    make_target: Make,
    source: Backend,
    target: Backend,
    clock: ManualClock,
    what: str,
    source_later: bool,
) -> None:
    """Also if the source went further, so that by its counts the copy might be an earlier state."""
    await fill(make_source, clock)
    await Copier(source, target, clock=clock).run()

    async def use_source() -> None:
        async with store(make_source, clock) as used:
            for name in ("plain", "trimmed"):
                session = await used.require(name)
                await session.append_many(["at the source"] * 3)
                await session.set("big", 1)
                await session.set("null", 1)

    async def use_target() -> None:
        async with store(make_target, clock) as used:
            session = await used.require("plain")
            if what == "event":
                await session.append("at the target")
            elif what == "state":
                await session.set("null", 7)
                await session.set("big", 7)
            else:
                await session.close()

    for use in (use_target, use_source) if source_later else (use_source, use_target):
        await clock.advance(1)
        await use()
    before = (await content(target, clock))["plain"]
    report = await Copier(source, target, clock=clock).run()
    [problem] = report.problems.values()
    assert problem == Problem("plain", "conflict", "it has been used at the target since it was copied")
    assert (await content(target, clock))["plain"] == before
    assert (await content(target, clock))["trimmed"] == (await content(source, clock))["trimmed"]


HEAD = Head(
    id="s",
    incarnation=5,
    owner="ann",
    created_us=100,
    active_us=200,
    ttl_us=50,
    deadline_us=None,
    status="active",
    metadata=b"{}",
    first_seq=3,
    last_seq=9,
    version=7,
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.SAME),
        ({"version": 6, "last_seq": 8}, Verdict.BEHIND),
        ({"version": 6, "last_seq": 8, "first_seq": 1, "active_us": 150, "metadata": b"{1}"}, Verdict.BEHIND),
        ({"active_us": 150, "first_seq": 1}, Verdict.BEHIND),
        ({"version": 6, "last_seq": 2, "first_seq": 1}, Verdict.BEHIND),
        ({"version": 6, "last_seq": 1, "first_seq": 1}, Verdict.CUT_OFF),
        ({"version": -3, "last_seq": 2}, Verdict.BEHIND),
        ({"incarnation": 4}, Verdict.CONFLICT),
        ({"incarnation": 4, "active_us": 150}, Verdict.ABSENT),
        ({"owner": None}, Verdict.CONFLICT),
        ({"created_us": 99}, Verdict.CONFLICT),
        ({"ttl_us": None}, Verdict.CONFLICT),
        ({"deadline_us": 900}, Verdict.CONFLICT),
        ({"version": 8}, Verdict.CONFLICT),
        ({"version": 6, "active_us": 201}, Verdict.CONFLICT),
        ({"version": 6, "last_seq": 10}, Verdict.CONFLICT),
        ({"version": 6, "first_seq": 4}, Verdict.CONFLICT),
        ({"last_seq": 8}, Verdict.CONFLICT),
        ({"metadata": b"{1}"}, Verdict.CONFLICT),
        ({"status": "closed"}, Verdict.CONFLICT),
        ({"status": "closed", "version": 6}, Verdict.CONFLICT),
    ],
)
def test_a_copy_is_judged_by_its_head(changes: dict[str, Any], verdict: Verdict) -> None:
    assert compare(HEAD, msgspec.structs.replace(HEAD, **changes), now_us=200)[0] is verdict
    assert compare(HEAD, None, now_us=200)[0] is Verdict.ABSENT


async def test_a_store_is_not_copied_to_itself(
    make_source: Make, source: Backend, tmp_path: Path, clock: ManualClock, kind: str
) -> None:
    make_alias = make_source
    if kind == "sqlite":
        (tmp_path / "alias.db").symlink_to(tmp_path / "source.db")
        make_alias = maker(kind, tmp_path / "alias.db")
    async with opened(make_alias) as [alias]:
        with pytest.raises(ConfigError, match="the same store"):
            await Copier(source, alias, clock=clock).run()
