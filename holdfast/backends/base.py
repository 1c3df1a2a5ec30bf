"""The contract between the engine and a store: one small protocol, and what passes through it.

A backend knows nothing of actors, users or other backends. It makes batches of `SessionWrite`
durable, each all or nothing, and reads back what it holds. `holdfast.testing.contract` checks any
backend against these duties.

All times are microseconds since the epoch, given by the engine; a backend asks no clock.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import msgspec

from holdfast.model import Durability, Event, SessionStatus

__all__ = [
    "Backend",
    "Batch",
    "Capabilities",
    "EventPage",
    "EventQuery",
    "Expired",
    "Head",
    "LoadRequest",
    "Marker",
    "NewEvent",
    "Outcome",
    "SessionFilter",
    "SessionPage",
    "SessionWrite",
    "Snapshot",
    "StateValue",
    "Status",
    "TrimPolicy",
    "expiry_us",
]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can promise, as found out at `open`, not assumed."""

    name: str
    durability: Durability
    """The best level a commit of this store can reach as it is set up now."""
    exclusive: bool
    """Nobody else can write while it is open: reads may come from the actor without I/O."""
    watches: bool = True
    """`watch` reports sessions changed by others."""
    watch_is_complete: bool = True
    """Every commit elsewhere leads to a hint. If not, the engine also polls what somebody here listens to."""
    preferred_lanes: int = 1
    """Commits under way at once that suit it."""
    commits_queue: bool = False
    """They are made one after another, in the order of the calls: to ask for more than one saves pauses only."""
    max_batch_sessions: int | None = None
    """A lower bound of the store's own on one commit, if it has one."""
    max_value_bytes: int | None = None
    max_event_bytes: int | None = None
    max_unit_bytes: int | None = None
    """Keys, values and events of one `SessionWrite`."""
    max_unit_keys: int | None = None
    """Keys set or removed, of one `SessionWrite`."""


class Head(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A session's row: everything but state and events."""

    id: str
    incarnation: int
    """Names one life of the id; a session deleted and created again has another. Unique."""
    owner: str | None
    created_us: int
    active_us: int
    ttl_us: int | None
    deadline_us: int | None
    """End of the absolute lifetime."""
    status: SessionStatus
    metadata: bytes
    first_seq: int
    """Events below it are gone (logically; `Backend.trim` removes their rows)."""
    last_seq: int
    version: int

    @property
    def expires_us(self) -> int | None:
        return expiry_us(self.active_us, self.ttl_us, self.deadline_us)


def expiry_us(active_us: int, ttl_us: int | None, deadline_us: int | None) -> int | None:
    """When a session becomes unreadable: idle past its TTL, or past its lifetime. None: never."""
    if ttl_us is None:
        return deadline_us
    idle_end = active_us + ttl_us
    return idle_end if deadline_us is None else min(idle_end, deadline_us)


class StateValue(NamedTuple):
    """A key's value and the session version that its last write made."""

    raw: bytes
    version: int


class Snapshot(msgspec.Struct, frozen=True):
    """A session as loaded. ``state`` is None if only the head was asked for, or it is unchanged."""

    head: Head
    state: dict[str, StateValue] | None


class LoadRequest(NamedTuple):
    """Load ``id``; leave the state out if ``head_only``, or if the row is still at ``version`` of ``incarnation``."""

    id: str
    incarnation: int = -1
    version: int = -1
    head_only: bool = False


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """An event before it has its sequence number."""

    stream: str
    type: str
    raw: bytes
    retry_ms: int | None
    time_us: int

    def numbered(self, session_id: str, incarnation: int, seq: int) -> Event:
        """The event as it stands in the log (``seq`` 0: not stored yet)."""
        return Event(
            session_id=session_id,
            incarnation=incarnation,
            seq=seq,
            stream=self.stream,
            type=self.type,
            raw=self.raw,
            retry_ms=self.retry_ms,
            time_us=self.time_us,
        )


NOTHING_SET: Final[Mapping[str, tuple[bytes, int]]] = MappingProxyType({})
"""No `SessionWrite.sets`: most writes have none, and share this one."""


class SessionWrite(msgspec.Struct, kw_only=True, gc=False):
    """One session's atomic unit in a batch: all of it commits, or none.

    ``units`` user units were merged into it. They take the versions ``base + 1 … base + units``,
    where ``base`` is the version found under the row's lock; a key set by the n-th of them
    (from 1) gets version ``base + n``, which is what the ints in ``sets`` say. (A copied key keeps its
    version: its int may be any, negative ones included.)
    """

    id: str
    incarnation: int
    accepted_us: int
    """When the first of the units was accepted: the session must not have expired by then."""
    active_us: int
    """When the last was: the row's ``active_us`` becomes at least this."""
    version: int
    """The version the writer knows. With ``fenced`` it must match; else it is only a hint."""
    base_seq: int
    """The row's ``last_seq`` as the writer knows it; exact wherever ``version`` is."""
    base_first_seq: int = 1
    """The row's ``first_seq`` as the writer knows it: a hint always, for trimming makes no version."""
    fenced: bool = False
    units: int = 0
    create: Head | None = None
    """Insert this row first; `Status.EXISTS` if a live one has the id.

    New sessions begin at version 0 with no events; a copied one at any version, also a negative one, and
    with ``first_seq = last_seq + 1``. An incarnation may come again once all that was left of it is trimmed.
    """
    cleared: bool = False
    """Drop all state before ``sets``."""
    sets: Mapping[str, tuple[bytes, int]] = NOTHING_SET
    removes: Collection[str] = ()
    events: Sequence[NewEvent] = ()
    metadata: bytes | None = None
    floor_seq: int = 0
    """Events below it go: ``first_seq`` becomes at least ``min(floor_seq, last_seq + 1)``."""
    close: bool = False
    delete: bool = False


class Marker(NamedTuple):
    """Names a flush, so that its outcome can be asked for. ``flush`` grows within (writer, lane)."""

    writer: str
    lane: int
    flush: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What a lane commits at once. At most one write per session."""

    writes: Sequence[SessionWrite]
    marker: Marker
    durability: Durability
    now_us: int
    max_events: int | None
    """After appending, ``first_seq`` becomes at least ``last_seq - max_events + 1``."""


class Status(enum.IntEnum):
    """What became of one write."""

    COMMITTED = 0
    MISSING = 1
    """No live row with this id and incarnation: unknown, deleted, or expired at ``accepted_us``."""
    EXISTS = 2
    CONFLICT = 3
    """Fenced, and the row is at another version."""
    CLOSED = 4
    """The row is closed, and the write is more than a touch, a delete or ``floor_seq``."""


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The row as the commit found it (``base_*``) and left it. Zeros unless COMMITTED."""

    status: Status
    base_version: int = 0
    base_seq: int = 0
    base_first_seq: int = 0
    first_seq: int = 0


class EventQuery(NamedTuple):
    """Events of one session with ``seq > after_seq``, oldest first.

    A page ends at ``limit`` events or past ``max_bytes`` of data, but has at least one if there is
    one. With ``last``: the newest ``limit`` of them instead, still oldest first, whatever their size.
    """

    id: str
    incarnation: int
    after_seq: int = 0
    stream: str | None = None
    limit: int = 500
    max_bytes: int = 1 << 20
    last: bool = False


class EventPage(NamedTuple):
    """``scanned_seq``: everything up to it was looked at; go on from there. ``more``: there is more now."""

    events: list[Event]
    scanned_seq: int
    more: bool
    first_seq: int
    """The row's, in the same read: a cursor below ``first_seq - 1`` has a gap."""
    last_seq: int


class SessionFilter(NamedTuple):
    """Which live sessions to list or count. ``now_us``: expired ones are left out."""

    now_us: int
    owner: str | None = None
    status: SessionStatus | None = None


class SessionPage(NamedTuple):
    heads: list[Head]
    next_after: int | None
    """Pass as ``after`` for the next page; None: that was all."""


class Expired(NamedTuple):
    """A session that `Backend.expire` removed."""

    id: str
    incarnation: int
    owner: str | None


class TrimPolicy(NamedTuple):
    """What `Backend.trim` enforces beyond ``first_seq``: None means no bound."""

    min_time_us: int | None = None
    max_bytes: int | None = None


class Backend(Protocol):
    """A store. Every method raises only errors of `holdfast.errors`, with the driver's as cause.

    Passing errors are `Unavailable` (nothing was done), permanent ones `Rejected` (nothing was
    done), and `OutcomeUnknown` means that a `commit` may or may not have happened. A method that is
    cancelled either did all of its work or none. `commit` is called from several lanes at once,
    each with sessions of its own; everything else may be called at any time.
    """

    @property
    def capabilities(self) -> Capabilities:
        """Valid once open."""
        ...

    async def open(self) -> None:
        """Connect; create or migrate the schema; find out the capabilities.

        Raises: `SchemaError` for a newer or foreign schema, `Unavailable`, `ConfigError`. A failed
        open leaves nothing open.
        """
        ...

    async def close(self) -> None:
        """Release everything: connections, threads, timers. May be called twice, and under cancellation."""
        ...

    async def commit(self, batch: Batch) -> list[Outcome]:
        """Make the batch durable at ``batch.durability``; one outcome per write, in its order.

        Must, in one transaction, for each write: lock the row (rows in one global order); check it
        (exists, missing, expired at ``accepted_us``, conflict, closed: in this order) and leave a refused one out
        without harm to the others; number events from the row's ``last_seq + 1``; apply ``cleared``,
        ``removes``, ``sets``, ``events``, ``metadata``, ``floor_seq``, ``close``, ``delete``; raise
        ``version`` by ``units`` and ``active_us`` to at least the given; apply ``max_events``; and
        leave the marker with its outcomes.
        """
        ...

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        """After `OutcomeUnknown`: the outcomes if that flush committed, None if it did not.

        Must not answer None while the commit could still take effect.
        """
        ...

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        """Drop the markers of ``writer`` (which has ended), and any writer's older than ``before_us``."""
        ...

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        """The sessions as committed by now, in the requests' order; None for an unknown id.

        Expired rows are returned as they are: the engine knows of touches not yet written.
        """
        ...

    async def read_events(self, query: EventQuery) -> EventPage | None:
        """One page, never with events below ``first_seq``; None if there is no such incarnation."""
        ...

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        """Live sessions with ``incarnation > after`` by ascending incarnation (order of creation)."""
        ...

    async def count_sessions(self, where: SessionFilter) -> int:
        """How many `list_sessions` would give over all pages."""
        ...

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        """Remove up to ``limit`` sessions whose ``expires_us`` is at or before ``now_us``.

        Checked again under the row's lock, so that a touch that came first keeps its session.
        Returns exactly the removed ones; fewer than ``limit`` means that there are no more.
        """
        ...

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        """Delete rows of dropped events, at most about ``limit``; returns how many were deleted.

        Of the (id, incarnation) pairs given, or (None) of any session, deleted ones included: rows
        below ``first_seq``, after raising it by ``policy`` (oldest first, up to the first event that
        may stay). Less than ``limit`` means: all done.
        """
        ...

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        """Run until cancelled; call ``changed`` soon after other instances may have committed.

        Once at the start, when nothing that is committed from then on can go unnoticed; afterwards
        with the incarnations of changed sessions, or None if it cannot tell which. Hints may be
        spurious, and calls for own commits are allowed; a commit elsewhere must lead to one if the
        capabilities say so, and otherwise should. Not called if they say that it does not watch.
        """
        ...

    async def describe(self) -> dict[str, object]:
        """Facts for `holdfast doctor`: versions, schema, durability in force, sizes. No credentials."""
        ...
