"""CONFORMANCE 11-19: state."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypedDict

import anyio
import msgspec
import pytest

from holdfast.errors import Conflict, InvalidInput, NotJSON, StateTypeError
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.contract.stores import OpenStore, StoreBase

__all__ = ["StateContract"]


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Cart(msgspec.Struct):
    items: list[str]


class Prefs(TypedDict):
    dark: bool


JSON_VALUES: list[Any] = [
    None, True, False, 0, -1, 2**53 + 1, 2**64, -(10**40), 1.5, 1e-300, -0.0, "", "a\x00b", "\u2028\ud7ff🦊", [], {},
    [[[[[]]]]], {"": {"": [None]}}, {"null": None, "a\x00": 1, "ключ": "значение"}, "x" * 10_000,
]  # fmt: skip

_cycle: list[Any] = []
_cycle.append(_cycle)
NOT_JSON: dict[str, Any] = {
    "NaN": math.nan,
    "infinity": math.inf,
    "nested NaN": {"a": [1, {"b": -math.inf}]},
    "integer key": {"a": {1: 2}},
    "None key": {None: 1},
    "set": {1, 2},
    "bytes": b"x",
    "object": object(),
    "complex": [1j],
    "cycle": _cycle,
    "lone surrogate": "\ud800",
    "function": len,
}


class StateContract(StoreBase):
    """State is per key, exact, atomic, and the same for every instance."""

    async def test_set_get_remove(self, store: Supervisor, second: Supervisor) -> None:
        """C11: remove returns the old value, once."""
        session = await store.create("s")
        other = await second.require("s")
        await session.set("k", {"a": 1})
        assert await other.get("k") == {"a": 1}
        await other.set("k", 2)
        assert await session.get("k") == 2
        assert await session.remove("k") == 2
        assert await other.remove("k") is None
        assert await other.remove("k", "nothing") == "nothing"
        assert await session.get("k") is None

    async def test_racing_removers_have_one_winner(self, store: Supervisor, second: Supervisor) -> None:
        """C11: over two instances, exactly one gets the value."""
        session = await store.create("s")
        other = await second.require("s")
        got = list[str]()

        async def remove(handle: Session, key: str) -> None:
            value = await handle.remove(key)
            if value is not None:
                got.append(value)

        keys = [f"k{number}" for number in range(25)]
        await session.set_many({key: f"value of {key}" for key in keys})
        async with anyio.create_task_group() as tasks:
            for key in keys:
                for handle in (session, other, session, other):
                    tasks.start_soon(remove, handle, key)
        assert sorted(got) == sorted(f"value of {key}" for key in keys)

    async def test_defaults_keys_clear(self, store: Supervisor, second: Supervisor) -> None:
        """C12: a missing key gives the default; clear tells how many it removed."""
        session = await store.create("s")
        assert await session.get("nothing") is None
        assert await session.get("nothing", 7) == 7
        assert await session.keys() == []
        await session.set_many({"a": 1, "b": 2, "c": None})
        other = await second.require("s")
        assert sorted(await other.keys()) == ["a", "b", "c"]
        assert await other.get_many(["a", "c", "zz"]) == {"a": 1, "c": None}
        assert await other.state() == {"a": 1, "b": 2, "c": None}
        assert await other.clear() == 3
        assert await session.state() == {}
        assert await session.clear() == 0

    async def test_unit_is_atomic(self, store: Supervisor, second: Supervisor) -> None:
        """C12, P4: sets, removals and events of a unit appear together, on every instance."""
        session = await store.create("s")
        other = await second.require("s")
        done = anyio.Event()

        async def write() -> None:
            for number in range(1, 40):
                async with session.unit() as unit:
                    unit.set("a", number)
                    unit.set("b", -number)
                    unit.remove(f"old{number - 1}")
                    unit.set(f"old{number}", 1)
                    unit.append(number)
                assert [event.seq for event in unit.events] == [number]
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while not done.is_set():
                state = await other.state()
                if state:
                    assert state == {"a": state["a"], "b": -state["a"], f"old{state['a']}": 1}
                    assert len(await other.events()) >= state["a"]
                await anyio.lowlevel.checkpoint()

    async def test_unit_left_by_an_error_does_nothing(self, store: Supervisor) -> None:
        """P4: only a unit that ends is committed."""
        session = await store.create()
        with pytest.raises(ZeroDivisionError):
            async with session.unit() as unit:
                unit.set("k", 1)
                unit.append("x")
                raise ZeroDivisionError
        assert await session.state() == {}
        assert await session.events() == []
        async with session.unit():
            pass
        assert (await session.info()).last_seq == 0

    async def test_unit_may_close(self, store: Supervisor) -> None:
        """P4: state, events, metadata and close at once."""
        session = await store.create()
        async with session.unit() as unit:
            unit.set("k", 1)
            unit.append("bye")
            unit.set_metadata({"why": "done"})
            unit.close()
        info = await session.info()
        assert (info.status, info.last_seq, info.metadata) == ("closed", 1, {"why": "done"})
        assert await session.get("k") == 1

    @pytest.mark.parametrize("number", range(len(JSON_VALUES)))
    async def test_values_come_back_equal(self, store: Supervisor, second: Supervisor, number: int) -> None:
        """C13: of the same type too, from both instances."""
        value = JSON_VALUES[number]
        session = await store.create("s")
        await session.set("k", value)
        for handle in (session, await second.require("s")):
            found = await handle.get("k", "absent")
            assert found == value
            assert type(found) is type(value)
            assert repr(found) == repr(value)

    async def test_null_is_not_absent(self, store: Supervisor) -> None:
        """C13: None is a value."""
        session = await store.create()
        await session.set("k", None)
        assert await session.get("k", "default") is None
        assert await session.keys() == ["k"]
        assert (await session.get_versioned("k"))[1] > 0
        assert await session.remove("k", "default") is None
        assert await session.get("k", "default") == "default"

    async def test_any_unicode_key(self, store: Supervisor, second: Supervisor) -> None:
        """C13: NUL too; keys are compared exactly."""
        keys = [" ", "a", "A", "a\x00", "a\x00b", "é", "e\u0301", "'; --", "%", "🦊", "\u2028", "x" * 1_024]
        session = await store.create("s")
        await session.set_many({key: number for number, key in enumerate(keys)})
        other = await second.require("s")
        assert await other.state() == {key: number for number, key in enumerate(keys)}
        assert sorted(await other.keys()) == sorted(keys)

    async def test_values_do_not_alias(self, store: Supervisor) -> None:
        """C13: what a caller does to its object later changes nothing."""
        session = await store.create()
        value = {"a": [1]}
        await session.set("k", value)
        value["a"].append(2)
        (await session.get("k"))["a"].append(3)
        assert await session.get("k") == {"a": [1]}

    @pytest.mark.parametrize("what", NOT_JSON)
    async def test_what_is_not_json_is_refused(self, store: Supervisor, what: str) -> None:
        """C14: by every call that takes a value, before anything is written, naming the place."""
        session = await store.create()
        bad = NOT_JSON[what]
        with pytest.raises(NotJSON, match="k"):
            await session.set("k", bad)
        with pytest.raises(NotJSON):
            await session.set_many({"good": 1, "k": bad})
        with pytest.raises(NotJSON):
            await session.append(bad)
        with pytest.raises(NotJSON):
            await session.append_many(["good", bad])
        with pytest.raises(NotJSON):
            await session.update("k", lambda _: bad)
        with pytest.raises(NotJSON):
            await session.compare_and_set("k", bad, version=0)
        with pytest.raises(NotJSON):
            async with session.unit() as unit:
                unit.set("good", 1)
                unit.append("good")
                unit.set("k", bad)
        assert await session.state() == {}
        assert await session.events() == []

    @pytest.mark.parametrize("bad", [1, None, b"k", "\ud800", ("k",), ""])
    async def test_unusable_keys_are_refused(self, store: Supervisor, bad: Any) -> None:
        """C14: a key is a string that UTF-8 can carry, not empty."""
        session = await store.create()
        with pytest.raises((InvalidInput, TypeError)):
            await session.set(bad, 1)
        with pytest.raises((InvalidInput, TypeError)):
            await session.set_many({"good": 1, bad: 2})
        assert await session.state() == {}

    async def test_a_thousand_writers_on_two_instances(self, store: Supervisor, second: Supervisor) -> None:
        """C15: all survive."""
        session = await store.create("s")
        handles = (session, await second.require("s"))
        async with anyio.create_task_group() as tasks:
            for number in range(1_000):
                tasks.start_soon(handles[number % 2].set, f"k{number}", number)
        expected = {f"k{number}": number for number in range(1_000)}
        assert await handles[0].state() == expected
        assert await handles[1].state() == expected

    async def test_a_thousand_increments_on_two_instances(self, store: Supervisor, second: Supervisor) -> None:
        """C16: exact."""
        session = await store.create("s")
        handles = (session, await second.require("s"))
        returned = list[int]()

        async def increment(handle: Session) -> None:
            returned.append(await handle.update("n", lambda value: value + 1, default=0))

        async with anyio.create_task_group() as tasks:
            for number in range(1_000):
                tasks.start_soon(increment, handles[number % 2])
        assert await handles[0].get("n") == await handles[1].get("n") == 1_000
        assert sorted(returned) == list(range(1, 1_001))

    async def test_update_that_fails_changes_nothing(self, store: Supervisor) -> None:
        """P11: the caller's own error comes back to it alone."""
        session = await store.create()
        await session.set("n", 1)

        def fail(value: int) -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await session.update("n", fail)
        assert await session.update("n", lambda value: value + 1) == 2
        assert await session.update("new", lambda value: value) is None

    async def test_update_does_not_alias(self, store: Supervisor) -> None:
        """P11: a function that spoils its argument and then fails has spoilt nothing."""
        session = await store.create()
        await session.set("list", [1])

        def spoil(value: list[int]) -> list[int]:
            value.append(2)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await session.update("list", spoil)
        assert await session.get("list") == [1]

    async def test_compare_and_set(self, store: Supervisor, second: Supervisor) -> None:
        """C17: with the version read; a stale one gives `Conflict` with both versions."""
        session = await store.create("s")
        other = await second.require("s")
        assert await session.get_versioned("k") == (None, 0)
        first = await session.compare_and_set("k", "a", version=0)
        assert await other.get_versioned("k") == ("a", first)
        newer = await other.compare_and_set("k", "b", version=first)
        assert newer > first
        with pytest.raises(Conflict) as caught:
            await session.compare_and_set("k", "c", version=first)
        conflict = caught.value
        assert (conflict.session_id, conflict.key) == ("s", "k")
        assert (conflict.expected, conflict.actual) == (first, newer)
        with pytest.raises(Conflict):
            await other.compare_and_set("k", "c", version=0)
        assert await session.get_versioned("k") == ("b", newer)

    async def test_compare_and_set_minds_its_own_key(self, store: Supervisor) -> None:
        """C17: writes of other keys do not disturb; a set and a removal do."""
        session = await store.create()
        version = await session.compare_and_set("k", 1, version=0)
        await session.set("other", 1)
        await session.append("x")
        version = await session.compare_and_set("k", 2, version=version)
        await session.set("k", 2)
        with pytest.raises(Conflict):
            await session.compare_and_set("k", 3, version=version)
        await session.remove("k")
        with pytest.raises(Conflict) as caught:
            await session.compare_and_set("k", 3, version=version)
        assert caught.value.actual == 0
        assert await session.compare_and_set("k", 3, version=0) > version

    async def test_versions_of_one_flush(self, store: Supervisor, second: Supervisor, open_store: OpenStore) -> None:
        """C17: writes that are committed together have versions of their own, the same for everybody."""
        session = await store.create("s")
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(session.set, f"k{number}", number)
        versions = {key: (await session.get_versioned(key))[1] for key in await session.keys()}
        assert len(set(versions.values())) == 30
        other = await second.require("s")
        assert {key: (await other.get_versioned(key))[1] for key in versions} == versions
        await store.close()
        if second is not store:
            await second.close()
        async with open_store() as again:
            session = await again.require("s")
            for key, version in versions.items():
                await session.compare_and_set(key, "new", version=version)

    async def test_racing_compare_and_set_has_one_winner(self, store: Supervisor, second: Supervisor) -> None:
        """C17: from one version, one of many."""
        session = await store.create("s")
        handles = (session, await second.require("s"))
        wins = list[int]()

        async def compete(number: int) -> None:
            try:
                await handles[number % 2].compare_and_set("k", number, version=0)
            except Conflict:
                return
            wins.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(compete, number)
        assert len(wins) == 1
        assert await session.get("k") == wins[0]

    async def test_whole_session_writes_do_not_undo_state_writes(self, store: Supervisor, second: Supervisor) -> None:
        """C18: metadata, touches and a close racing state writes lose neither."""
        session = await store.create("s")
        other = await second.require("s")

        async def write_state() -> None:
            for number in range(50):
                await session.set(f"k{number}", number)

        async def write_metadata() -> None:
            for number in range(50):
                await other.set_metadata({"n": number})
                await other.touch()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_state)
            tasks.start_soon(write_metadata)
        assert await other.state() == {f"k{number}": number for number in range(50)}
        await other.close()
        await session.touch()
        for handle in (session, other):
            info = await handle.info()
            assert (info.status, info.metadata) == ("closed", {"n": 49})

    async def test_typed_state(self, store: Supervisor, open_store: OpenStore) -> None:
        """C19: dataclass, msgspec struct, TypedDict; what comes back is an instance."""
        session = await store.create("s")
        await session.set("point", Point(1, 2))
        await session.set("cart", Cart(items=["a"]))
        await session.set("prefs", Prefs(dark=True))
        assert await session.get("point", type=Point) == Point(1, 2)
        assert await session.get("cart", type=Cart) == Cart(items=["a"])
        assert await session.get("prefs", type=Prefs) == {"dark": True}
        assert await session.get("point") == {"x": 1, "y": 2}
        assert await session.get("nothing", type=Point) is None
        assert await session.get("nothing", Point(0), type=Point) == Point(0)
        moved = await session.update("point", lambda point: Point(point.x + 1, point.y), type=Point)
        assert moved == Point(2, 2)

    async def test_typed_state_pydantic(self, store: Supervisor) -> None:
        """C19: pydantic models, where pydantic is installed."""
        pydantic = pytest.importorskip("pydantic")
        model = pydantic.create_model("User", name=(str, ...), age=(int, 0))
        session = await store.create()
        await session.set("user", model(name="Ann"))
        assert await session.get("user", type=model) == model(name="Ann")
        await session.set("user", {"age": "old"})
        with pytest.raises(StateTypeError, match="user"):
            await session.get("user", type=model)

    async def test_wrong_shape_names_the_key(self, store: Supervisor) -> None:
        """C19: a clear error; the value is untouched."""
        session = await store.create()
        await session.set("point", {"x": "one"})
        with pytest.raises(StateTypeError) as caught:
            await session.get("point", type=Point)
        assert caught.value.key == "point"
        assert "Point" in str(caught.value)
        with pytest.raises(StateTypeError):
            await session.update("point", lambda point: point, type=Point)
        assert await session.get("point") == {"x": "one"}

    async def test_cached_reads_are_committed_values(self, store: Supervisor) -> None:
        """P2, P6: a cached read may be old, never uncommitted."""
        session = await store.create()
        await session.set("k", 1)
        assert await session.get("k", cached=True) == 1
        assert await session.get("zz", 5, cached=True) == 5

    async def test_own_writes_are_read_at_once(self, store: Supervisor, second: Supervisor) -> None:
        """P6: reads see every write acknowledged anywhere before."""
        session = await store.create("s")
        handles = (session, await second.require("s"))
        for number in range(60):
            await handles[number % 2].set("n", number)
            assert await handles[(number + 1) % 2].get("n") == number
            assert await handles[number % 2].get("n") == number
