"""How the copier reaches a store: with time-outs, bounded retries, and commits that happen exactly once."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, TypeVarTuple

import anyio

from holdfast.backends.base import Backend, Batch, Marker, Outcome, SessionWrite
from holdfast.clock import Clock
from holdfast.config import WriterConfig
from holdfast.errors import OutcomeUnknown, Rejected, Unavailable
from holdfast.model import Durability

__all__ = ["Access", "Lane"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Access:
    """An open backend. ``name`` is what messages call it: "source" or "target"."""

    def __init__(self, name: str, backend: Backend, config: WriterConfig, clock: Clock) -> None:
        self.name: Final = name
        self.backend: Final = backend
        self.config: Final = config
        self.clock: Final = clock

    async def read(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Call a method that may be called twice; passing errors are tried again for ``retry_for_s``.

        Raises: what the method raises; `Unavailable` names the store.
        """
        patience = _Patience(self)
        while True:
            try:
                with anyio.fail_after(self.config.read_timeout_s):
                    return await function(*args)
            except TimeoutError as exc:
                error = Unavailable(f"no answer within {self.config.read_timeout_s:g} s")
                error.__cause__ = exc
            except Unavailable as exc:
                error = exc
            await patience.wait_or_raise(error)


class _Patience:
    """Exponential delays with jitter, for ``retry_for_s`` from the first failure on."""

    def __init__(self, store: Access) -> None:
        self._store: Final = store
        self._delay_s = store.config.backoff_initial_s
        self._give_up_at: float | None = None

    async def wait_or_raise(self, error: Exception) -> None:
        """Wait before the next attempt. Raises: `Unavailable`, caused by ``error``, if time is up."""
        config, clock = self._store.config, self._store.clock
        now = clock.monotonic()
        if self._give_up_at is None:
            self._give_up_at = now + config.retry_for_s
        if now >= self._give_up_at:
            raise Unavailable(f"the {self._store.name}: {error}") from error
        await clock.sleep(self._delay_s * random.uniform(0.5, 1.0))
        self._delay_s = min(self._delay_s * 2, config.backoff_max_s)


class Lane:
    """Commits to the target, one at a time, each under a marker of its own."""

    def __init__(self, target: Access, writer: str, number: int) -> None:
        self._target: Final = target
        self._writer: Final = writer
        self._number: Final = number
        self._flush = 0
        best = target.backend.capabilities.durability
        self._durability: Final = best if Durability.DISK.covers(best) else Durability.DISK

    async def commit(self, writes: Sequence[SessionWrite]) -> list[Outcome]:
        """One commit; tried again on passing errors, and after an unknown outcome only if it did not happen.

        Raises: `Rejected`, `Unavailable`. A cancellation leaves it done or not.
        """
        patience = _Patience(self._target)
        while True:
            marker = self._next_marker()
            try:
                return await self._attempt(writes, marker)
            except OutcomeUnknown as exc:
                outcomes = await self._target.read(self._target.backend.resolve, marker)
                if outcomes is not None:
                    return outcomes
                await patience.wait_or_raise(exc)
            except Unavailable as exc:
                await patience.wait_or_raise(exc)

    async def commit_each(self, writes: Sequence[SessionWrite]) -> list[Outcome | Rejected]:
        """As `commit`; if the target refuses all together, one by one, so that only those at fault fail."""
        if len(writes) > 1:
            try:
                return [*await self.commit(writes)]
            except Rejected:
                return [outcome for write in writes for outcome in await self.commit_each([write])]
        try:
            return [*await self.commit(writes)]
        except Rejected as exc:
            return [exc]

    async def leaves_trace_in(self, other: Access) -> bool:
        """Whether a commit to the target can be seen in ``other``: then both are one store."""
        await self.commit([])
        return await other.read(other.backend.resolve, Marker(self._writer, self._number, self._flush)) is not None

    def _next_marker(self) -> Marker:
        self._flush += 1
        return Marker(self._writer, self._number, self._flush)

    async def _attempt(self, writes: Sequence[SessionWrite], marker: Marker) -> list[Outcome]:
        target = self._target
        batch = Batch(
            writes=writes,
            marker=marker,
            durability=self._durability,
            now_us=target.clock.now_us(),
            max_events=None,
        )
        try:
            with anyio.fail_after(target.config.commit_timeout_s):
                return await target.backend.commit(batch)
        except TimeoutError as exc:
            raise OutcomeUnknown(f"the commit was not answered within {target.config.commit_timeout_s:g} s") from exc
