"""The watcher: what other instances commit reaches the subscribers here."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from heapq import heapify, heappop, heappush

import anyio

from holdfast.actors.actor import SessionActor
from holdfast.actors.engine import Engine
from holdfast.config import WatchConfig
from holdfast.errors import HoldfastError
from holdfast.supervisor.workers import Worker
from holdfast.waiting import Signal

__all__ = ["Watcher"]


class Watcher(Worker):
    """Learns of commits by other instances, for the sessions that somebody here listens to.

    By the backend's hints where it has them; by polling where these may fail to come, or there are none.
    """

    name = "watcher"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._changed: set[SessionActor] = set()
        self._hint = Signal(engine.new_ack)
        self._newcomer = Signal(engine.new_ack)

    async def run(self) -> None:
        """Watch while there is a subscriber; cost nothing while there is none."""
        registry, capabilities = self.engine.registry, self.engine.backend.capabilities
        while True:
            while not registry.subscribed:
                await registry.audience.wait()
            async with anyio.create_task_group() as tasks:
                if capabilities.watches:
                    tasks.start_soon(self.engine.backend.watch, self._on_hint)
                    tasks.start_soon(self._follow_hints)
                if not (capabilities.watches and capabilities.watch_is_complete):
                    tasks.start_soon(self._poll)
                while registry.subscribed:
                    await registry.audience.wait()
                    self._newcomer.set()
                tasks.cancel_scope.cancel()

    async def _follow_hints(self) -> None:
        while True:
            await self._hint.wait()
            changed, self._changed = self._changed, set()
            if not await self._refresh(changed):  # the hint will not come again
                await self.engine.clock.sleep(self.engine.config.writer.breaker_cooldown_s)
                self._changed |= changed & self.engine.registry.subscribed
                self._hint.set()

    def _on_hint(self, changed: Collection[int] | None) -> None:
        subscribed = self.engine.registry.subscribed
        if changed is None:
            self._changed |= subscribed
        else:
            self._changed |= {actor for actor in subscribed if actor.incarnation in changed}
        self._hint.set()

    async def _poll(self) -> None:
        """Look at each session at its own pace. A store that does not answer is asked again at the next."""
        registry, clock = self.engine.registry, self.engine.clock
        rota = Rota(self.engine.config.watch)
        while True:
            rota.welcome(registry.subscribed, clock.monotonic())
            delay_s = rota.delay_s(clock.monotonic())
            if delay_s > 0:
                await self._sleep(delay_s)
                continue
            due = {actor: actor.news for actor in rota.due(clock.monotonic()) if actor in registry.subscribed}
            await self._refresh(due.keys())
            for actor, news in due.items():
                rota.seen(actor, clock.monotonic(), news=actor.news != news)

    async def _sleep(self, delay_s: float) -> None:
        """Until it is time, or somebody listens to one more session."""
        async with anyio.create_task_group() as tasks:

            async def sleep() -> None:
                await self.engine.clock.sleep(delay_s)
                tasks.cancel_scope.cancel()

            tasks.start_soon(sleep)
            await self._newcomer.wait()
            tasks.cancel_scope.cancel()

    async def _refresh(self, actors: Collection[SessionActor]) -> bool:
        """Look at the sessions; whether the store has answered for all of them."""
        self.passes += 1
        self.done += len(actors)
        failures = self.failures
        async with anyio.create_task_group() as tasks:  # the reader makes one batch of them
            for actor in actors:
                tasks.start_soon(self._look, actor)
        return self.failures == failures

    async def _look(self, actor: SessionActor) -> None:
        try:
            await self.engine.registry.refresh_head(actor.id)
        except HoldfastError:
            self.failures += 1


class Rota:
    """When to look at which session: soon again where there was news, else ever more rarely."""

    def __init__(self, config: WatchConfig) -> None:
        self._config = config
        self._interval_s: dict[SessionActor, float] = {}
        self._queue: list[tuple[float, int, SessionActor]] = []
        self._order = itertools.count()

    def welcome(self, subscribed: Collection[SessionActor], now_s: float) -> None:
        """Add who is new, and forget who has left."""
        if self._interval_s.keys() == subscribed:
            return
        for actor in set(subscribed).difference(self._interval_s):
            self.seen(actor, now_s, news=True)
        self._keep(subscribed)

    def _keep(self, subscribed: Collection[SessionActor]) -> None:
        self._interval_s = {actor: each for actor, each in self._interval_s.items() if actor in subscribed}
        self._queue = [entry for entry in self._queue if entry[2] in self._interval_s]
        heapify(self._queue)

    def seen(self, actor: SessionActor, now_s: float, *, news: bool) -> None:
        """It was looked at: choose when to look again."""
        shortest_s, longest_s = self._config.poll_min_s, self._config.poll_max_s
        interval_s = shortest_s if news else min(self._interval_s.get(actor, shortest_s) * 2, longest_s)
        self._interval_s[actor] = interval_s
        heappush(self._queue, (now_s + interval_s, next(self._order), actor))

    def delay_s(self, now_s: float) -> float:
        """How long until one is due; at least the shortest interval's resolution, so that company can gather."""
        return self._queue[0][0] - now_s if self._queue else self._config.poll_max_s

    def due(self, now_s: float) -> Iterable[SessionActor]:
        """Take out those whose time has come, or comes within half the shortest interval."""
        horizon_s = now_s + self._config.poll_min_s / 2
        while self._queue and self._queue[0][0] <= horizon_s:
            yield heappop(self._queue)[2]
