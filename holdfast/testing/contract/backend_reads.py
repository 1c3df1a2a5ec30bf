"""Duties of `Backend.load`, `read_events`, `list_sessions` and `count_sessions`."""

from __future__ import annotations

import pytest

from holdfast.backends.base import Backend, EventQuery, LoadRequest, NewEvent, SessionFilter
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.base import ContractBase, MakeBackend
from holdfast.testing.contract.direct import Direct, blind, new_event, texts

__all__ = ["ReadContract"]

SECOND = 1_000_000
AWKWARD_TEXTS = ["", " ", "a\x00b", "'; DROP TABLE sessions; --", "%_\\", "🦊用户ä", "\u2028", "x" * 500]


class ReadContract(ContractBase):
    """What was committed is read back, complete and in order, by everybody."""

    @pytest.fixture
    def direct(self, backend: Backend, clock: ManualClock) -> Direct:
        return Direct(backend, clock)

    async def test_load_keeps_the_requests_order(self, direct: Direct, backend: Backend) -> None:
        """C3: one answer for each request, None for an unknown id."""
        for name in "abc":
            await direct.create(name)
        requests = [LoadRequest(name) for name in ("c", "nobody", "a", "b", "a")]
        snapshots = await backend.load(requests)
        assert [snapshot and snapshot.head.id for snapshot in snapshots] == ["c", None, "a", "b", "a"]
        assert await backend.load([]) == []

    async def test_load_leaves_unchanged_state_out(self, direct: Direct, backend: Backend) -> None:
        """Contract: state is None if asked head only, or if the version is still the caller's."""
        head = await direct.create("s")
        await direct.one(blind(head, sets={"k": (b"1", 1)}))
        current = await direct.head("s")
        known = [
            (LoadRequest("s", current.incarnation, current.version), None),
            (LoadRequest("s", head_only=True), None),
            (LoadRequest("s", current.incarnation, current.version - 1), {"k"}),
            (LoadRequest("s", current.incarnation + 1, current.version), {"k"}),
            (LoadRequest("s"), {"k"}),
        ]
        for request, keys in known:
            (snapshot,) = await backend.load([request])
            assert snapshot is not None
            assert snapshot.head == current
            assert (snapshot.state if snapshot.state is None else set(snapshot.state)) == keys, request

    async def test_load_returns_expired_rows(self, direct: Direct, clock: ManualClock) -> None:
        """Contract: the engine knows of touches that are not written yet, so it decides."""
        await direct.create("s", ttl_us=SECOND)
        await clock.advance(5)
        assert (await direct.head("s")).id == "s"

    async def test_values_come_back_byte_for_byte(self, direct: Direct, backend: Backend) -> None:
        """C13: keys of any Unicode, values as they were written, NUL and big integers too."""
        head = await direct.create("s")
        values = {key: b'{"n":%d,"t":"\\u0000"}' % (10**30 + number) for number, key in enumerate(AWKWARD_TEXTS)}
        values |= {"null": b"null", "float": b"1e-7", "nested": b"[[[[{}]]]]", "unicode": '"🦊\u2028"'.encode()}
        await direct.one(blind(head, sets={key: (raw, 1) for key, raw in values.items()}))
        assert await direct.state("s") == values
        await direct.one(blind(head, removes=set(AWKWARD_TEXTS)))
        assert set(await direct.state("s")) == set(values) - set(AWKWARD_TEXTS)

    async def test_events_come_back_byte_for_byte(self, direct: Direct, clock: ManualClock) -> None:
        """C22: stream, type, data, retry and time of each event."""
        head = await direct.create("s", owner="o")
        given = [
            NewEvent(text, text[::-1], b'"\\u0000%d"' % number, number or None, clock.now_us() + number)
            for number, text in enumerate(AWKWARD_TEXTS)
        ]
        await direct.one(blind(head, events=given))
        events = await direct.events(head)
        assert [NewEvent(e.stream, e.type, e.raw, e.retry_ms, e.time_us) for e in events] == given
        assert {(event.session_id, event.incarnation) for event in events} == {("s", head.incarnation)}

    async def test_awkward_ids_and_owners(self, direct: Direct) -> None:
        """C54: names are values, whatever they look like."""
        ids = ["'; DROP TABLE sessions; --", "%", "_", "a/b?c#d", "x" * 128, "{tag}", "NULL", "0"]
        for name in ids:
            await direct.create(name, owner=name + "ä\x00")
        assert await direct.listed() == ids
        for name in ids:
            assert await direct.listed(owner=name + "ä\x00") == [name]
            assert (await direct.head(name)).owner == name + "ä\x00"

    async def test_ids_differ_by_case_and_length(self, direct: Direct) -> None:
        """C1: ids are compared exactly."""
        for name in ("a", "A", "aa", "a ".strip() + "."):
            await direct.create(name)
        assert sorted(await direct.listed()) == sorted(["a", "A", "aa", "a."])
        assert not await direct.exists("AA")

    async def test_pages_of_events(self, direct: Direct) -> None:
        """C28: limit, ``more`` and ``scanned_seq`` lead through all events without gap or repeat."""
        head = await direct.append(await direct.create("s"), *map(str, range(10)))
        first = await direct.page(head, limit=4)
        assert ([e.seq for e in first.events], first.scanned_seq, first.more) == ([1, 2, 3, 4], 4, True)
        assert (first.first_seq, first.last_seq) == (1, 10)
        rest = await direct.page(head, after_seq=4, limit=6)
        assert ([e.seq for e in rest.events], rest.scanned_seq, rest.more) == ([5, 6, 7, 8, 9, 10], 10, False)
        end = await direct.page(head, after_seq=10)
        assert (end.events, end.scanned_seq, end.more) == ([], 10, False)

    async def test_pages_end_by_bytes(self, direct: Direct) -> None:
        """C28: past ``max_bytes`` a page ends, but one event always fits."""
        head = await direct.create("s")
        await direct.append(head, *("x" * 1_000 for _ in range(6)))
        page = await direct.page(head, max_bytes=2_500)
        assert 1 <= len(page.events) <= 3
        assert page.more
        tiny = await direct.page(head, after_seq=2, max_bytes=1)
        assert ([event.seq for event in tiny.events], tiny.more) == ([3], True)

    async def test_streams_are_kept_apart(self, direct: Direct) -> None:
        """C30: a stream's events only; ``scanned_seq`` passes over the others'."""
        head = await direct.create("s")
        given = [new_event(str(n), stream="ab"[n % 2]) for n in range(10)]
        await direct.one(blind(head, events=given))
        page = await direct.page(head, stream="a")
        assert texts(page.events) == ["0", "2", "4", "6", "8"]
        assert (page.scanned_seq, page.more) == (10, False)
        assert texts((await direct.page(head, stream="b", after_seq=4, limit=2)).events) == ["5", "7"]
        none = await direct.page(head, stream="nothing")
        assert (none.events, none.scanned_seq, none.more) == ([], 10, False)

    async def test_stream_pages_reach_the_end(self, direct: Direct) -> None:
        """C28: a filtered replay of small pages is complete, and makes progress at each page."""
        head = await direct.create("s")
        await direct.one(blind(head, events=[new_event(str(n), stream="ab"[n % 7 == 0]) for n in range(50)]))
        found, after, pages = list[str](), 0, 0
        while True:
            page = await direct.page(head, stream="b", after_seq=after, limit=3)
            found += texts(page.events)
            pages += 1
            if not page.more:
                break
            assert page.scanned_seq > after
            after = page.scanned_seq
        assert found == [str(n) for n in range(50) if n % 7 == 0]
        assert pages < 20

    async def test_last_events_ascending(self, direct: Direct) -> None:
        """C21: the newest n, oldest of them first; of a stream too."""
        head = await direct.create("s")
        await direct.one(blind(head, events=[new_event(str(n), stream="ab"[n % 2]) for n in range(10)]))
        assert texts((await direct.page(head, last=True, limit=3)).events) == ["7", "8", "9"]
        assert texts((await direct.page(head, last=True, limit=2, stream="a")).events) == ["6", "8"]
        assert len((await direct.page(head, last=True, limit=99)).events) == 10
        await direct.one(blind(head, floor_seq=9))
        assert texts((await direct.page(head, last=True, limit=5)).events) == ["8", "9"]

    async def test_events_of_another_incarnation(self, direct: Direct, backend: Backend) -> None:
        """C25: None for an unknown session, and for an earlier life of the id."""
        head = await direct.append(await direct.create("s"), "old")
        await direct.one(blind(head, delete=True))
        assert await backend.read_events(EventQuery("s", head.incarnation)) is None
        again = await direct.create("s")
        assert await backend.read_events(EventQuery("s", head.incarnation)) is None
        assert (await direct.page(again)).events == []
        assert await backend.read_events(EventQuery("nobody", 1)) is None

    async def test_sessions_do_not_see_each_others_events(self, direct: Direct) -> None:
        """C30: one log per session."""
        a, b = await direct.create("a"), await direct.create("b")
        await direct.commit(blind(a, events=[new_event("for a")]), blind(b, events=[new_event("for b")]))
        assert texts(await direct.events(a)) == ["for a"]
        assert texts(await direct.events(b)) == ["for b"]

    async def test_list_pages_in_order_of_creation(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C6: complete past any page; count equals list."""
        ids = [f"s{(number * 7) % 23}" for number in range(23)]
        for name in ids:
            await direct.create(name)
        assert await direct.listed(page=5) == ids
        assert await direct.listed(page=23) == ids
        assert await backend.count_sessions(SessionFilter(clock.now_us())) == 23

    async def test_list_is_stable_while_sessions_go(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C6: a page is a place in the order, not an offset."""
        heads = [await direct.create(f"s{number}") for number in range(6)]
        where = SessionFilter(clock.now_us())
        first = await backend.list_sessions(where, -1, 3)
        for head in heads[:3]:
            await direct.one(blind(head, delete=True))
        assert first.next_after is not None
        rest = await backend.list_sessions(where, first.next_after, 10)
        assert [head.id for head in rest.heads] == ["s3", "s4", "s5"]
        assert rest.next_after is None

    async def test_list_filters(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C6, C9, C36: by owner, by status; expired sessions are left out, lifetimes count too."""
        now = clock.now_us()
        await direct.create("plain")
        await direct.create("owned", owner="o")
        closed = await direct.create("closed", owner="o")
        await direct.one(blind(closed, close=True))
        await direct.create("idle", owner="o", ttl_us=SECOND)
        await direct.create("ended", owner="o", ttl_us=99 * SECOND, deadline_us=now + SECOND)
        await clock.advance(1)
        assert await direct.listed() == ["plain", "owned", "closed"]
        assert await direct.listed(owner="o") == ["owned", "closed"]
        assert await direct.listed(owner="o", status="closed") == ["closed"]
        assert await direct.listed(status="active") == ["plain", "owned"]
        assert await direct.listed(owner="O") == []
        assert await backend.count_sessions(SessionFilter(clock.now_us(), "o", "active")) == 1

    async def test_rows_survive_restart(
        self, direct: Direct, backend: Backend, make_backend: MakeBackend, clock: ManualClock
    ) -> None:
        """C10: byte for byte."""
        head = await direct.create("s", owner="o", ttl_us=9 * SECOND, metadata=b'{"m":"\\u0000"}')
        await direct.one(blind(head, sets={"k": (b"1.50", 1)}, events=[new_event("a"), new_event("b")], floor_seq=2))
        before = (
            await direct.head("s"),
            await direct.state("s"),
            await direct.versions("s"),
            await direct.events(head),
        )
        await backend.close()
        again = make_backend()
        await again.open()
        try:
            later = Direct(again, clock)
            after = (await later.head("s"), await later.state("s"), await later.versions("s"), await later.events(head))
            assert after == before
        finally:
            await again.close()

    async def test_the_other_instance_reads_what_was_committed(
        self, direct: Direct, other: Backend, clock: ManualClock
    ) -> None:
        """P6: at once, without waiting for anything."""
        second = Direct(other, clock, "second")
        head = await direct.create("s")
        for number in range(20):
            await direct.one(blind(head, sets={"k": (b"%d" % number, 1)}, events=[new_event(str(number))]))
            assert await second.state("s") == {"k": b"%d" % number}
            assert len(await second.events(head)) == number + 1
