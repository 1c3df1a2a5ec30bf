"""CONFORMANCE 20-28, 30, 34, 35: the event log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import anyio
import pytest

from holdfast.config import RetentionConfig
from holdfast.errors import EventGap, InvalidCursor, InvalidInput, SessionClosed, SessionNotFound
from holdfast.model import Cursor, Event
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.supervisor.unit_of_work import EventData
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.stores import OpenStore, StoreBase

__all__ = ["EventContract"]


def data(events: Sequence[Event]) -> list[Any]:
    return [event.data for event in events]


async def replayed(session: Session, **query: Any) -> list[Event]:
    return [event async for event in session.replay(**query)]


class EventContract(StoreBase):
    """Ids strictly increase without gaps, are never reused, and order is the order of visibility."""

    async def test_ids_increase_without_gaps_across_streams(self, store: Supervisor, second: Supervisor) -> None:
        """C20: one numbering per session, whatever the stream and the instance."""
        session = await store.create("s")
        other = await second.require("s")
        returned = list[Event]()
        for number in range(12):
            handle = (session, other)[number % 2]
            returned.append(await handle.append(number, stream=f"s{number % 3}"))
        assert [event.seq for event in returned] == list(range(1, 13))
        assert len({event.id for event in returned}) == 12
        assert await session.events() == returned
        assert await other.events() == returned

    async def test_reading_after_an_id(self, store: Supervisor) -> None:
        """C21: strictly after, in order; nothing given means all that is held."""
        session = await store.create()
        events = [await session.append(number) for number in range(10)]
        assert data(await session.events()) == list(range(10))
        assert data(await session.events(after=events[3].id)) == [4, 5, 6, 7, 8, 9]
        assert data(await session.events(after=events[3].id, limit=2)) == [4, 5]
        assert await session.events(after=events[9].id) == []
        assert data(await session.last_events(3)) == [7, 8, 9]
        assert data(await session.last_events(99)) == list(range(10))
        assert await replayed(session, after=events[3].id) == events[4:]

    async def test_reading_one_stream(self, store: Supervisor, second: Supervisor) -> None:
        """C30, C21: a stream's events only; an id of any stream of the session is a place in the log."""
        session = await store.create("s")
        events = [await session.append(number, stream="ab"[number % 2]) for number in range(10)]
        other = await second.require("s")
        for handle in (session, other):
            assert data(await handle.events(stream="a")) == [0, 2, 4, 6, 8]
            assert data(await handle.events(stream="a", after=events[3].id)) == [4, 6, 8]
            assert data(await handle.events(stream="b", after=events[3].id, limit=2)) == [5, 7]
            assert data(await handle.last_events(2, stream="a")) == [6, 8]
            assert await handle.events(stream="") == []
            assert data(await replayed(handle, stream="b")) == [1, 3, 5, 7, 9]

    async def test_event_fields_round_trip(self, store: Supervisor, second: Supervisor, clock: ManualClock) -> None:
        """C22: type, stream, retry, time and data, as returned and as read."""
        session = await store.create("s")
        appended = await session.append({"a": [None, "\x00", 10**30]}, type="täg\x00", stream="s.1/ü", retry_ms=3_000)
        await clock.advance(1.5)
        plain = await session.append(None)
        assert (appended.type, appended.stream, appended.retry_ms) == ("täg\x00", "s.1/ü", 3_000)
        assert (plain.type, plain.stream, plain.retry_ms, plain.data) == ("message", "", None, None)
        assert appended.data == {"a": [None, "\x00", 10**30]}
        assert plain.time_us - appended.time_us == 1_500_000
        assert plain.time_us == clock.now_us()
        assert await (await second.require("s")).events() == [appended, plain]

    async def test_ids_fit_a_header(self, store: Supervisor) -> None:
        """C22: visible ASCII without spaces, whatever the stream's name."""
        session = await store.create()
        for stream in ("", "a b", "ü\n\x00", ".", "a.b.c", "%2E"):
            event = await session.append("x", stream=stream)
            assert event.id.isascii()
            assert event.id.isprintable()
            assert " " not in event.id
            assert Cursor.parse(event.id) == (session.incarnation, event.seq, stream)
            assert await session.events(after=event.id) == []

    @pytest.mark.parametrize("gone", ["deleted", "expired", "closed"])
    async def test_no_orphans(self, store: Supervisor, clock: ManualClock, gone: str) -> None:
        """C23: an append to a session that is not there is refused."""
        session = await store.create("s", ttl_s=10)
        if gone == "deleted":
            await session.delete()
        elif gone == "expired":
            await clock.advance(10)
        else:
            await session.close()
        with pytest.raises(SessionClosed if gone == "closed" else SessionNotFound):
            await session.append("x")
        with pytest.raises(SessionClosed if gone == "closed" else SessionNotFound):
            await session.append_many(["x", "y"])
        if gone == "closed":
            assert await session.events() == []
        else:
            assert await (await store.create("s")).events() == []

    async def test_two_instances_append_at_once(self, store: Supervisor, second: Supervisor) -> None:
        """C24: no loss, no duplicate, and no id becomes visible after a higher one was read."""
        session = await store.create("s")
        other = await second.require("s")
        writers = 20
        finished = 0

        async def write(handle: Session, name: str) -> None:
            nonlocal finished
            for number in range(15):
                await handle.append([name, number])
            finished += 1

        async def watch(handle: Session) -> None:
            seen = list[int]()
            while finished < writers:
                now = [event.seq for event in await handle.events()]
                assert now == list(range(1, len(now) + 1))
                assert now[: len(seen)] == seen
                seen = now
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for number in range(writers):
                tasks.start_soon(write, (session, other)[number % 2], f"w{number}")
            tasks.start_soon(watch, session)
            tasks.start_soon(watch, other)
        events = await session.events()
        assert await other.events() == events
        assert [event.seq for event in events] == list(range(1, writers * 15 + 1))
        for number in range(writers):
            assert [n for name, n in data(events) if name == f"w{number}"] == list(range(15))

    @pytest.mark.parametrize("how", ["delete", "expire", "restart", "restart after delete", "trim"])
    async def test_ids_are_never_reused(self, open_store: OpenStore, clock: ManualClock, how: str) -> None:
        """C25: ids of a session, and of all that had its id, are unique for ever."""
        store = await open_store().__aenter__()
        ids = set[str]()
        try:
            for round_ in range(4):
                session = await store.get("s") or await store.create("s", ttl_s=10)
                events = await session.append_many(["a", "b", "c"])
                assert ids.isdisjoint(event.id for event in events)
                ids |= {event.id for event in events}
                if how in ("delete", "restart after delete"):
                    await session.delete()
                elif how == "expire":
                    await clock.advance(10)
                    if round_ % 2:
                        await store.expire()
                elif how == "trim":
                    assert await session.delete_events_before(events[-1].id) == (2 if round_ == 0 else 3)
                    await store.trim()
                if how.startswith("restart"):
                    await store.close()
                    store = await open_store().__aenter__()
        finally:
            await store.close()
        assert len(ids) == 12

    async def test_cap_keeps_the_newest(self, open_store: OpenStore, clock: ManualClock) -> None:
        """C26: exactly N, at once, also for one append of more than N; never an error."""
        async with open_store(retention=RetentionConfig(max_events=5)) as store:
            session = await store.create()
            for number in range(12):
                await session.append(number)
                assert data(await session.events()) == list(range(max(0, number - 4), number + 1))
            await session.append_many(list(range(100, 108)))
            assert data(await session.events()) == [103, 104, 105, 106, 107]
            assert data(await session.last_events(9)) == [103, 104, 105, 106, 107]
            info = await session.info()
            assert (info.first_seq, info.last_seq) == (16, 20)
            assert await store.trim() >= 0
            assert data(await session.events()) == [103, 104, 105, 106, 107]
            assert (await session.append("next")).seq == 21

    async def test_old_events_go_by_age_and_size(self, open_store: OpenStore, clock: ManualClock) -> None:
        """P9: a pass of the trimmer enforces the age and the bytes; the newest stay."""
        async with open_store(retention=RetentionConfig(max_event_age_s=60)) as store:
            session = await store.create(ttl_s=None)
            await session.append("old")
            await clock.advance(61)
            new = await session.append("new")
            await store.trim()
            assert await session.events() == [new]
        async with open_store(retention=RetentionConfig(max_event_bytes=1_000)) as store:
            session = await store.create(ttl_s=None)
            await session.append_many([str(number) * 400 for number in range(5)])
            await store.trim()
            assert [event.seq for event in await session.events()] == [4, 5]

    async def test_trimmed_cursor_is_a_gap(self, open_store: OpenStore) -> None:
        """C27: with the first id still held; a cursor just before the window is none."""
        async with open_store(retention=RetentionConfig(max_events=3)) as store:
            session = await store.create("s")
            events = [await session.append(number) for number in range(8)]
            calls: list[Callable[[str], Awaitable[Any]]] = [
                lambda after: session.events(after=after),
                lambda after: replayed(session, after=after),
                lambda after: _first(session, after),
            ]
            for call in calls:
                for event in events[:4]:
                    with pytest.raises(EventGap) as caught:
                        await call(event.id)
                    assert caught.value.session_id == "s"
                    assert caught.value.cursor == event.id
                    assert caught.value.first_id == events[5].id
            assert await session.events(after=events[4].id) == events[5:]
            await session.delete_events_before((await session.append("last")).id)
            await store.trim()
            with pytest.raises(EventGap):
                await session.events(after=events[5].id)

    async def test_gap_with_nothing_held(self, open_store: OpenStore, clock: ManualClock) -> None:
        """C27: all events gone by age: the gap says that none is held."""
        async with open_store(retention=RetentionConfig(max_event_age_s=60)) as aged:
            session = await aged.create(ttl_s=None)
            events = [await session.append(number) for number in range(3)]
            await clock.advance(61)
            await aged.trim()
            with pytest.raises(EventGap) as caught:
                await session.events(after=events[0].id)
            assert caught.value.first_id is None
            assert await session.events(after=events[2].id) == []
            assert (await session.append("x")).seq == 4

    async def test_bad_cursors(self, store: Supervisor) -> None:
        """C27: malformed, foreign, of an earlier life, from the future: an explicit error each."""
        session = await store.create("s")
        own = await session.append("x")
        foreign = await (await store.create("t")).append("y")
        ahead = str(Cursor(session.incarnation, 2, ""))
        reasons: dict[str, Literal["malformed", "foreign", "ahead"]] = {foreign.id: "foreign", ahead: "ahead"}
        for text in ("", "x", "1", "1.2", "..", "a.b.c", own.id + " ", own.id.upper() + "!", f"{own.id}\x00", "ü.1."):
            reasons[text] = "malformed"
        calls: list[Callable[[str], Awaitable[Any]]] = [
            lambda after: session.events(after=after),
            lambda after: replayed(session, after=after),
            lambda after: _first(session, after),
            lambda after: session.delete_events_before(after),
        ]
        for cursor, reason in reasons.items():
            for call in calls:
                with pytest.raises(InvalidCursor) as caught:
                    await call(cursor)
                assert caught.value.reason == reason, cursor
        await session.delete()
        with pytest.raises(InvalidCursor) as caught:
            await (await store.create("s")).events(after=own.id)
        assert caught.value.reason == "foreign"

    async def test_replay_is_complete_past_any_page(self, store: Supervisor, second: Supervisor) -> None:
        """C28: 10,000 events, in order, from both instances."""
        session = await store.create("s")
        for start in range(0, 10_000, 1_000):
            await session.append_many(list(range(start, start + 1_000)))
        for instance in (store, second):
            handle = await instance.require("s")
            assert data(await replayed(handle)) == list(range(10_000))
            assert len(await handle.events()) == 10_000

    async def test_replay_of_large_events(self, store: Supervisor) -> None:
        """C28: many megabytes, read page by page."""
        session = await store.create()
        for number in range(12):
            await session.append([number, "x" * 400_000])
        assert [number for number, _ in data(await replayed(session))] == list(range(12))

    async def test_sessions_do_not_mix(self, store: Supervisor, second: Supervisor) -> None:
        """C30: ids that resemble each other are different sessions."""
        names = ["a", "A", "aa", "a.", "a%", "_", "a_"]
        for name in names:
            await store.create(name)
        async with anyio.create_task_group() as tasks:
            for number in range(70):
                handle = await (store, second)[number % 2].require(names[number % 7])
                tasks.start_soon(handle.append, [handle.id, number])
        for name in names:
            events = await (await second.require(name)).events()
            assert [event.seq for event in events] == list(range(1, 11))
            assert {owner for owner, _ in data(events)} == {name}
            assert {event.session_id for event in events} == {name}

    async def test_delete_events_before(self, store: Supervisor, second: Supervisor) -> None:
        """C34: the exact count of those removed; the event of the id stays."""
        session = await store.create("s")
        events = [await session.append(number) for number in range(10)]
        other = await second.require("s")
        assert await other.delete_events_before(events[4].id) == 4
        assert await session.delete_events_before(events[4].id) == 0
        assert await session.delete_events_before(events[2].id) == 0
        assert await session.events() == events[4:]
        assert await session.delete_events_before(events[9].id) == 5
        await store.trim()
        assert await other.events() == events[9:]
        assert (await session.append("next")).seq == 11

    async def test_append_many_is_one_unit(self, store: Supervisor, second: Supervisor) -> None:
        """C35: consecutive ids, seen together; each item may say its own type and stream."""
        session = await store.create("s")
        other = await second.require("s")

        async def write(handle: Session, name: str) -> None:
            for number in range(10):
                events = await handle.append_many([f"{name}{number}"] * 7)
                assert [event.seq for event in events] == list(range(events[0].seq, events[0].seq + 7))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, session, "a")
            tasks.start_soon(write, other, "b")
            for _ in range(30):
                assert len(await other.events()) % 7 == 0
                await anyio.lowlevel.checkpoint()
        texts = data(await session.events())
        assert all(len(set(texts[start : start + 7])) == 1 for start in range(0, 140, 7))
        mixed = await session.append_many(["plain", EventData({"a": 1}, type="t", stream="s", retry_ms=4)], stream="x")
        assert [(event.data, event.type, event.stream) for event in mixed][0] == ("plain", "message", "x")
        assert (mixed[1].data, mixed[1].type, mixed[1].stream, mixed[1].retry_ms) == ({"a": 1}, "t", "s", 4)
        assert await session.append_many([]) == []

    @pytest.mark.parametrize(
        "bad", [{"type": "x" * 600}, {"stream": "x" * 600}, {"retry_ms": -1}, {"type": "\ud800"}, {"stream": "\ud800"}]
    )
    async def test_unusable_event_fields_are_refused(self, store: Supervisor, bad: dict[str, Any]) -> None:
        """C14, C47: before anything is written."""
        session = await store.create()
        with pytest.raises(InvalidInput):
            await session.append("x", **bad)
        assert await session.events() == []


async def _first(session: Session, after: str) -> Event:
    """The first event of a subscription."""
    with anyio.fail_after(10):
        async with session.subscribe(after=after) as events:
            async for event in events:
                return event
    raise AssertionError("the subscription ended")
