"""A backend that fails on command: faults as an input of a test, not as luck."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import anyio

from holdfast.backends.base import (
    Backend,
    Batch,
    Capabilities,
    EventPage,
    EventQuery,
    Expired,
    LoadRequest,
    Marker,
    Outcome,
    SessionFilter,
    SessionPage,
    Snapshot,
    TrimPolicy,
)
from holdfast.errors import OutcomeUnknown, Rejected, Unavailable

__all__ = ["Fault", "FaultKind", "FaultyBackend", "InjectedCrash", "Operation", "touches"]

Operation = Literal[
    "open", "commit", "resolve", "forget_markers", "load", "read_events", "list_sessions", "count_sessions",
    "expire", "trim", "describe",
]  # fmt: skip


class InjectedCrash(Exception):
    """Stands for a bug in a backend: an error outside the contract."""


class FaultKind(enum.Enum):
    """What goes wrong, and whether the work is done all the same."""

    UNAVAILABLE = "unavailable"
    """`Unavailable`; not done. A passing error."""
    REJECTED = "rejected"
    """`Rejected`; not done. A permanent error."""
    FULL = "full"
    """`Unavailable`, because the disk is full; not done."""
    UNKNOWN_DONE = "unknown, done"
    """Done, then `OutcomeUnknown`: the connection broke after COMMIT."""
    UNKNOWN_LOST = "unknown, not done"
    """`OutcomeUnknown`; not done: the connection broke before COMMIT arrived."""
    CRASH = "crash"
    """`InjectedCrash`; not done."""
    HELD = "held"
    """Waits for `Fault.release`, then is done. Cancelled while it waits: not done."""
    HELD_DONE = "held, done"
    """Done, but answers only after `Fault.release`."""


class Fault:
    """One planned fault. Made by `FaultyBackend.inject`."""

    def __init__(
        self, kind: FaultKind, operation: Operation, times: int | None, skip: int, when: Callable[[Any], bool] | None
    ) -> None:
        self.kind = kind
        self.operation: Operation = operation
        self.hits = 0
        """How often it has struck."""
        self._times = times
        self._skip = skip
        self._when = when
        self._struck = anyio.Event()
        self._released = anyio.Event()

    async def struck(self) -> None:
        """Wait until it has struck once."""
        await self._struck.wait()

    def release(self) -> None:
        """Let held calls go on, and strike no more."""
        self._times = 0
        self._released.set()

    async def held(self) -> None:
        await self._released.wait()

    def strikes(self, operation: Operation, argument: object) -> bool:
        """Whether it strikes this call; counts it if so."""
        if operation != self.operation or self.spent or not (self._when is None or self._when(argument)):
            return False
        if self._skip:
            self._skip -= 1
            return False
        self.hits += 1
        self._struck.set()
        return True

    @property
    def spent(self) -> bool:
        return self._times is not None and self.hits >= self._times


def touches(*session_ids: str) -> Callable[[Batch], bool]:
    """For ``when=``: commits that contain one of the sessions."""
    wanted = frozenset(session_ids)
    return lambda batch: any(write.id in wanted for write in batch.writes)


class FaultyBackend:
    """A `Backend` that does what ``inner`` does, except where a fault was injected.

    Sound otherwise: what it reports as not done is not done, what it reports as done is.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()
        """Calls by operation, those that failed included."""
        self.largest_batch = 0
        """Most sessions seen in one commit."""
        self._faults: list[Fault] = []

    def inject(
        self,
        kind: FaultKind,
        operation: Operation = "commit",
        *,
        times: int | None = 1,
        skip: int = 0,
        when: Callable[[Any], bool] | None = None,
    ) -> Fault:
        """Plan a fault: it strikes ``times`` calls (None: until released), after ``skip`` others.

        Only calls count whose first argument (a commit's `Batch`, …) passes ``when``. Of several
        faults that fit a call, the first injected strikes.
        """
        fault = Fault(kind, operation, times, skip, when)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Release all faults."""
        for fault in self._faults:
            fault.release()
        self._faults.clear()

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    async def open(self) -> None:
        fault = await self._before("open", None)
        await self.inner.open()
        await _after(fault)

    async def close(self) -> None:
        """Never fails: a test must be able to end."""
        self.calls["close"] += 1
        await self.inner.close()

    async def commit(self, batch: Batch) -> list[Outcome]:
        self.largest_batch = max(self.largest_batch, len(batch.writes))
        fault = await self._before("commit", batch)
        outcomes = await self.inner.commit(batch)
        await _after(fault)
        return outcomes

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        fault = await self._before("resolve", marker)
        outcomes = await self.inner.resolve(marker)
        await _after(fault)
        return outcomes

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        fault = await self._before("forget_markers", writer)
        await self.inner.forget_markers(writer, before_us)
        await _after(fault)

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        fault = await self._before("load", requests)
        snapshots = await self.inner.load(requests)
        await _after(fault)
        return snapshots

    async def read_events(self, query: EventQuery) -> EventPage | None:
        fault = await self._before("read_events", query)
        page = await self.inner.read_events(query)
        await _after(fault)
        return page

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        fault = await self._before("list_sessions", where)
        page = await self.inner.list_sessions(where, after, limit)
        await _after(fault)
        return page

    async def count_sessions(self, where: SessionFilter) -> int:
        fault = await self._before("count_sessions", where)
        count = await self.inner.count_sessions(where)
        await _after(fault)
        return count

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        fault = await self._before("expire", now_us)
        expired = await self.inner.expire(now_us, limit)
        await _after(fault)
        return expired

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        fault = await self._before("trim", ids)
        count = await self.inner.trim(ids, policy, limit)
        await _after(fault)
        return count

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        self.calls["watch"] += 1
        await self.inner.watch(changed)

    async def describe(self) -> dict[str, object]:
        fault = await self._before("describe", None)
        facts = await self.inner.describe()
        await _after(fault)
        return facts

    async def _before(self, operation: Operation, argument: object) -> Fault | None:
        self.calls[operation] += 1
        fault = next((fault for fault in self._faults if fault.strikes(operation, argument)), None)
        if fault is not None:
            await _fail_or_hold(fault)
        return fault


async def _fail_or_hold(fault: Fault) -> None:
    """What a fault does ahead of the work."""
    match fault.kind:
        case FaultKind.UNAVAILABLE:
            raise Unavailable("injected: the store is unavailable")
        case FaultKind.FULL:
            raise Unavailable("injected: the disk is full")
        case FaultKind.REJECTED:
            raise Rejected("injected: the store rejects this")
        case FaultKind.UNKNOWN_LOST:
            raise OutcomeUnknown("injected: the connection was lost")
        case FaultKind.CRASH:
            raise InjectedCrash("injected: a bug in the backend")
        case FaultKind.HELD:
            await fault.held()
        case FaultKind.HELD_DONE | FaultKind.UNKNOWN_DONE:
            pass


async def _after(fault: Fault | None) -> None:
    """What a fault does behind the work."""
    if fault is None:
        return
    if fault.kind is FaultKind.UNKNOWN_DONE:
        raise OutcomeUnknown("injected: the connection was lost after COMMIT")
    if fault.kind is FaultKind.HELD_DONE:
        await fault.held()
