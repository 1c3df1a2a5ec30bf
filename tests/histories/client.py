"""What a worker does: random operations on one session, each written down before and after."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio

from holdfast.actors.engine import Engine
from holdfast.actors.unit import Unit
from holdfast.errors import (
    ActorCrashed,
    Conflict,
    DeadlineExceeded,
    EventGap,
    HoldfastError,
    OutcomeUnknown,
    SessionClosed,
    SessionNotFound,
    StoreError,
)
from holdfast.model import LATEST, Event, Latest
from holdfast.supervisor.session import Session
from holdfast.waiting import Ack
from tests.histories.history import Recorder, seq_of

__all__ = ["Client"]

KEYS = ("a", "b", "c")
COUNTERS = ("n", "m")
STREAMS = ("", "x")


Following = Callable[[], Awaitable[int | None]]
"""Waits for the next event; its seq, or None if there will be no more."""


class Witness:
    """An engine that notes the last unit that went through it: the unit knows which version it became.

    It stands between one task's handle and the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.unit: Unit | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def offer(self, session_id: str, incarnation: int, unit: Unit) -> Ack | None:
        self.unit = unit
        return self._engine.offer(session_id, incarnation, unit)

    async def submit(self, session_id: str, incarnation: int, unit: Unit, deadline_s: float | None) -> None:
        self.unit = unit
        await self._engine.submit(session_id, incarnation, unit, deadline_s)


class Client:
    """One task's handle on one session: it does one operation at a time, and writes it down."""

    def __init__(self, session: Session, recorder: Recorder, rng: random.Random, tag: str) -> None:
        self.session = session
        self._recorder = recorder
        self._rng = rng
        self._tag = tag
        self._tags = itertools.count(1)
        self._witness = Witness(session._engine)
        session._engine = cast("Engine", self._witness)
        self._doubtful: list[tuple[int, Unit]] = []
        self._ids: list[str] = []
        """Event ids that this task was shown."""

    def tag(self) -> str:
        """Unlike any other."""
        return f"{self._tag}.{next(self._tags)}"

    async def step(self) -> None:
        """One random operation."""
        self._settle()
        choice = self._rng.choices(list(_OPERATIONS), [weight for _, weight in _OPERATIONS.values()])[0]
        await _OPERATIONS[choice][0](self)

    def _settle(self) -> None:
        """Writes whose caller gave up, and that happened all the same."""
        for number, unit in self._doubtful:
            if unit.version:
                self._recorder.settled(number, unit.version)
        self._doubtful = [(number, unit) for number, unit in self._doubtful if not unit.version]

    async def call(
        self,
        kind: str,
        arguments: dict[str, Any],
        run: Callable[[float | None], Awaitable[Any]],
        *,
        shown: Callable[[Any], Any],
    ) -> Any:
        """Run one operation between two lines; some with a deadline, some cancelled. What it answered, or None."""
        recorder, rng, witness = self._recorder, self._rng, self._witness
        deadline_s = rng.choice([0.001, 0.01, 10.0]) if rng.random() < 0.05 else None
        patience_s = rng.choice([0.0, 0.001, 0.005]) if rng.random() < 0.02 else float("inf")
        witness.unit = None
        number = recorder.called(self.session.id, kind, arguments)
        try:
            with anyio.move_on_after(patience_s):
                result = await run(deadline_s)
                recorder.returned(number, shown(result), witness.unit.version if witness.unit is not None else 0)
                return result
            self._given_up(number, "cancelled", None)
        except HoldfastError as exc:
            self._failed(number, exc)
        return None

    def _failed(self, number: int, exc: HoldfastError) -> None:
        if isinstance(exc, OutcomeUnknown | ActorCrashed) or (
            isinstance(exc, DeadlineExceeded) and exc.stored == "unknown"
        ):
            self._given_up(number, type(exc).__name__, str(exc))
        else:
            detail = exc.actual if isinstance(exc, Conflict) else str(exc)
            self._recorder.failed(number, type(exc).__name__, "no", detail)

    def _given_up(self, number: int, error: str, detail: str | None) -> None:
        """A write that no flush had taken is withdrawn, and never happens; of another nobody knows yet."""
        unit = self._witness.unit
        if unit is None or not unit.taken:
            self._recorder.failed(number, error, "no", detail)
        else:
            self._recorder.failed(number, error, "unknown", detail)
            self._doubtful.append((number, unit))

    # Writes

    async def append(self) -> None:
        stream, data = self._rng.choice(STREAMS), self.tag()
        event = await self.call(
            "write",
            {"events": [[stream, data]]},
            lambda deadline_s: self.session.append(data, stream=stream, deadline_s=deadline_s),
            shown=lambda event: [event.id],
        )
        if event is not None:
            self._ids.append(event.id)

    async def append_many(self) -> None:
        stream, data = self._rng.choice(STREAMS), [self.tag() for _ in range(self._rng.randrange(1, 4))]
        await self.call(
            "write",
            {"events": [[stream, item] for item in data]},
            lambda deadline_s: self.session.append_many(data, stream=stream, deadline_s=deadline_s),
            shown=_ids,
        )

    async def unit(self) -> None:
        """State and events that stand or fall together."""
        rng = self._rng
        keys = rng.sample(KEYS, 2)
        removes = keys[:1] if rng.random() < 0.3 else []
        sets = {key: self.tag() for key in keys[len(removes) :]}
        events = [[rng.choice(STREAMS), self.tag()] for _ in range(rng.randrange(3))]

        async def run(deadline_s: float | None) -> list[Event]:
            async with self.session.unit(deadline_s=deadline_s) as unit:
                for key in removes:
                    unit.remove(key)
                for key, value in sets.items():
                    unit.set(key, value)
                for stream, data in events:
                    unit.append(data, stream=stream)
            return unit.events

        await self.call("write", {"removes": removes, "sets": sets, "events": events}, run, shown=_ids)

    async def set(self) -> None:
        key, value = self._rng.choice(KEYS), self.tag()
        await self.call(
            "write",
            {"sets": {key: value}},
            lambda deadline_s: self.session.set(key, value, deadline_s=deadline_s),
            shown=lambda _: [],
        )

    async def increment(self) -> None:
        key = self._rng.choice(COUNTERS)
        await self.call(
            "increment",
            {"key": key},
            lambda deadline_s: self.session.update(key, lambda value: value + 1, 0, deadline_s=deadline_s),
            shown=_same,
        )

    async def compare_and_set(self) -> None:
        """Of what was just read, mostly: others may have been faster."""
        key, value = self._rng.choice(KEYS), self.tag()
        found = await self.get_versioned(key)
        if found is None:
            return
        expected = found[1] if self._rng.random() < 0.95 else max(0, found[1] - 1)
        if self._rng.random() < 0.3:
            await anyio.sleep(self._rng.random() * 0.01)
        await self.call(
            "compare_and_set",
            {"key": key, "value": value, "expected": expected},
            lambda deadline_s: self.session.compare_and_set(key, value, version=expected, deadline_s=deadline_s),
            shown=_same,
        )

    async def remove(self) -> None:
        key = self._rng.choice(KEYS + COUNTERS[1:])
        await self.call(
            "remove", {"key": key}, lambda deadline_s: self.session.remove(key, deadline_s=deadline_s), shown=_same
        )

    async def clear(self) -> None:
        await self.call("clear", {}, lambda deadline_s: self.session.clear(deadline_s=deadline_s), shown=_same)

    async def trim(self) -> None:
        """Behind the end by some dozens of events, mostly: others have cursors on both sides of it."""
        if len(self._ids) < 20:
            return
        event_id = self._ids.pop(self._rng.randrange(15 if self._rng.random() < 0.7 else len(self._ids)))
        await self.call(
            "trim",
            {"before": seq_of(event_id)},
            lambda deadline_s: self.session.delete_events_before(event_id, deadline_s=deadline_s),
            shown=_same,
        )

    # Ends

    async def close(self) -> None:
        async def run(deadline_s: float | None) -> bool:
            if not await self.session.close(deadline_s=deadline_s):
                raise SessionClosed(self.session.id)
            return True

        await self.call("close", {}, run, shown=_same)

    async def delete(self) -> None:
        async def run(deadline_s: float | None) -> bool:
            if not await self.session.delete(deadline_s=deadline_s):
                raise SessionNotFound(self.session.id)
            return True

        await self.call("delete", {}, run, shown=_same)

    # Reads

    async def get(self) -> None:
        key = self._rng.choice(KEYS + COUNTERS)
        await self.call(
            "get", {"key": key}, lambda deadline_s: self.session.get(key, deadline_s=deadline_s), shown=_same
        )

    async def get_versioned(self, key: str | None = None) -> Any:
        key = key or self._rng.choice(KEYS + COUNTERS)
        return await self.call(
            "get_versioned",
            {"key": key},
            lambda deadline_s: self.session.get_versioned(key, deadline_s=deadline_s),
            shown=list,
        )

    async def state(self) -> None:
        await self.call("state", {}, lambda deadline_s: self.session.state(deadline_s=deadline_s), shown=_same)

    async def info(self) -> None:
        await self.call(
            "info",
            {},
            lambda deadline_s: self.session.info(deadline_s=deadline_s),
            shown=lambda info: [info.version, info.first_seq, info.last_seq],
        )

    async def events(self) -> None:
        rng = self._rng
        stream = rng.choice([None, None, *STREAMS])
        limit = rng.choice([None, None, 1, 7])
        after = self._cursor() if rng.random() < 0.97 else None
        events = await self.call(
            "events",
            {"after": seq_of(after) if after else 0, "stream": stream, "limit": limit},
            lambda deadline_s: self.session.events(after=after, stream=stream, limit=limit, deadline_s=deadline_s),
            shown=_shown,
        )
        self._ids.extend(event.id for event in (events or ())[-2:])
        del self._ids[:-100]

    def _cursor(self) -> str | None:
        """A recent one, mostly; an old one may be of an event that is gone."""
        recent = self._ids[-10:] if self._rng.random() < 0.8 else self._ids
        return self._rng.choice(recent) if recent else None

    async def last_events(self) -> None:
        stream, count = self._rng.choice([None, *STREAMS]), self._rng.randrange(1, 6)
        await self.call(
            "last_events",
            {"limit": count, "stream": stream},
            lambda deadline_s: self.session.last_events(count, stream=stream, deadline_s=deadline_s),
            shown=_shown,
        )

    async def tail(self) -> None:
        """Subscribe for a while."""
        rng = self._rng
        after = self._cursor() if rng.random() < 0.7 else LATEST
        slow_s = rng.choice([0.0, 0.0, 0.01])

        async def listen(following: Following) -> None:
            with anyio.move_on_after(rng.random() * 0.5):
                for _ in range(rng.randrange(1, 40)):
                    if await following() is None:
                        break
                    await anyio.sleep(slow_s)

        await self._subscribe(after, rng.choice([None, *STREAMS]), listen)

    async def follow(self, until: Callable[[], bool], catch_up_s: float) -> None:
        """Subscribe to everything from now until the end, and see that all arrives then.

        It may end before: with the session, with a gap (where the oldest events are dropped), or with the server.

        Raises: TimeoutError.
        """
        newest = await self.call(
            "last_events",
            {"limit": 1, "stream": None},
            lambda deadline_s: self.session.last_events(1, deadline_s=deadline_s),
            shown=_shown,
        )

        async def listen(following: Following) -> None:
            seq: int | None = newest[0].seq if newest else 0
            while not until() and seq is not None:
                with anyio.move_on_after(0.1):
                    seq = await following()
            with anyio.fail_after(catch_up_s):
                while seq is not None and seq < (await self.session.info()).last_seq:
                    seq = await following()

        await self._subscribe(newest[0].id if newest else None, None, listen)

    async def _subscribe(
        self, after: str | Latest | None, stream: str | None, listen: Callable[[Following], Awaitable[None]]
    ) -> None:
        """Write down what ``listen`` is shown."""
        position = seq_of(after) if isinstance(after, str) else None if after is LATEST else 0
        number = self._recorder.called(self.session.id, "tail", {"after": position, "stream": stream})
        over = False
        try:
            async with self.session.subscribe(after=after, stream=stream) as events:
                self._recorder.began(number)

                async def following() -> int | None:
                    nonlocal over
                    called_ns = time.monotonic_ns()
                    event = await anext(events, None)
                    over = event is None
                    if event is None:
                        return None
                    self._recorder.saw(number, called_ns, [event.id, event.data])
                    return event.seq

                await listen(following)
        except (EventGap, SessionNotFound, StoreError) as exc:
            self._failed(number, exc)
        else:
            self._recorder.returned(number, "ended" if over else None)


def _ids(events: list[Event]) -> list[str]:
    return [event.id for event in events]


def _shown(events: list[Event]) -> list[list[Any]]:
    return [[event.id, event.data] for event in events]


def _same(result: Any) -> Any:
    return result


_OPERATIONS: dict[str, tuple[Callable[[Client], Awaitable[Any]], float]] = {
    "append": (Client.append, 10),
    "append_many": (Client.append_many, 4),
    "unit": (Client.unit, 10),
    "set": (Client.set, 6),
    "increment": (Client.increment, 10),
    "compare_and_set": (Client.compare_and_set, 6),
    "remove": (Client.remove, 4),
    "clear": (Client.clear, 0.5),
    "trim": (Client.trim, 1),
    "get": (Client.get, 6),
    "get_versioned": (Client.get_versioned, 4),
    "state": (Client.state, 8),
    "info": (Client.info, 4),
    "events": (Client.events, 8),
    "last_events": (Client.last_events, 6),
    "tail": (Client.tail, 3),
}
