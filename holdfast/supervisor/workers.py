"""The background workers, each a loop around one plain step.

None of them is needed for a correct answer: expired sessions are unreadable and trimmed events
unseen before any worker has run. They keep the store small, the memory bounded, and the sessions
that are in use alive.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import anyio.lowlevel
import msgspec
import structlog

from holdfast.actors.engine import Engine
from holdfast.backends.base import Expired, TrimPolicy
from holdfast.errors import HoldfastError, Unavailable
from holdfast.restart import RestartPolicy

__all__ = ["Janitor", "Keeper", "Passivator", "Trimmer", "Worker", "WorkerStatistics", "supervise"]

_log = structlog.stdlib.get_logger("holdfast.worker")

_T = TypeVar("_T")

_MARKER_AGE_US = 24 * 3600 * 1_000_000
"""Markers of writers that ended without forgetting theirs are dropped after a day."""
_MANY_SESSIONS = 1_000
"""With more of them to trim, a sweep over all is no dearer."""
_TRIM_ROWS = 5_000
"""Rows deleted in one transaction."""


class WorkerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """``done``: sessions expired or passivated, events deleted, touches or hints seen to."""

    passes: int
    done: int
    failures: int


class Worker:
    """A named loop with counts."""

    name = "worker"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.passes = 0
        self.done = 0
        self.failures: int = 0

    async def run(self) -> None:
        """Work until cancelled."""
        raise NotImplementedError

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(passes=self.passes, done=self.done, failures=self.failures)

    async def ask(self, call: Awaitable[_T]) -> _T:
        """One call of the backend that changes the store. Raises: `Unavailable` past ``commit_timeout_s``, too."""
        timeout_s = self.engine.config.writer.commit_timeout_s
        try:
            with anyio.fail_after(timeout_s):
                return await call
        except TimeoutError as exc:
            raise Unavailable(f"{self.name}: the store did not answer within {timeout_s:g} s") from exc

    async def pause(self, interval_s: float) -> None:
        """Sleep, with jitter, so that several instances do not work in step."""
        jitter = self.engine.config.janitor.jitter
        await self.engine.clock.sleep(interval_s * random.uniform(1 - jitter, 1 + jitter))


async def supervise(worker: Worker, policy: RestartPolicy) -> None:
    """Run a worker, and start it again when it fails: the store may be away, or it has met a bug.

    Past the restart intensity it goes on at the slowest pace instead of ending: nobody else does its
    work, and no caller is harmed by a late pass.
    """
    clock, slowest_s = worker.engine.clock, worker.engine.config.restart.backoff_max_s
    history: list[float] = []
    while True:
        try:
            await worker.run()
        except HoldfastError as exc:
            _log.warning("worker.failed", worker=worker.name, error=str(exc))
        except Exception as exc:
            _log.error("worker.crashed", worker=worker.name, exc_info=exc)
        worker.failures += 1
        history, delay_s = policy.decide(history, clock.monotonic())
        await clock.sleep(slowest_s if delay_s is None else delay_s)


class Janitor(Worker):
    """Removes expired sessions, in bounded batches. Several instances share the work without harm."""

    name = "janitor"

    def __init__(self, engine: Engine, expired: Callable[[Sequence[Expired]], Awaitable[None]]) -> None:
        super().__init__(engine)
        self._expired = expired

    async def run(self) -> None:
        while True:
            await self.pause(self.engine.config.janitor.interval_s)
            await self.pass_over()

    async def pass_over(self) -> list[Expired]:
        """Remove all that is expired now; exactly those removed by this call."""
        engine = self.engine
        batch_size = engine.config.janitor.batch
        removed: list[Expired] = []
        while True:
            now_us = engine.clock.now_us()
            await engine.registry.touches_stored()  # all activity up to now_us
            batch = await self.ask(engine.backend.expire(now_us, batch_size))
            for session in batch:
                engine.registry.end(session.id, session.incarnation)
            removed += batch
            if batch:
                await self._expired(batch)
            if len(batch) < batch_size:
                break
            await anyio.lowlevel.checkpoint()
        await self.ask(engine.backend.forget_markers(None, engine.clock.now_us() - _MARKER_AGE_US))
        self.passes += 1
        self.done += len(removed)
        if removed:
            _log.info("sessions.expired", count=len(removed))
        return removed


class Trimmer(Worker):
    """Deletes the rows of dropped events: of sessions that grew past a bound; at its start, of all."""

    name = "trimmer"

    async def run(self) -> None:
        await self.sweep()
        while True:
            await self.pause(self.engine.config.retention.interval_s)
            await self.pass_over()

    async def sweep(self) -> int:
        """Over every session, deleted ones included; how many rows went."""
        return await self._trim(None)

    async def pass_over(self) -> int:
        """Over the sessions of which events were dropped, or may have become too old or too many bytes."""
        registry, retention = self.engine.registry, self.engine.config.retention
        bounded = retention.max_event_age_s is not None or retention.max_event_bytes is not None
        ids, registry.untrimmed = registry.untrimmed, set()
        sweep = bounded or len(ids) > _MANY_SESSIONS
        if not (ids or sweep):
            return 0
        try:
            return await self._trim(None if sweep else sorted(ids))
        except HoldfastError:
            registry.untrimmed |= ids
            raise

    async def _trim(self, ids: Sequence[tuple[str, int]] | None) -> int:
        deleted = 0
        while True:
            count = await self.ask(self.engine.backend.trim(ids, self._policy(), _TRIM_ROWS))
            deleted += count
            if count < _TRIM_ROWS:
                break
            await anyio.lowlevel.checkpoint()
        self.passes += 1
        self.done += deleted
        if deleted:
            _log.debug("events.trimmed", count=deleted)
        return deleted

    def _policy(self) -> TrimPolicy:
        retention = self.engine.config.retention
        age_s = retention.max_event_age_s
        return TrimPolicy(
            min_time_us=None if age_s is None else self.engine.clock.now_us() - round(age_s * 1_000_000),
            max_bytes=retention.max_event_bytes,
        )


class Keeper(Worker):
    """Keeps what is in use alive: stores the activity of reads, and renews sessions that are listened to.

    It wakes well within the shortest TTL, so a coalesced touch is never late.
    """

    name = "keeper"

    async def run(self) -> None:
        registry = self.engine.registry
        while True:
            while registry.has_touches or registry.subscribed:
                await self._tick()
                self.renew()
            self.passes += 1
            await registry.liveness.wait()

    def renew(self) -> None:
        """Touch each session with a subscriber; wake those whose session ended; store all touches."""
        registry, now_us = self.engine.registry, self.engine.clock.now_us()
        for actor in list(registry.subscribed):
            registry.check_audience(actor)  # who listened may have been collected, and told nobody
            if not actor.subscribers:
                continue
            if actor.expired(now_us):
                actor.wake_subscribers()
            else:
                actor.touch(now_us)
                self.done += 1
        registry.store_touches()

    async def _tick(self) -> None:
        """Sleep until touches are due, or until a session with a shorter TTL turns up."""
        async with anyio.create_task_group() as tasks:

            async def sleep() -> None:
                await self.engine.clock.sleep(self.engine.registry.tick_us / 1_000_000)
                tasks.cancel_scope.cancel()

            tasks.start_soon(sleep)
            await self.engine.registry.shorter_tick.wait()
            tasks.cancel_scope.cancel()


class Passivator(Worker):
    """Lets go of actors that have been idle for ``idle_s``."""

    name = "passivator"

    async def run(self) -> None:
        while True:
            await self.pause(self.engine.config.actors.idle_s)
            self.done += self.engine.registry.passivate_idle()
            self.passes += 1
