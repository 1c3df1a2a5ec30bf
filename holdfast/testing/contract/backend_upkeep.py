"""Duties of `Backend.expire`, `trim`, `watch`, `describe`, `open` and `close`."""

from __future__ import annotations

from collections.abc import Collection

import anyio
import msgspec
import pytest

from holdfast.backends.base import Backend, Expired, LoadRequest, TrimPolicy
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.base import ContractBase, MakeBackend
from holdfast.testing.contract.direct import Direct, blind, new_event, texts
from holdfast.testing.leaks import assert_no_leaks

__all__ = ["UpkeepContract"]

SECOND = 1_000_000
ANY = TrimPolicy()


class UpkeepContract(ContractBase):
    """Expiry, trimming, hints and a clean end."""

    @pytest.fixture
    def direct(self, backend: Backend, clock: ManualClock) -> Direct:
        return Direct(backend, clock)

    async def test_expire_removes_exactly_the_expired(
        self, direct: Direct, backend: Backend, clock: ManualClock
    ) -> None:
        """C38, C39: each by its own TTL or lifetime; the ids of the removed ones come back."""
        now = clock.now_us()
        idle = await direct.create("idle", ttl_us=SECOND, owner="o")
        ended = await direct.create("ended", ttl_us=99 * SECOND, deadline_us=now + SECOND)
        for name, ttl_us in (("long", 7_200 * SECOND), ("forever", None), ("just", SECOND + 1)):
            await direct.create(name, ttl_us=ttl_us)
        await clock.advance(1)
        expired = await backend.expire(clock.now_us(), 100)
        assert sorted(expired) == sorted(
            [Expired("idle", idle.incarnation, "o"), Expired("ended", ended.incarnation, None)]
        )
        assert await direct.listed() == ["long", "forever", "just"]
        assert not await direct.exists("idle")
        assert await backend.expire(clock.now_us(), 100) == []

    async def test_expire_removes_state_and_events(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C25: the next session of the id finds nothing."""
        head = await direct.create("s", ttl_us=SECOND)
        await direct.one(blind(head, sets={"k": (b"1", 1)}, events=[new_event()]))
        await clock.advance(2)
        assert len(await backend.expire(clock.now_us(), 100)) == 1
        again = await direct.create("s")
        assert await direct.state("s") == {}
        assert await direct.events(again) == []
        assert (await direct.page(again)).first_seq == 1

    async def test_touched_session_is_kept(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C38: a touch that came first wins."""
        head = await direct.create("s", ttl_us=SECOND)
        await clock.advance(0.9)
        await direct.one(blind(head, units=0, active_us=clock.now_us()))
        await clock.advance(0.9)
        assert await backend.expire(clock.now_us(), 100) == []
        await clock.advance(0.1)
        assert len(await backend.expire(clock.now_us(), 100)) == 1

    async def test_expire_goes_in_bounded_batches(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C41: at most ``limit`` at once; fewer means that there are no more."""
        for number in range(25):
            await direct.create(f"s{number}", ttl_us=SECOND if number % 5 else None)
        await clock.advance(2)
        sizes = list[int]()
        removed = set[str]()
        while True:
            expired = await backend.expire(clock.now_us(), 8)
            sizes.append(len(expired))
            removed |= {session.id for session in expired}
            if len(expired) < 8:
                break
        assert sizes == [8, 8, 4]
        assert removed == {f"s{number}" for number in range(25) if number % 5}

    async def test_expire_races_with_touches(
        self, direct: Direct, backend: Backend, other: Backend, clock: ManualClock
    ) -> None:
        """C38: a session is either touched and kept, or expired and told; never both, never neither."""
        heads = [await direct.create(f"s{number}", ttl_us=SECOND) for number in range(40)]
        await clock.advance(1)
        accepted_us = clock.now_us() - 1
        expired, kept = list[Expired](), set[str]()

        async def touch() -> None:
            second = Direct(other, clock, "second")
            for head in heads:
                outcome = await second.one(blind(head, units=0, accepted_us=accepted_us, active_us=clock.now_us()))
                if outcome.status.name == "COMMITTED":
                    kept.add(head.id)
                await anyio.lowlevel.checkpoint()

        async def reap() -> None:
            while batch := await backend.expire(clock.now_us(), 3):
                expired.extend(batch)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(touch)
            tasks.start_soon(reap)
        gone = {session.id for session in expired}
        assert len(gone) == len(expired)
        assert kept.isdisjoint(gone)
        assert kept | gone == {head.id for head in heads}
        assert set(await direct.listed()) == kept

    async def test_trim_deletes_dropped_rows(self, direct: Direct, backend: Backend) -> None:
        """C26, C34: exactly the rows below ``first_seq``, and each only once."""
        head = await direct.append(await direct.create("s"), *"abcdefgh")
        assert await backend.trim([("s", head.incarnation)], ANY, 100) == 0
        await direct.one(blind(head, floor_seq=6))
        assert await backend.trim([("s", head.incarnation)], ANY, 100) == 5
        assert await backend.trim([("s", head.incarnation)], ANY, 100) == 0
        assert texts(await direct.events(head)) == ["f", "g", "h"]
        after = await direct.append(head, "i")
        assert (after.first_seq, after.last_seq) == (6, 9)

    async def test_trim_only_what_is_asked_for(self, direct: Direct, backend: Backend) -> None:
        """Contract: the pairs given, or any session; an earlier incarnation is nobody."""
        heads = [await direct.append(await direct.create(name), *"abcd") for name in "xyz"]
        for head in heads:
            await direct.one(blind(head, floor_seq=3))
        x, y, z = heads
        assert await backend.trim([(x.id, x.incarnation), (y.id, y.incarnation - 1), ("nobody", 1)], ANY, 100) == 2
        assert await backend.trim(None, ANY, 100) == 4
        assert await backend.trim([(z.id, z.incarnation)], ANY, 100) == 0

    async def test_trim_by_age(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """P9: events older than the bound go, the newer stay."""
        head = await direct.create("s")
        now = clock.now_us()
        await direct.one(blind(head, events=[new_event(str(n), time_us=now + n * SECOND) for n in range(6)]))
        assert await backend.trim([("s", head.incarnation)], TrimPolicy(min_time_us=now + 4 * SECOND), 100) == 4
        assert texts(await direct.events(head)) == ["4", "5"]
        assert (await direct.page(head)).first_seq == 5

    async def test_trim_by_bytes(self, direct: Direct, backend: Backend) -> None:
        """P9: the newest events that fit the bound stay."""
        head = await direct.create("s")
        await direct.append(head, *(str(n) * 98 for n in range(6)))
        assert await backend.trim(None, TrimPolicy(max_bytes=250), 100) == 4
        assert [event.seq for event in await direct.events(head)] == [5, 6]

    async def test_trim_in_steps(self, direct: Direct, backend: Backend) -> None:
        """C41: about ``limit`` rows at once; less than that means done."""
        head = await direct.append(await direct.create("s"), *(str(n) for n in range(50)))
        await direct.one(blind(head, floor_seq=46))
        deleted = list[int]()
        while True:
            deleted.append(await backend.trim(None, ANY, 10))
            assert len(await direct.events(head)) == 5
            if deleted[-1] < 10:
                break
        assert sum(deleted) == 45

    async def test_trim_sweeps_up_after_deletes(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C5: whatever a delete or an expiry left for later is gone after a trim of any session."""
        deleted = await direct.append(await direct.create("d"), *(str(n) for n in range(300)))
        expired = await direct.append(await direct.create("e", ttl_us=SECOND), *(str(n) for n in range(300)))
        await direct.one(blind(deleted, delete=True))
        await clock.advance(5)
        assert await backend.expire(clock.now_us(), 10) == [Expired("e", expired.incarnation, None)]
        for _ in range(100):
            if await backend.trim(None, ANY, 50) < 50:
                break
        else:
            pytest.fail("trim never ends")
        assert await backend.trim(None, ANY, 50) == 0

    async def test_watch_tells_of_other_instances(
        self, direct: Direct, backend: Backend, other: Backend, clock: ManualClock
    ) -> None:
        """C32: a commit elsewhere leads to a hint; cancelled, the watch ends."""
        if other is backend or not other.capabilities.watches:
            pytest.skip("there is nobody to watch, or the backend cannot")
        head = await direct.create("s")
        hint = anyio.Event()

        def changed(incarnations: Collection[int] | None) -> None:
            if incarnations is None or head.incarnation in incarnations:
                hint.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.watch, changed)
            await anyio.lowlevel.checkpoint()
            with anyio.fail_after(20):
                while not hint.is_set():
                    await direct.one(blind(head, events=[new_event()]))
                    with anyio.move_on_after(0.2):
                        await hint.wait()
            tasks.cancel_scope.cancel()

    async def test_close_twice_and_without_open(self, make_backend: MakeBackend) -> None:
        """C51: close is always allowed."""
        backend = make_backend()
        await backend.close()
        await backend.open()
        await backend.close()
        await backend.close()

    async def test_nothing_outlives_a_closed_backend(self, make_backend: MakeBackend, clock: ManualClock) -> None:
        """C51: no thread, task or open file stays; also where close runs under cancellation."""
        for cancelled in (False, True):
            async with assert_no_leaks():
                backend = make_backend()
                await backend.open()
                direct = Direct(backend, clock)
                await direct.append(await direct.create(f"s{cancelled}"), "a")
                await backend.load([LoadRequest("s")])
                with anyio.CancelScope() as scope:
                    if cancelled:
                        scope.cancel()
                    await backend.close()

    async def test_describe_is_json(self, backend: Backend) -> None:
        """C53: facts for a person to read."""
        facts = await backend.describe()
        assert facts
        assert msgspec.json.decode(msgspec.json.encode(facts)) == facts

    async def test_capabilities_are_consistent(self, backend: Backend) -> None:
        """Contract: known once open."""
        found = backend.capabilities
        assert found.name
        assert found.preferred_lanes >= 1
        assert found.max_batch_sessions is None or found.max_batch_sessions >= 1
