"""The copier: passes over all sessions of the source, in chunks, over as many lanes as the target prefers."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from holdfast.backends.base import Backend, Head, SessionFilter
from holdfast.clock import Clock, SystemClock
from holdfast.config import WriterConfig
from holdfast.copying.access import Access, Lane
from holdfast.copying.report import Phase, Report
from holdfast.copying.transfer import Transfer
from holdfast.copying.verify import difference
from holdfast.errors import ConfigError, HoldfastError

__all__ = ["Copier"]

_CHUNK_SESSIONS: Final = 100

Progress = Callable[[Phase, int, int], None]
"""Called with the phase, and how many sessions and events more are done."""

_Work = Callable[[Lane, Sequence[Head]], Awaitable[None]]


class Copier:
    """Copies every live session of ``source`` to ``target``; both are open, and stay so.

    Meant for a source at rest. What changes at the source during the copy is copied on in a second pass; sessions that
    are deleted there after they were copied stay at the target. Sessions that only the target has are left alone, and
    so is one that was used in both stores: that is told by its counts, times, versions and last event. Where the source
    has overwritten or trimmed all that could tell, the source's replaces the target's.
    """

    def __init__(
        self,
        source: Backend,
        target: Backend,
        config: WriterConfig | None = None,
        *,
        clock: Clock | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``config``: the bounds of one commit, lanes, time-outs and retries. ``progress`` must not block."""
        self._config: Final = config or WriterConfig()
        self._clock: Final = clock or SystemClock()
        self._source: Final = Access("source", source, self._config, self._clock)
        self._target: Final = Access("target", target, self._config, self._clock)
        self._writer: Final = f"copy-{uuid.uuid4().hex}"
        self._progress: Final = progress or _unseen
        self.report: Final = Report()
        """Counts so far, also when `run` has failed."""

    async def count(self) -> int:
        """How many sessions there are to copy. Raises: `Unavailable`."""
        return await self._source.read(self._source.backend.count_sessions, SessionFilter(self._clock.now_us()))

    async def run(self, *, verify: bool = True) -> Report:
        """Copy; with ``verify``, then compare all of it, byte for byte.

        Sessions that cannot be copied are in the report; the others are copied all the same.

        Raises: `ConfigError` if both are the same store; `Unavailable` if one of them stays so for ``retry_for_s``, and
        its other errors. After that, or a cancellation, or a kill, another run goes on where this one stopped.
        """
        lanes = [Lane(self._target, self._writer, number) for number in range(self._lane_count())]
        try:
            if await lanes[0].leaves_trace_in(self._source):
                raise ConfigError("", "the source and the target are the same store")
            await self._for_all(lanes, self._transfer("copying").copy)
            if self.report.copied:
                await self._for_all(lanes, self._transfer("catching up").copy)
            if verify:
                self.report.verified = 0
                await self._for_all(lanes, self._verify)
        finally:
            await self._forget_markers()
        return self.report

    def _lane_count(self) -> int:
        return self._config.lanes or self._target.backend.capabilities.preferred_lanes

    def _transfer(self, phase: Phase) -> Transfer:
        return Transfer(
            self._source,
            self._target,
            self.report,
            phase=phase,
            done=lambda sessions, events: self._progress(phase, sessions, events),
        )

    async def _verify(self, _lane: Lane, heads: Sequence[Head]) -> None:
        for head in heads:
            if head.id not in self.report.problems:
                found, events = await difference(self._source, self._target, head)
                if found is not None:
                    self.report.add(head.id, "different", found)
                else:
                    self.report.verified = (self.report.verified or 0) + 1
                    self.report.verified_events += events
                self._progress("verifying", 0, events)
            self._progress("verifying", 1, 0)

    async def _for_all(self, lanes: Sequence[Lane], work: _Work) -> None:
        """Give all sessions of the source, in chunks, to the lanes. Raises: the first error of any of them."""
        failures: list[Exception] = []
        send, receive = anyio.create_memory_object_stream[list[Head]](0)
        async with anyio.create_task_group() as tasks:
            for lane in lanes:
                tasks.start_soon(self._serve, lane, work, receive.clone(), failures, tasks.cancel_scope)
            receive.close()
            with send:
                try:
                    await self._list(send.send)
                except Exception as exc:
                    failures.append(exc)
                    tasks.cancel_scope.cancel()
        if failures:
            raise failures[0]

    async def _serve(
        self,
        lane: Lane,
        work: _Work,
        chunks: MemoryObjectReceiveStream[list[Head]],
        failures: list[Exception],
        scope: anyio.CancelScope,
    ) -> None:
        with chunks:
            try:
                async for heads in chunks:
                    await work(lane, heads)
            except Exception as exc:
                failures.append(exc)
                scope.cancel()

    async def _list(self, give: Callable[[list[Head]], Awaitable[None]]) -> None:
        after: int | None = 0
        while after is not None:
            where = SessionFilter(self._clock.now_us())
            page = await self._source.read(self._source.backend.list_sessions, where, after, _CHUNK_SESSIONS)
            if page.heads:
                await give(page.heads)
            after = page.next_after

    async def _forget_markers(self) -> None:
        """Best effort: servers drop old markers, too."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._config.commit_timeout_s):
            with suppress(HoldfastError):
                await self._target.backend.forget_markers(self._writer, 0)


def _unseen(_phase: Phase, _sessions: int, _events: int) -> None:
    """Nobody watches."""
