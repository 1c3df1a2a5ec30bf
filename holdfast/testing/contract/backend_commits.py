"""Duties of `Backend.commit` and `Backend.resolve`."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from holdfast.backends.base import Backend, LoadRequest, Outcome, Status, TrimPolicy
from holdfast.model import Durability
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.base import ContractBase, MakeBackend
from holdfast.testing.contract.direct import Direct, blind, creation, fenced, new_event, new_head, texts

__all__ = ["CommitContract"]

SECOND = 1_000_000


class CommitContract(ContractBase):
    """A batch is applied write by write, each wholly or not at all."""

    @pytest.fixture
    def direct(self, backend: Backend, clock: ManualClock) -> Direct:
        return Direct(backend, clock)

    async def test_head_round_trips(self, direct: Direct, clock: ManualClock) -> None:
        """C1: every field of a head comes back as given."""
        now = clock.now_us()
        head = new_head(
            "s-1",
            now,
            owner="ä'\"\\ 用户",
            ttl_us=7 * SECOND,
            deadline_us=now + 99 * SECOND,
            metadata=b'{"a":[1,null]}',
        )
        assert await direct.one(creation(head, units=0)) == Outcome(Status.COMMITTED, 0, 0, 1, 1)
        assert await direct.head("s-1") == head

    async def test_absent_head_fields_stay_absent(self, direct: Direct, clock: ManualClock) -> None:
        """C4: optional fields that were not given are None, not empty."""
        head = await direct.create("s")
        assert (head.owner, head.ttl_us, head.deadline_us) == (None, None, None)
        assert head.expires_us is None
        empty_owner = await direct.create("t", owner="")
        assert empty_owner.owner == ""

    async def test_create_with_everything_at_once(self, direct: Direct, clock: ManualClock) -> None:
        """P4: a creation may carry state, events and a close."""
        head = new_head("s", clock.now_us())
        write = creation(head, units=3, sets={"k": (b"1", 2)}, events=[new_event("a"), new_event("b")], close=True)
        assert await direct.one(write) == Outcome(Status.COMMITTED, 0, 0, 1, 1)
        after = await direct.head("s")
        assert (after.version, after.last_seq, after.status) == (3, 2, "closed")
        assert await direct.versions("s") == {"k": 2}
        assert texts(await direct.events(after)) == ["a", "b"]

    async def test_create_of_a_copy(self, direct: Direct, clock: ManualClock) -> None:
        """C10: a copied session keeps its place in the log, and its keys' versions."""
        head = new_head("s", clock.now_us(), version=-3, first_seq=41, last_seq=40)
        write = creation(head, units=1, sets={"k": (b"1", 10)}, events=[new_event("a"), new_event("b")])
        assert await direct.one(write) == Outcome(Status.COMMITTED, -3, 40, 41, 41)
        after = await direct.head("s")
        assert (after.version, after.first_seq, after.last_seq) == (-2, 41, 42)
        assert await direct.versions("s") == {"k": 7}
        assert [event.seq for event in await direct.events(after)] == [41, 42]
        outcome = await direct.one(fenced(after, units=1, sets={"l": (b"2", -5)}))
        assert (outcome.status, outcome.base_version) == (Status.COMMITTED, -2)
        assert await direct.versions("s") == {"k": 7, "l": -7}

    async def test_an_incarnation_comes_again(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C25: what a copy left behind shares nothing with the copy that replaces it, once it is trimmed."""
        head = await direct.create("s")
        await direct.one(blind(head, sets={"k": (b"1", 1)}, events=[new_event("old")]))
        await direct.one(blind(head, delete=True))
        while await backend.trim([("s", head.incarnation)], TrimPolicy(), 100):
            pass
        assert (await direct.one(creation(head, units=1, events=[new_event("new")]))).status is Status.COMMITTED
        assert await direct.state("s") == {}
        assert texts(await direct.events(await direct.head("s"))) == ["new"]

    async def test_create_of_a_live_id_is_refused(self, direct: Direct, clock: ManualClock) -> None:
        """C2: EXISTS, and the row is as it was."""
        head = await direct.create("s", owner="first")
        outcome = await direct.one(creation(new_head("s", clock.now_us(), owner="second"), sets={"k": (b"1", 1)}))
        assert outcome.status is Status.EXISTS
        assert await direct.head("s") == head
        assert await direct.state("s") == {}

    async def test_create_over_an_expired_row_starts_afresh(self, direct: Direct, clock: ManualClock) -> None:
        """C25: an expired row makes way, with its state and events, reaped or not."""
        old = await direct.create("s", ttl_us=SECOND)
        await direct.one(blind(old, sets={"k": (b"1", 1)}, events=[new_event()]))
        await clock.advance(1)
        new = await direct.create("s")
        assert new.incarnation != old.incarnation
        assert (new.last_seq, new.first_seq) == (0, 1)
        assert await direct.state("s") == {}
        assert await direct.events(new) == []
        assert await direct.listed() == ["s"]

    @pytest.mark.parametrize("what", ["unknown", "other incarnation", "expired"])
    async def test_write_to_a_missing_session(self, direct: Direct, clock: ManualClock, what: str) -> None:
        """C23: MISSING, and nothing is left behind."""
        head = await direct.create("s", ttl_us=SECOND)
        wrong: dict[str, dict[str, Any]] = {
            "unknown": {"id": "nobody"},
            "other incarnation": {"incarnation": head.incarnation + 1},
            "expired": {"accepted_us": head.active_us + SECOND, "active_us": head.active_us + SECOND},
        }
        write = blind(head, sets={"k": (b"1", 1)}, events=[new_event()], **wrong[what])
        assert (await direct.one(write)).status is Status.MISSING
        assert not await direct.exists("nobody")
        assert await direct.head("s") == head
        assert await direct.state("s") == {}

    async def test_write_accepted_in_time_commits_late(self, direct: Direct, clock: ManualClock) -> None:
        """C38: what counts is when a write was accepted, not when it is flushed."""
        head = await direct.create("s", ttl_us=SECOND)
        await clock.advance(60)
        write = blind(head, accepted_us=head.active_us + SECOND - 1, active_us=clock.now_us())
        assert (await direct.one(write)).status is Status.COMMITTED
        assert (await direct.head("s")).active_us == clock.now_us()

    async def test_refused_writes_do_not_harm_their_batch(self, direct: Direct, clock: ManualClock) -> None:
        """C47: outcomes come in the writes' order, and each stands for itself."""
        closed = await direct.create("z-closed")
        await direct.one(blind(closed, close=True))
        live, raced = await direct.create("m-live"), await direct.create("a-raced")
        await direct.one(blind(raced))
        outcomes = await direct.commit(
            blind(closed, events=[new_event()]),
            blind(live, events=[new_event("kept")]),
            fenced(raced, sets={"k": (b"1", 1)}),
            creation(new_head("b-new", clock.now_us())),
            blind(new_head("nobody", clock.now_us())),
        )
        assert [outcome.status for outcome in outcomes] == [
            Status.CLOSED, Status.COMMITTED, Status.CONFLICT, Status.COMMITTED, Status.MISSING,
        ]  # fmt: skip
        assert texts(await direct.events(live)) == ["kept"]
        assert await direct.state("a-raced") == {}
        assert await direct.exists("b-new")

    async def test_blind_write_with_a_stale_hint_is_numbered_from_the_row(self, direct: Direct) -> None:
        """C24: hints may be old; the numbers come from the row."""
        head = await direct.create("s")
        current = await direct.append(head, "a", "b")
        outcome = await direct.one(blind(head, units=2, sets={"k": (b"1", 2)}, events=[new_event("c")]))
        assert outcome == Outcome(Status.COMMITTED, current.version, 2, 1, 1)
        after = await direct.head("s")
        assert (after.version, after.last_seq) == (current.version + 2, 3)
        assert await direct.versions("s") == {"k": current.version + 2}
        assert [(event.seq, event.data) for event in await direct.events(after)] == [(1, "a"), (2, "b"), (3, "c")]

    async def test_hint_ahead_of_the_row_is_only_a_hint(self, direct: Direct) -> None:
        """C20: a wrong hint makes no gap."""
        head = await direct.create("s")
        await direct.one(blind(head, version=head.version + 7, base_seq=9, events=[new_event("a")]))
        assert [event.seq for event in await direct.events(head)] == [1]

    async def test_fenced_write_needs_the_version(self, direct: Direct) -> None:
        """C17: CONFLICT at another version; nothing is applied."""
        head = await direct.create("s")
        assert (await direct.one(fenced(head, sets={"k": (b"1", 1)}))).status is Status.COMMITTED
        current = await direct.head("s")
        assert (await direct.one(fenced(head, sets={"k": (b"2", 1)}, events=[new_event()]))).status is Status.CONFLICT
        assert await direct.head("s") == current
        assert await direct.state("s") == {"k": b"1"}

    async def test_state_is_cleared_removed_and_set(self, direct: Direct) -> None:
        """C12: ``cleared`` goes before ``sets``; removing an absent key is nothing."""
        head = await direct.create("s")
        await direct.one(blind(head, sets={"a": (b"1", 1), "b": (b"2", 1), "c": (b"3", 1)}))
        await direct.one(blind(head, removes={"a", "zz"}, sets={"b": (b"22", 1)}))
        assert await direct.state("s") == {"b": b"22", "c": b"3"}
        await direct.one(blind(head, cleared=True, sets={"d": (b"4", 1)}))
        assert await direct.state("s") == {"d": b"4"}

    async def test_key_versions_are_those_of_their_unit(self, direct: Direct) -> None:
        """C17: a key's version is the session version that its unit made."""
        head = await direct.create("s")
        await direct.one(blind(head, units=3, sets={"a": (b"1", 1), "b": (b"2", 3)}))
        base = head.version
        assert await direct.versions("s") == {"a": base + 1, "b": base + 3}
        await direct.one(blind(head, units=1, sets={"a": (b"1", 1)}))
        assert await direct.versions("s") == {"a": base + 4, "b": base + 3}

    async def test_closed_session_takes_only_upkeep(self, direct: Direct, clock: ManualClock) -> None:
        """C7, C23: CLOSED for changes; touch, ``floor_seq`` and delete pass."""
        head = await direct.append(await direct.create("s"), "a", "b")
        assert (await direct.one(blind(head, close=True))).status is Status.COMMITTED
        closed = await direct.head("s")
        assert closed.status == "closed"
        changes: list[dict[str, Any]] = [
            {"events": [new_event()]}, {"sets": {"k": (b"1", 1)}}, {"removes": {"k"}},
            {"metadata": b"{}"}, {"cleared": True}, {"close": True},
        ]  # fmt: skip
        for change in changes:
            assert (await direct.one(blind(closed, **change))).status is Status.CLOSED, change
        assert await direct.head("s") == closed
        touch = blind(closed, units=0, active_us=closed.active_us + 5)
        assert (await direct.one(touch)).status is Status.COMMITTED
        assert (await direct.one(blind(closed, floor_seq=2))).status is Status.COMMITTED
        assert texts(await direct.events(closed)) == ["b"]
        assert (await direct.one(blind(closed, delete=True))).status is Status.COMMITTED
        assert not await direct.exists("s")

    async def test_delete_removes_state_and_events(self, direct: Direct) -> None:
        """C5: after a delete nothing of the session can be read, not by the next one of its id either."""
        head = await direct.append(await direct.create("s"), "a")
        await direct.one(blind(head, sets={"k": (b"1", 1)}))
        assert (await direct.one(blind(head, delete=True))).status is Status.COMMITTED
        assert not await direct.exists("s")
        assert await direct.listed() == []
        assert (await direct.one(blind(head, delete=True))).status is Status.MISSING
        again = await direct.create("s")
        assert await direct.state("s") == {}
        assert await direct.events(again) == []
        assert (await direct.one(blind(head, events=[new_event("late")]))).status is Status.MISSING
        assert await direct.events(again) == []

    async def test_touch_changes_nothing_else(self, direct: Direct) -> None:
        """C37: a write without units raises ``active_us``, never lowers it, and makes no version."""
        head = await direct.create("s")
        await direct.one(blind(head, units=0, active_us=head.active_us + 500))
        await direct.one(blind(head, units=0, active_us=head.active_us + 300))
        after = await direct.head("s")
        assert (after.active_us, after.version) == (head.active_us + 500, head.version)

    async def test_metadata_is_replaced(self, direct: Direct) -> None:
        """C1: byte for byte; left alone by writes without it."""
        head = await direct.create("s", metadata=b'{"a":1}')
        await direct.one(blind(head, sets={"k": (b"1", 1)}))
        assert (await direct.head("s")).metadata == b'{"a":1}'
        await direct.one(blind(head, metadata=b'{"b":2}'))
        assert (await direct.head("s")).metadata == b'{"b":2}'

    async def test_cap_raises_first_seq(self, direct: Direct) -> None:
        """C26: the newest N stay, and an append never fails for the cap."""
        head = await direct.create("s")
        await direct.append(head, *"abc", max_events=3)
        outcome = await direct.one(blind(head, events=[new_event("d"), new_event("e")]), max_events=3)
        assert (outcome.base_first_seq, outcome.first_seq) == (1, 3)
        assert texts(await direct.events(head)) == ["c", "d", "e"]
        await direct.append(head, *"0123456789", max_events=3)
        assert [event.seq for event in await direct.events(head)] == [13, 14, 15]

    async def test_floor_is_clamped_and_never_lowered(self, direct: Direct) -> None:
        """C34: ``first_seq`` becomes at least ``min(floor_seq, last_seq + 1)``."""
        head = await direct.append(await direct.create("s"), *"abcd")
        outcome = await direct.one(blind(head, floor_seq=3))
        assert (outcome.base_first_seq, outcome.first_seq) == (1, 3)
        assert (await direct.one(blind(head, floor_seq=2))).first_seq == 3
        assert (await direct.one(blind(head, floor_seq=99))).first_seq == 5
        assert await direct.events(head) == []
        after = await direct.append(head, "e")
        assert (after.first_seq, after.last_seq) == (5, 5)

    async def test_marker_gives_the_outcomes_back(self, direct: Direct, backend: Backend) -> None:
        """C43: a flush that committed can be asked for, refusals included; others are unknown."""
        head = await direct.create("s")
        outcomes = await direct.commit(blind(head, events=[new_event()]), blind(new_head("nobody", 0)))
        marker = direct.last_marker
        assert await backend.resolve(marker) == outcomes
        assert await backend.resolve(marker._replace(flush=marker.flush + 1)) is None
        assert await backend.resolve(marker._replace(lane=marker.lane + 1)) is None
        assert await backend.resolve(marker._replace(writer="somebody else")) is None

    async def test_marker_survives_restart(
        self, direct: Direct, backend: Backend, make_backend: MakeBackend, clock: ManualClock
    ) -> None:
        """C43: also when the process that asks is not the one that committed."""
        outcomes = await direct.commit(creation(new_head("s", clock.now_us())))
        await backend.close()
        again = make_backend()
        await again.open()
        try:
            assert await again.resolve(direct.last_marker) == outcomes
        finally:
            await again.close()

    async def test_markers_are_forgotten(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C43: by writer, and by age; nobody else's."""
        other = Direct(backend, clock, "other")
        for lane in (direct, other):
            await lane.commit()
        await clock.advance(10)
        young = Direct(backend, clock, "young")
        await young.commit()
        await backend.forget_markers(direct.last_marker.writer, 0)
        assert await backend.resolve(direct.last_marker) is None
        assert await backend.resolve(other.last_marker) == []
        await backend.forget_markers(None, clock.now_us())
        assert await backend.resolve(other.last_marker) is None
        assert await backend.resolve(young.last_marker) == []

    async def test_large_batch(self, direct: Direct, backend: Backend, clock: ManualClock) -> None:
        """C15: as many sessions in a commit as the engine may send."""
        count = min(1_000, backend.capabilities.max_batch_sessions or 1_000)
        heads = [new_head(f"s{number:04}", clock.now_us()) for number in range(count)]
        created = await direct.commit(*(creation(head, sets={"k": (b"1", 1)}) for head in heads))
        appended = await direct.commit(*(blind(head, events=[new_event(head.id)]) for head in heads))
        assert {outcome.status for outcome in created + appended} == {Status.COMMITTED}
        snapshots = await backend.load([LoadRequest(head.id) for head in heads])
        assert [snapshot and snapshot.head.id for snapshot in snapshots] == [head.id for head in heads]
        assert texts(await direct.events(heads[-1])) == [heads[-1].id]

    async def test_every_durability_that_is_promised(self, direct: Direct, backend: Backend) -> None:
        """P1: each level up to the backend's own can be asked for."""
        head = await direct.create("s")
        levels = [level for level in Durability if backend.capabilities.durability.covers(level)]
        for level in levels:
            await direct.commit(blind(head, events=[new_event(level.value)]), durability=level)
        assert texts(await direct.events(head)) == [level.value for level in levels]

    async def test_two_instances_number_one_log(
        self, direct: Direct, backend: Backend, other: Backend, clock: ManualClock
    ) -> None:
        """C24: commits of two instances at once: no loss, no duplicate, no gap."""
        head = await direct.create("s")

        async def append(instance: Direct, name: str) -> None:
            for number in range(25):
                outcome = await instance.one(blind(head, events=[new_event(f"{name}{number}")]))
                assert outcome.status is Status.COMMITTED

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, direct, "a")
            tasks.start_soon(append, Direct(other, clock, "second"), "b")
        events = await direct.events(head)
        assert [event.seq for event in events] == list(range(1, 51))
        assert [text for text in texts(events) if text[0] == "a"] == [f"a{number}" for number in range(25)]
        assert [text for text in texts(events) if text[0] == "b"] == [f"b{number}" for number in range(25)]

    async def test_cancelled_commit_is_whole_or_nothing(self, direct: Direct, clock: ManualClock) -> None:
        """C49: wherever the cancellation strikes, the write is there with all its parts, or not at all."""
        head = await direct.create("s")
        for number in range(20):
            async with anyio.create_task_group() as tasks:
                write = blind(head, sets={f"k{number}": (b"1", 1)}, events=[new_event(f"k{number}")])
                tasks.start_soon(direct.one, write)
                for _ in range(number % 7):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        await direct.one(blind(head, sets={"last": (b"1", 1)}, events=[new_event("last")]))
        assert sorted(await direct.state("s")) == sorted(texts(await direct.events(head)))
        after = await direct.head("s")
        assert [event.seq for event in await direct.events(head)] == list(range(1, after.last_seq + 1))
