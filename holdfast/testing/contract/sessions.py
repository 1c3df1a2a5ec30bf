"""CONFORMANCE 1-10: sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from holdfast.errors import HoldfastError, InvalidInput, SessionClosed, SessionExists, SessionNotFound
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.stores import OpenStore, StoreBase

__all__ = ["SessionContract"]

Call = Callable[[Session], Awaitable[Any]]


async def _unit(session: Session) -> None:
    async with session.unit() as unit:
        unit.set("k", 1)
        unit.append("x")


async def _replay(session: Session) -> None:
    async for _ in session.replay():
        pass


async def _subscribe(session: Session) -> None:
    async with session.subscribe() as events:
        async for _ in events:
            pass


READS: dict[str, Call] = {
    "info": lambda session: session.info(),
    "get": lambda session: session.get("k"),
    "get_many": lambda session: session.get_many(["k"]),
    "state": lambda session: session.state(),
    "get_versioned": lambda session: session.get_versioned("k"),
    "keys": lambda session: session.keys(),
    "events": lambda session: session.events(),
    "last_events": lambda session: session.last_events(3),
    "replay": _replay,
}
WRITES: dict[str, Call] = {
    "set": lambda session: session.set("k", 1),
    "set_many": lambda session: session.set_many({"k": 1}),
    "remove": lambda session: session.remove("k"),
    "clear": lambda session: session.clear(),
    "update": lambda session: session.update("k", lambda value: value, default=0),
    "compare_and_set": lambda session: session.compare_and_set("k", 1, version=0),
    "append": lambda session: session.append("x"),
    "append_many": lambda session: session.append_many(["x", "y"]),
    "unit": _unit,
    "set_metadata": lambda session: session.set_metadata({"a": 1}),
}
UPKEEP: dict[str, Call] = {
    "touch": lambda session: session.touch(),
    "subscribe": _subscribe,
    "close": lambda session: session.close(),
}
EVERY_CALL = READS | WRITES | UPKEEP


class SessionContract(StoreBase):
    """Sessions are created, found, listed, closed and deleted alike on every store."""

    async def test_create_round_trips(self, store: Supervisor, second: Supervisor, clock: ManualClock) -> None:
        """C1: every field, read by the instance that created it and by another."""
        created_us = clock.now_us()
        session = await store.create(
            "mine", owner="alice", ttl_s=90.5, lifetime_s=1_000, metadata={"client": "ü", "n": [1, None]}
        )
        for instance in (store, second):
            info = await (await instance.require("mine")).info()
            assert (info.id, info.incarnation, info.owner, info.status) == (
                "mine",
                session.incarnation,
                "alice",
                "active",
            )
            assert (info.created_us, info.ttl_s) == (created_us, 90.5)
            assert info.expires_us == created_us + 90_500_000
            assert info.metadata == {"client": "ü", "n": [1, None]}
            assert (info.first_seq, info.last_seq) == (1, 0)

    async def test_ids_are_unique_and_time_ordered(self, store: Supervisor, clock: ManualClock) -> None:
        """C1: new ids sort by creation; a caller's own id is kept."""
        ids = list[str]()
        for _ in range(50):
            ids.append((await store.create()).id)
            await clock.advance(0.001)
        assert len(set(ids)) == 50
        assert sorted(ids) == ids
        assert (await store.create("x" * 128)).id == "x" * 128

    @pytest.mark.parametrize("bad", ["", "x" * 129, "a b", "ä", "tab\t", "nul\x00", "line\n"])
    async def test_unusable_ids_are_refused(self, store: Supervisor, bad: str) -> None:
        """C54: 1 to 128 visible ASCII characters, and nothing is created otherwise."""
        with pytest.raises(InvalidInput):
            await store.create(bad)
        assert await store.count() == 0
        with pytest.raises(InvalidInput):
            await store.get(bad)

    async def test_existing_id_is_refused(self, store: Supervisor, second: Supervisor) -> None:
        """C2: by every instance, whoever owns it; the session is as it was."""
        session = await store.create("s", owner="alice")
        await session.set("k", 1)
        for instance in (store, second):
            with pytest.raises(SessionExists) as caught:
                await instance.create("s", owner="bob")
            assert caught.value.session_id == "s"
        assert await session.get("k") == 1
        assert (await session.info()).owner == "alice"

    async def test_racing_creates_have_one_winner(self, store: Supervisor, second: Supervisor) -> None:
        """C2: of many creates of one id, one wins."""
        wins, refusals = list[str](), list[str]()

        async def create(instance: Supervisor, owner: str) -> None:
            try:
                await instance.create("s", owner=owner)
            except SessionExists:
                refusals.append(owner)
            else:
                wins.append(owner)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(create, (store, second)[number % 2], f"o{number}")
        assert len(wins) == 1
        assert len(refusals) == 19
        assert (await (await store.require("s")).info()).owner == wins[0]

    async def test_unknown_id(self, store: Supervisor) -> None:
        """C3: None from get, False from delete, `SessionNotFound` from require."""
        assert await store.get("nobody") is None
        assert await store.delete("nobody") is False
        with pytest.raises(SessionNotFound) as caught:
            await store.require("nobody")
        assert caught.value.session_id == "nobody"

    @pytest.mark.parametrize("call", EVERY_CALL)
    @pytest.mark.parametrize("gone", ["deleted", "deleted elsewhere", "re-created"])
    async def test_every_call_on_a_gone_session(
        self, store: Supervisor, second: Supervisor, call: str, gone: str
    ) -> None:
        """C3: `SessionNotFound` from everything; a handle does not pass to the next session of its id."""
        session = await store.create("s")
        await session.set("k", 0)
        deleter = second if gone == "deleted elsewhere" else store
        assert await deleter.delete("s") is True
        if gone == "re-created":
            await store.create("s")
        with anyio.fail_after(10):
            with pytest.raises(SessionNotFound) as caught:
                await EVERY_CALL[call](session)
        assert caught.value.session_id == "s"
        assert await session.delete() is False

    async def test_absent_fields_stay_absent(self, store: Supervisor, open_store: OpenStore) -> None:
        """C4: None in, None out, also by an instance that has only the store to go by."""
        session = await store.create(owner=None, ttl_s=None, lifetime_s=None, metadata=None)
        await store.close()
        async with open_store() as again:
            info = await (await again.require(session.id)).info()
        assert (info.owner, info.ttl_s, info.expires_us, info.metadata) == (None, None, None, {})

    async def test_delete_takes_all_with_it(self, store: Supervisor, second: Supervisor) -> None:
        """C5: True, then False; the next session of the id starts empty."""
        session = await store.create("s")
        await session.set("k", 1)
        await session.append("old")
        other = await second.require("s")
        assert await other.get("k") == 1
        assert await session.delete() is True
        assert await session.delete() is False
        assert await store.delete("s") is False
        assert await second.get("s") is None
        again = await second.create("s")
        assert await again.state() == {}
        assert await again.events() == []
        assert await (await store.require("s")).events() == []

    async def test_list_is_complete_past_a_page(self, store: Supervisor, second: Supervisor) -> None:
        """C6: pages lead through all; count and scan agree with them."""

        async def create(number: int) -> None:
            await (store, second)[number % 2].create(f"s{number:03}", owner=f"o{number % 3}")

        async with anyio.create_task_group() as tasks:
            for number in range(230):
                tasks.start_soon(create, number)
        listed, after = list[str](), None
        while True:
            page = await store.list(limit=50, after=after)
            listed += [info.id for info in page.sessions]
            assert len(page.sessions) <= 50
            if page.next is None:
                break
            after = page.next
        assert sorted(listed) == [f"s{number:03}" for number in range(230)]
        assert [info.id async for info in second.scan()] == listed
        assert await store.count() == 230
        owned = [info.id async for info in store.scan(owner="o1")]
        assert sorted(owned) == [f"s{number:03}" for number in range(230) if number % 3 == 1]
        assert await store.count(owner="o1") == len(owned)

    async def test_list_is_stable_while_sessions_come_and_go(self, store: Supervisor) -> None:
        """C6: a session that stays is listed exactly once."""
        for number in range(60):
            await store.create(f"s{number:02}")
        seen = list[str]()
        async for info in store.scan():
            seen.append(info.id)
            if len(seen) <= 20:
                await store.delete(f"s{len(seen) * 2:02}")
                await store.create(f"new{len(seen)}")
        stayed = [f"s{number:02}" for number in range(60) if not (number % 2 == 0 and 2 <= number <= 40)]
        assert [name for name in seen if name in set(stayed)] == stayed

    async def test_list_by_status(self, store: Supervisor) -> None:
        """C6, C7: closed sessions are listed as such."""
        for name in "abc":
            await store.create(name)
        await (await store.require("b")).close()
        assert [info.id for info in (await store.list(status="closed")).sessions] == ["b"]
        assert [info.id for info in (await store.list(status="active")).sessions] == ["a", "c"]
        assert (await store.count(status="closed"), await store.count()) == (1, 3)

    async def test_closing_is_a_state_of_its_own(self, store: Supervisor) -> None:
        """C7: users' keys mean nothing to the engine."""
        session = await store.create()
        await session.set_many({"terminated": True, "status": "closed", "closed": 1, "_status": "closed"})
        assert (await session.info()).status == "active"
        await session.append("still open")
        assert await session.close() is True
        assert await session.close() is False
        assert (await session.info()).status == "closed"
        assert await session.get("terminated") is True

    @pytest.mark.parametrize("call", WRITES)
    async def test_closed_session_refuses_writes(self, store: Supervisor, second: Supervisor, call: str) -> None:
        """C7, C23: `SessionClosed` on every instance; nothing changes."""
        session = await store.create("s")
        await session.set("k", 0)
        stale = await second.require("s")
        assert await stale.get("k") == 0
        await session.close()
        for handle in (session, stale):
            with pytest.raises(SessionClosed) as caught:
                await WRITES[call](handle)
            assert caught.value.session_id == "s"
        assert await session.state() == {"k": 0}
        assert await stale.events() == []

    @pytest.mark.parametrize("call", READS)
    async def test_closed_session_can_be_read(self, store: Supervisor, call: str) -> None:
        """C7: everything but writes goes on."""
        session = await store.create("s")
        await session.append("x")
        await session.close()
        await READS[call](session)
        assert [event.data for event in await session.events()] == ["x"]
        assert await session.delete() is True

    async def test_write_racing_a_delete_never_resurrects(self, store: Supervisor, second: Supervisor) -> None:
        """C8: whatever the order, the session stays gone, and late writers are told."""
        for round_ in range(15):
            session = await store.create("s")
            other = await second.require("s")
            unexpected = list[HoldfastError]()

            async def write(handle: Session, errors: list[HoldfastError] = unexpected) -> None:
                try:
                    for number in range(5):
                        await handle.set(f"k{number}", number)
                        await handle.append(number)
                except SessionNotFound:
                    pass
                except HoldfastError as exc:
                    errors.append(exc)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, session)
                tasks.start_soon(write, other)
                for _ in range(round_):
                    await anyio.lowlevel.checkpoint()
                assert await (store, second)[round_ % 2].delete("s") is True
            assert unexpected == []
            assert await store.get("s") is None
            assert await second.get("s") is None
            assert await store.count() == 0

    async def test_owner_mismatch_answers_as_not_found(self, store: Supervisor, second: Supervisor) -> None:
        """C9: nothing tells a stranger that the session exists."""
        await store.create("s", owner="alice")
        await store.create("free")
        for instance in (store, second):
            assert await instance.get("s", owner="bob") is None
            assert await instance.get("free", owner="bob") is None
            with pytest.raises(SessionNotFound) as strange:
                await instance.require("s", owner="bob")
            with pytest.raises(SessionNotFound) as unknown:
                await instance.require("t", owner="bob")
            assert str(strange.value).replace("'s'", "") == str(unknown.value).replace("'t'", "")
            assert await instance.delete("s", owner="bob") is False
            assert await instance.get("s", owner="alice") is not None
            assert await instance.get("s") is not None
        assert await store.delete("s", owner="alice") is True

    async def test_owner_survives_restart(self, store: Supervisor, open_store: OpenStore) -> None:
        """C9: the store, not the process, knows the owner."""
        await store.create("s", owner="ali\x00ce ü")
        await store.close()
        async with open_store() as again:
            assert await again.get("s", owner="ali") is None
            assert await again.get("s", owner="ali\x00ce ü") is not None

    async def test_everything_survives_restart(
        self, store: Supervisor, open_store: OpenStore, clock: ManualClock
    ) -> None:
        """C10: head, state and events, byte for byte."""
        session = await store.create("s", owner="o", metadata={"m": "\x00"})
        await session.set_many({"a": {"x": [1.5, None, "\u2028"]}, "big": 10**40, " ": "a space"})
        await session.append({"n": 1}, type="t", stream="ü", retry_ms=5)
        await session.append_many(["a", "b"])
        await session.set_metadata({"m": 2})
        info, state, events = await session.info(), await session.state(), await session.events()
        await store.close()
        async with open_store() as again:
            found = await again.require("s")
            assert await found.state() == state
            assert await found.events() == events
            after = await found.info()
            assert (after.metadata, after.version, after.last_seq, after.owner) == ({"m": 2}, info.version, 3, "o")
            assert (after.created_us, after.incarnation) == (info.created_us, info.incarnation)

    async def test_metadata_is_replaced_and_limited(self, store: Supervisor, second: Supervisor) -> None:
        """C1: as a whole; others see it at once."""
        session = await store.create("s", metadata={"a": 1})
        await session.set_metadata({"b": {"c": 2}})
        assert (await (await second.require("s")).info()).metadata == {"b": {"c": 2}}
        with pytest.raises(InvalidInput):
            await session.set_metadata({"x": "y" * 20_000})
        with pytest.raises(InvalidInput):
            await store.create("t", metadata={"x": float("nan")})
        assert (await session.info()).metadata == {"b": {"c": 2}}
        assert await store.get("t") is None
