"""Subscriptions: a cursor over a session's log that waits at its end.

A subscription holds no queue and no task. It asks the session's actor for what comes after its
position (from the ring of recent events, else from the store) and parks when there is nothing. So a
slow consumer costs no memory and misses nothing, and replay joins live without a seam.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from holdfast.actors.actor import SessionActor
from holdfast.actors.log import EventLog
from holdfast.actors.registry import Registry
from holdfast.backends.base import EventQuery
from holdfast.errors import InvalidCursor, SessionNotFound
from holdfast.model import Cursor, Event, Latest
from holdfast.waiting import Ack, Signal

__all__ = ["Subscription"]

_PAGE_EVENTS = 256
_PAGE_BYTES = 1 << 20


class Subscription:
    """Iterate over it with ``async for``: first what is held after the cursor, then what comes.

    It ends behind the last event of a closed session. Use it as an async context manager, or call
    `close`, to stop keeping the session alive at once; otherwise that happens when it is collected.

    Raises while iterating: `SessionNotFound` once the session is deleted or expired; `EventGap` if
    its place in the log has been trimmed; `InvalidCursor` at the start, or ("ahead") where the store has
    lost events that were read already. A cancelled step can be taken again: no event is lost by it.
    """

    def __init__(
        self,
        log: EventLog,
        session_id: str,
        incarnation: int,
        *,
        after: str | Latest | None,
        stream: str | None,
        new_ack: Callable[[], Ack],
    ) -> None:
        self._log = log
        self._session_id = session_id
        self._incarnation = incarnation
        self._after = after
        self._stream = stream
        self._new_ack = new_ack
        self._seq = -1
        self._page: list[Event] = []
        self._next = 0
        self._waker: _Waker | None = None
        self._closed = False
        self._caught_up = False

    def __repr__(self) -> str:
        return f"<Subscription to {self._session_id!r} after seq {max(self._seq, 0)}>"

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while self._next >= len(self._page):
            if self._closed or not await self._fill():
                self.close()
                raise StopAsyncIteration
        event = self._page[self._next]
        self._next += 1
        return event

    def close(self) -> None:
        """Stop. Idempotent; iteration ends."""
        self._closed = True
        self._page, self._next = [], 0
        if self._waker is not None:
            self._waker.detach()
            self._waker = None

    def __del__(self) -> None:
        if self._waker is not None:
            self._waker.vanish()

    async def _start(self) -> SessionActor:
        """The actor, with this subscription attached. The first time, find the place to start."""
        registry, waker = self._log.registry, self._waker
        if waker is not None and not waker.actor.ended and self._seq >= 0:
            return waker.actor
        while True:  # attached first, so that no change after the look at the store goes unnoticed
            actor = await registry.hydrated(self._session_id, self._incarnation)
            if waker is None or waker.actor is not actor:
                if waker is not None:
                    waker.detach()
                waker = self._waker = _Waker(registry, actor, self._new_ack)
            if await registry.find_incarnation(self._session_id, self._incarnation, state=False) is actor:
                break
        await self._log.note_read(actor)
        if self._seq < 0:
            self._seq = self._log.position(actor, self._after)
        return actor

    async def _fill(self) -> bool:
        """Fetch the next page, waiting until there is one. False: the session is closed and read out."""
        while True:
            actor = await self._start()
            waker = self._waker
            assert waker is not None
            self._check_position(waker)
            if self._seq < actor.last_seq:
                await self._fetch(actor)
                if self._page:
                    return True
            elif actor.ended:
                raise SessionNotFound(self._session_id)
            elif actor.closed:
                return False
            else:
                self._caught_up = True
                await waker.changed.wait()
                if actor.expired(self._log.registry.clock.now_us()):
                    raise SessionNotFound(self._session_id)

    def _check_position(self, waker: _Waker) -> None:
        """Raises: `InvalidCursor` if events that were read are lost: what gets their numbers would be skipped."""
        last_seq, waker.rewound_to = waker.rewound_to, None
        if last_seq is not None and self._seq > last_seq:
            raise InvalidCursor(str(Cursor(self._incarnation, self._seq, self._stream or "")), "ahead")

    async def _fetch(self, actor: SessionActor) -> None:
        """Read on from the ring if it holds what comes next, else from the store.

        The ring may hold events that have been dropped since: those are gone, for everybody.
        """
        in_log = self._seq >= actor.first_seq - 1
        events = actor.ring.after(self._seq) if actor.ring is not None and in_log else []
        if events:
            scanned_seq = events[-1].seq
            if self._stream is not None:
                events = [event for event in events if event.stream == self._stream]
        else:
            query = EventQuery(actor.id, actor.incarnation, self._seq, self._stream, _PAGE_EVENTS, _PAGE_BYTES)
            known_seq = actor.last_seq
            page = await self._log.page(actor, query, cursor=self._cursor())
            if page.last_seq < known_seq:  # events are lost, and the actor does not know it yet
                await self._log.registry.refresh_head(self._session_id)
                return
            events, scanned_seq = page.events, page.scanned_seq
        self._page, self._next = events, 0
        self._seq = scanned_seq

    def _cursor(self) -> str | None:
        """None at the very start without a cursor: then whatever is held comes, and nothing is a gap."""
        if self._seq == 0 and self._after is None and not self._caught_up:
            return None
        if self._seq == 0 and isinstance(self._after, str):
            return self._after
        return str(Cursor(self._incarnation, self._seq, self._stream or ""))


class _Waker:
    """What the actor knows of a subscription; it does not keep the subscription alive."""

    def __init__(self, registry: Registry, actor: SessionActor, new_ack: Callable[[], Ack]) -> None:
        self.actor = actor
        self.changed = Signal(new_ack)
        self.rewound_to: int | None = None
        self._registry = registry
        registry.subscribe(actor, self)

    def wake(self) -> None:
        self.changed.set()

    def rewound(self, last_seq: int) -> None:
        self.rewound_to = last_seq if self.rewound_to is None else min(last_seq, self.rewound_to)
        self.changed.set()

    def detach(self) -> None:
        self._registry.unsubscribe(self.actor, self)

    def vanish(self) -> None:
        """As `detach`, from whichever thread collects garbage, in the middle of anything. The keeper does the rest."""
        subscribers = self.actor.subscribers
        if subscribers is not None:
            subscribers.discard(self)
            self._registry.subscription_collected()
