"""Which of a session's requests run, and where; and the honest end of those that nobody runs any more.

Before a request is dispatched, the session gets a record of it under a reserved state key, in the
same atomic unit as the request's first event: its JSON-RPC id and the lease of the process that
runs it, which that process prolongs. The unit that stores the final response removes the record. A
record whose lease has run out is a request that died with its process: whoever resumes its stream claims
the record by compare-and-set, and stores an error as the stream's final event.

Where a process was only believed dead, its own response may come second. Readers stop at a
stream's first response, so every client sees one end, and the same one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog
from mcp_types import ErrorData, JSONRPCError, RequestId

from holdfast.errors import Conflict, InvalidCursor, SessionError, StoreError
from holdfast.integrations.mcp.keys import PRIMING, QUESTION_KEY, REQUEST_KEY, RESPONSE
from holdfast.integrations.mcp.lease import Lease
from holdfast.model import Cursor

if TYPE_CHECKING:
    from holdfast.model import Event
    from holdfast.supervisor.session import Session

__all__ = ["REQUEST_LOST", "RequestLog"]

_log = structlog.stdlib.get_logger("holdfast.integrations.mcp")

REQUEST_LOST: Final = -32050
"""JSON-RPC error code: the server stopped while it ran this request. Whether it took effect is unknown."""


class _NotOursError(Exception):
    """The record is gone, or another process's by now."""


class RequestLog:
    """Appends the messages of one session's streams, and keeps the records of its running requests.

    ``lease`` None: no records are kept, and a request that died is never ended.
    """

    def __init__(self, session: Session, lease: Lease | None) -> None:
        self._session = session
        self._lease = lease
        self._admitted: dict[str, RequestId] = {}
        self._dispatched: dict[str, RequestId] = {}
        self._recorded: dict[str, int] = {}
        self._claiming = anyio.Lock()

    @contextmanager
    def admit(self, request_id: RequestId) -> Generator[None, None, None]:
        """Hold while an HTTP request brings it in: it counts as running until it is dispatched."""
        stream = str(request_id)
        self._admitted[stream] = request_id
        try:
            yield
        finally:
            self._admitted.pop(stream, None)

    def dispatched(self, request_id: RequestId) -> None:
        """A handler takes over; the request runs until its response is stored."""
        self._dispatched[str(request_id)] = request_id

    def runs(self, stream: str) -> bool:
        """Whether this process runs the request of ``stream``."""
        return stream in self._dispatched or stream in self._admitted

    @property
    def running(self) -> list[str]:
        """The streams of the requests that handlers work on."""
        return list(self._dispatched)

    @property
    def first_seq(self) -> int | None:
        """Where the oldest of them begins in the session's log; None if no record of one is stored."""
        return min(self._recorded.values(), default=None)

    async def append(self, stream: str, type_: str, data: object, *, asks: str | None = None) -> Event:
        """Store one message, with the request's record if it is its first, without it if it is its last.

        ``asks``: the id of the question that it is; a record says who waits for the answer.
        """
        lease = self._lease
        begins = lease is not None and stream not in self._recorded and type_ != RESPONSE and self.runs(stream)
        ends = type_ == RESPONSE and stream in self._recorded
        if lease is None or not (begins or ends or asks is not None):
            return await self._session.append(data, type=type_, stream=stream)
        async with self._session.unit() as unit:
            if begins:
                request_id = self._admitted.get(stream, self._dispatched.get(stream))
                unit.set(REQUEST_KEY + stream, {"id": request_id, **lease.fields()})
            elif ends:
                unit.remove(REQUEST_KEY + stream)
            if asks is not None:
                unit.set(QUESTION_KEY + asks, lease.fields())
            unit.append(data, type=type_, stream=stream)
        if begins:
            self._recorded[stream] = unit.events[0].seq
        return unit.events[0]

    @property
    def records(self) -> list[str]:
        """The keys of the records of what runs here."""
        return [REQUEST_KEY + stream for stream in self._recorded if self.runs(stream)]

    async def prolong(self, keys: Iterable[str]) -> None:
        """Prolong the lease in those of the records that are still there, and ours; the session's life, too.

        Raises: as a `Session`'s writes.
        """
        await self._session.touch()
        lease = self._lease
        if lease is None:
            return
        fields = lease.fields()

        def prolonged(record: dict[str, Any] | None) -> dict[str, Any]:
            if record is None or not lease.owns(record):
                raise _NotOursError
            return {**record, **fields}

        for key in keys:
            with suppress(_NotOursError):
                await self._session.update(key, prolonged)

    def finished(self, stream: str) -> None:
        """Its response was stored, or could not be: this process is done with it."""
        self._dispatched.pop(stream, None)
        self._recorded.pop(stream, None)

    async def own(self, stream: str) -> bool:
        """Whether the stream is, or was, a request's. Tools have streams of their own, which clients cannot read."""
        if await self._session.get(REQUEST_KEY + stream) is not None:
            return True
        ends = [
            *await self._session.events(stream=stream, limit=1),
            *await self._session.last_events(1, stream=stream),
        ]
        return any(event.type in (PRIMING, RESPONSE) for event in ends)

    async def waits_elsewhere(self, key: str) -> bool:
        """Whether the record under ``key`` is another process's, which is alive."""
        if self._lease is None:
            return False
        record = await self._session.get(key)
        return record is not None and self._lease.alive_elsewhere(record)

    async def pause(self) -> None:
        """Wait before trying again what the store could not do."""
        if self._lease is not None:
            await self._lease.pause()

    async def end_if_lost(self, cursor: Cursor) -> None:
        """Return once the request of the cursor's stream has ended; end it if nobody runs it any more.

        Does not return while it runs somewhere. A passing failure of the store is waited out.
        """
        if self._lease is None:
            return
        while True:
            try:
                async with self._claiming:
                    if self.runs(cursor.stream):
                        ended = False
                    else:
                        ended = await self._end_unless_alive(cursor)
                if ended:
                    return
            except Conflict:
                continue
            except (SessionError, InvalidCursor):  # gone, or the store has lost the cursor's place
                return
            except StoreError as exc:
                _log.warning("mcp.lost_request_check_failed", session=self._session.id, error=repr(exc))
            await self._lease.pause()

    async def _end_unless_alive(self, cursor: Cursor) -> bool:
        """Raises: `Conflict` if the record changed meanwhile."""
        lease = self._lease
        assert lease is not None
        stream, key = cursor.stream, REQUEST_KEY + cursor.stream
        record, version = await self._session.get_versioned(key)
        if record is None:  # it has ended (its response and the record went in one unit), or the record was wiped
            if await self._responded(cursor):
                return True
            record = {"id": _guess_id(stream)}
        elif lease.alive_elsewhere(record):
            return False
        await self._session.compare_and_set(key, {**record, **lease.fields()}, version=version)
        async with self._session.unit() as unit:
            unit.append(_lost(record["id"]), type=RESPONSE, stream=stream)
            unit.remove(key)
        _log.info("mcp.request_lost", session=self._session.id, request=record["id"])
        return True

    async def _responded(self, cursor: Cursor) -> bool:
        types = {event.type async for event in self._session.replay(after=str(cursor), stream=cursor.stream)}
        return RESPONSE in types

    async def end_all(self) -> None:
        """The handlers of all running requests are gone: end the requests that got no response."""
        for stream in {**self._recorded, **self._dispatched}:
            self.finished(stream)
            await self.end_if_lost(Cursor(self._session.incarnation, 0, stream))


def _guess_id(stream: str) -> RequestId:
    """The JSON-RPC id that named the stream, where its record is gone: most clients count."""
    return int(stream) if stream.isdecimal() else stream


def _lost(request_id: RequestId) -> dict[str, Any]:
    error = ErrorData(
        code=REQUEST_LOST,
        message="The server stopped while it ran this request. It does not go on; whether it took effect is unknown.",
    )
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=error).model_dump(
        by_alias=True, mode="json", exclude_unset=True
    )
