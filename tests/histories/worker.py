"""One process on a shared store: random operations of several tasks, all written down.

Run as ``python -m tests.histories.worker``; the driver kills some of these.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import structlog

from holdfast.actors.engine import Engine
from holdfast.actors.unit import Unit
from holdfast.errors import (
    ActorCrashed,
    Conflict,
    DeadlineExceeded,
    EventGap,
    HoldfastError,
    OutcomeUnknown,
)
from holdfast.model import LATEST, Event
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.waiting import Ack
from tests.crash.stores import open_store
from tests.histories.history import Recorder, seq_of
from tests.histories.variants import VARIANTS

KEYS = ("a", "b", "c")
COUNTERS = ("n", "m")
STREAMS = ("", "x")
TASKS = 5


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
        self, kind: str, arguments: dict[str, Any], run: Callable[..., Awaitable[Any]], *, shown: Callable[[Any], Any]
    ) -> Any:
        """Run one operation between two lines; some with a deadline, some cancelled. What it answered, or None."""
        recorder, rng, witness = self._recorder, self._rng, self._witness
        options = {"deadline_s": rng.choice([0.001, 0.01, 10.0])} if rng.random() < 0.05 else {}
        patience_s = rng.choice([0.0, 0.001, 0.005]) if rng.random() < 0.02 else float("inf")
        witness.unit = None
        number = recorder.called(self.session.id, kind, arguments)
        try:
            with anyio.move_on_after(patience_s):
                result = await run(**options)
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
            lambda **options: self.session.append(data, stream=stream, **options),
            shown=lambda event: [event.id],
        )
        if event is not None:
            self._ids.append(event.id)

    async def append_many(self) -> None:
        stream, data = self._rng.choice(STREAMS), [self.tag() for _ in range(self._rng.randrange(1, 4))]
        await self.call(
            "write",
            {"events": [[stream, item] for item in data]},
            lambda **options: self.session.append_many(data, stream=stream, **options),
            shown=_ids,
        )

    async def unit(self) -> None:
        """State and events that stand or fall together."""
        rng = self._rng
        keys = rng.sample(KEYS, 2)
        removes = keys[:1] if rng.random() < 0.3 else []
        sets = {key: self.tag() for key in keys[len(removes) :]}
        events = [[rng.choice(STREAMS), self.tag()] for _ in range(rng.randrange(3))]

        async def run(**options: Any) -> list[Event]:
            async with self.session.unit(**options) as unit:
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
            lambda **options: self.session.set(key, value, **options),
            shown=lambda _: [],
        )

    async def increment(self) -> None:
        key = self._rng.choice(COUNTERS)
        await self.call(
            "increment",
            {"key": key},
            lambda **options: self.session.update(key, lambda value: value + 1, 0, **options),
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
            lambda **options: self.session.compare_and_set(key, value, version=expected, **options),
            shown=_same,
        )

    async def remove(self) -> None:
        key = self._rng.choice(KEYS + COUNTERS[1:])
        await self.call("remove", {"key": key}, lambda **options: self.session.remove(key, **options), shown=_same)

    async def clear(self) -> None:
        await self.call("clear", {}, lambda **options: self.session.clear(**options), shown=_same)

    async def trim(self) -> None:
        """Far behind the end, mostly."""
        if len(self._ids) < 20:
            return
        event_id = self._ids.pop(self._rng.randrange(0, 15))
        await self.call(
            "trim",
            {"before": seq_of(event_id)},
            lambda **options: self.session.delete_events_before(event_id, **options),
            shown=_same,
        )

    # Reads

    async def get(self) -> None:
        key = self._rng.choice(KEYS + COUNTERS)
        await self.call("get", {"key": key}, lambda **options: self.session.get(key, **options), shown=_same)

    async def get_versioned(self, key: str | None = None) -> Any:
        key = key or self._rng.choice(KEYS + COUNTERS)
        return await self.call(
            "get_versioned",
            {"key": key},
            lambda **options: self.session.get_versioned(key, **options),
            shown=list,
        )

    async def state(self) -> None:
        await self.call("state", {}, lambda **options: self.session.state(**options), shown=_same)

    async def info(self) -> None:
        await self.call(
            "info",
            {},
            lambda **options: self.session.info(**options),
            shown=lambda info: [info.version, info.first_seq, info.last_seq],
        )

    async def events(self) -> None:
        rng = self._rng
        stream = rng.choice([None, None, *STREAMS])
        limit = rng.choice([None, None, 1, 7])
        after = rng.choice(self._ids[-10:]) if self._ids and rng.random() < 0.97 else None
        events = await self.call(
            "events",
            {"after": seq_of(after) if after else 0, "stream": stream, "limit": limit},
            lambda **options: self.session.events(after=after, stream=stream, limit=limit, **options),
            shown=_shown,
        )
        self._ids.extend(event.id for event in (events or ())[-2:])
        del self._ids[:-100]

    async def last_events(self) -> None:
        stream, count = self._rng.choice([None, *STREAMS]), self._rng.randrange(1, 6)
        await self.call(
            "last_events",
            {"limit": count, "stream": stream},
            lambda **options: self.session.last_events(count, stream=stream, **options),
            shown=_shown,
        )

    async def tail(self) -> None:
        """Subscribe for a while."""
        rng = self._rng
        after = rng.choice(self._ids[-10:]) if self._ids and rng.random() < 0.5 else None
        slow_s = rng.choice([0.0, 0.0, 0.01])
        async with self.subscription(after, rng.choice([None, *STREAMS])) as follow:
            with anyio.move_on_after(rng.random() * 0.5):
                for _ in range(rng.randrange(1, 40)):
                    await follow()
                    await anyio.sleep(slow_s)

    async def follow(self, until: Callable[[], bool], catch_up_s: float) -> None:
        """Subscribe to everything until the end, and see that all arrives then.

        Raises: TimeoutError.
        """
        async with self.subscription(None, None) as follow:
            seq = 0
            while not until():
                with anyio.move_on_after(0.1):
                    seq = await follow()
            with anyio.fail_after(catch_up_s):
                while seq < (await self.session.info()).last_seq:
                    seq = await follow()

    @asynccontextmanager
    async def subscription(self, after: str | None, stream: str | None) -> AsyncGenerator[Callable[[], Awaitable[int]]]:
        """Gives a function that waits for the next event; its seq."""
        number = self._recorder.called(
            self.session.id, "tail", {"after": seq_of(after) if after else None, "stream": stream}
        )
        try:
            async with self.session.subscribe(after=after or LATEST, stream=stream) as events:
                self._recorder.began(number)

                async def follow() -> int:
                    called_ns = time.monotonic_ns()
                    event = await anext(events)
                    self._recorder.saw(number, called_ns, [event.id, event.data])
                    return event.seq

                yield follow
        except EventGap as exc:
            self._failed(number, exc)
        else:
            self._recorder.returned(number, None)


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
    "trim": (Client.trim, 0.5),
    "get": (Client.get, 6),
    "get_versioned": (Client.get_versioned, 4),
    "state": (Client.state, 8),
    "info": (Client.info, 4),
    "events": (Client.events, 8),
    "last_events": (Client.last_events, 6),
    "tail": (Client.tail, 1),
}


def random_settings(rng: random.Random) -> dict[str, Any]:
    """Settings that make rare paths common."""
    return {
        "actors.idle_s": rng.choice([0.02, 0.2, 300.0]),
        "actors.ring_events": rng.choice([1, 8, 256]),
        "writer.max_session_units": rng.choice([1, 4, 1_000]),
    }


async def work(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    recorder = Recorder(options.file)

    def ended() -> bool:
        return time.monotonic_ns() >= options.until_ns

    async def operate(store: Supervisor, number: int) -> None:
        task_rng = random.Random(f"{options.seed} {number}")
        clients = [
            Client(await store.require(name), recorder, task_rng, f"{options.file.stem}.{number}.{name}")
            for name in options.sessions
        ]
        while not ended():
            await task_rng.choice(clients).step()
            if task_rng.random() < 0.2:
                await anyio.sleep(task_rng.random() * options.pause_s)

    async with open_store(options.url, variant=VARIANTS[options.variant], **random_settings(rng)) as store:
        follower = Client(await store.require(rng.choice(options.sessions)), recorder, rng, "follower")
        async with anyio.create_task_group() as tasks:
            for number in range(TASKS):
                tasks.start_soon(operate, store, number)
            tasks.start_soon(follower.follow, ended, options.catch_up_s)
    recorder.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    parser.add_argument("sessions", nargs="+")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--until-ns", type=int, required=True)
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--variant", default="sound")
    parser.add_argument("--pause-s", type=float, default=0.01)
    parser.add_argument("--catch-up-s", type=float, default=20.0)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    backend, backend_options = (
        ("trio", {}) if options.loop == "trio" else ("asyncio", {"use_uvloop": options.loop == "uvloop"})
    )
    anyio.run(work, options, backend=backend, backend_options=backend_options)


if __name__ == "__main__":
    main()
