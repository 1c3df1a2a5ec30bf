"""The SDK's event store, bound to one session.

In the stock SDK one store serves all sessions, and a stream's id is just the request's id: one
session's events can be replayed to another. Here every transport has a store of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import anyio
import structlog
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import (
    INTERNAL_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)

from holdfast.errors import EventGap, HoldfastError, InvalidCursor, InvalidInput
from holdfast.integrations.mcp.inbox import Inbox
from holdfast.integrations.mcp.keys import MESSAGE, PRIMING, RESPONSE, STANDALONE
from holdfast.integrations.mcp.lease import Lease
from holdfast.integrations.mcp.requests import RequestLog
from holdfast.model import Cursor, Event

if TYPE_CHECKING:
    from holdfast.supervisor.session import Session

__all__ = ["PRIMING_MESSAGE", "SessionEventStore"]

_log = structlog.stdlib.get_logger("holdfast.integrations.mcp")


_PAGE_EVENTS: Final = 100

PRIMING_MESSAGE: Final = cast("JSONRPCMessage", None)
"""Stands in an `EventMessage` for no message: an event with an id and without data."""


class SessionEventStore(EventStore):
    """Stores and replays the messages of one session's streams.

    With a ``lease`` it also records which requests run where, so that a resumed stream whose request
    died with its process ends with an error (`REQUEST_LOST`) instead of hanging.
    """

    def __init__(self, session: Session, lease: Lease | None = None) -> None:
        self.requests = RequestLog(session, lease)
        self.inbox = Inbox(session, self.requests)
        self.primes = False
        """Whether replays send a priming event (`PRIMING_MESSAGE`) where they turn live: the transport and
        the client must both know it."""
        self._session = session
        self._tails: dict[str, anyio.CancelScope] = {}

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Store a message, or a priming event (None), and return its id.

        A message that cannot be stored must not end the connection: it gets the id "", so that the
        client sees it live and without an id. Priming events raise, so that a request is refused
        before it is dispatched.
        """
        if message is None:
            return (await self.requests.append(stream_id, PRIMING, None)).id
        if isinstance(message, JSONRPCRequest):
            self.inbox.asks(str(message.id), stream_id)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self.inbox.settled(str((message.params or {}).get("requestId")))
        final = stream_id != STANDALONE and isinstance(message, JSONRPCResponse | JSONRPCError)
        try:
            return await self._store(stream_id, message, final=final)
        except HoldfastError as exc:
            _log.warning("mcp.event_not_stored", session=self._session.id, stream=stream_id, error=repr(exc))
            return ""
        finally:
            if final:
                self.requests.finished(stream_id)
                self.inbox.stream_ended(stream_id)

    async def _store(self, stream_id: str, message: JSONRPCMessage, *, final: bool) -> str:
        if isinstance(message, JSONRPCRequest):
            question = str(message.id)
            event = await self.requests.append(stream_id, MESSAGE, _dump(message), asks=question)
            self.inbox.asked(question, event)
            return event.id
        if not final:
            return (await self.requests.append(stream_id, MESSAGE, _dump(message))).id
        try:
            event = await self.requests.append(stream_id, RESPONSE, _dump(message))
        except InvalidInput as exc:
            # The live client gets the response as it is; one that resumes must get an end too.
            assert isinstance(message, JSONRPCResponse | JSONRPCError)
            error = ErrorData(code=INTERNAL_ERROR, message=f"The response could not be stored: {exc}")
            substitute = JSONRPCError(jsonrpc="2.0", id=message.id, error=error)
            event = await self.requests.append(stream_id, RESPONSE, _dump(substitute))
        return event.id

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> None:
        """Send what follows the cursor in its stream, then tail the stream until it ends.

        A request's stream ends with its response, wherever that is produced; the standalone stream
        ends with the session. Always returns None: the transport has nothing to go on with. A newer
        replay of the same stream ends this one, so that no message goes to two connections.
        """
        cursor = Cursor.parse(last_event_id)
        self.close_tail(cursor.stream)
        scope = anyio.CancelScope()
        self._tails[cursor.stream] = scope
        try:
            with scope:
                await self._replay(cursor, send_callback)
        finally:
            if self._tails.get(cursor.stream) is scope:
                del self._tails[cursor.stream]

    async def _replay(self, cursor: Cursor, send: EventCallback) -> None:
        if cursor.stream == STANDALONE:
            await self._forward(cursor, send)
            return
        if await self._is_response(cursor):
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.requests.end_if_lost, cursor)
            await self._forward(cursor, send)
            tasks.cancel_scope.cancel()

    async def _forward(self, cursor: Cursor, send: EventCallback) -> None:
        try:
            position = await self._send_missed(cursor, send)
            if position is None:
                return
            if self.primes:
                await send(EventMessage(PRIMING_MESSAGE, position))
            async with self._session.subscribe(after=position, stream=cursor.stream) as events:
                async for event in events:
                    if await _send(event, send):
                        return
        except HoldfastError as exc:
            # The client comes back with its last id, and the manager tells it what is wrong.
            _log.info("mcp.replay_ended", session=self._session.id, stream=cursor.stream, error=repr(exc))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            _log.debug("mcp.replay_connection_closed", session=self._session.id, stream=cursor.stream)

    async def _send_missed(self, cursor: Cursor, send: EventCallback) -> str | None:
        """Send what is stored by now; the id to go on from, None if that was the stream's end."""
        position = str(cursor)
        while page := await self._session.events(after=position, stream=cursor.stream, limit=_PAGE_EVENTS):
            for event in page:
                if await _send(event, send):
                    return None
            position = page[-1].id
        return position

    async def _is_response(self, cursor: Cursor) -> bool:
        """Whether the cursor is at its stream's end. Request ids may be used again: the stream may go on."""
        before = cursor._replace(seq=max(0, cursor.seq - 1))
        try:
            found = await self._session.events(after=str(before), stream=cursor.stream, limit=1)
        except EventGap:
            return False
        return bool(found) and found[0].seq == cursor.seq and found[0].type == RESPONSE

    async def check(self, last_event_id: str) -> Cursor:
        """The cursor, if a replay after it would be complete.

        Raises: `InvalidCursor` (malformed, of another session, of no request's stream, from the future), `EventGap`,
        `SessionNotFound`.
        """
        cursor = Cursor.parse(last_event_id)
        await self._session.events(after=last_event_id, stream=cursor.stream, limit=1)
        if cursor.stream != STANDALONE and not await self.requests.own(cursor.stream):
            raise InvalidCursor(last_event_id, "foreign")
        return cursor

    @property
    def under_way(self) -> bool:
        """Whether a request runs here, or a question waits for its answer."""
        return bool(self.requests.running or self.requests.records or self.inbox.records)

    async def keep(self) -> None:
        """Tell the other instances that what is under way here is alive; and keep the session so.

        Raises: as a `Session`'s writes.
        """
        await self.requests.prolong([*self.requests.records, *self.inbox.records])

    async def end_all(self) -> None:
        """The session's server has ended here: nobody need wait for what it had under way."""
        await self.requests.end_all()
        await self.inbox.remove_records()

    def tails(self, stream: str) -> bool:
        """Whether a replay of the stream is going on."""
        return stream in self._tails

    def close_tail(self, stream: str) -> None:
        """End the replay of the stream, if there is one; its client will come back."""
        scope = self._tails.pop(stream, None)
        if scope is not None:
            scope.cancel()

    def close(self) -> None:
        """End all replays, and wait for no answers."""
        self.inbox.close()
        for stream in list(self._tails):
            self.close_tail(stream)


async def _send(event: Event, send: EventCallback) -> bool:
    """Send an event that carries a message. True: it is the last of its stream."""
    if event.type != PRIMING:
        await send(EventMessage(jsonrpc_message_adapter.validate_json(event.raw, by_name=False), event.id))
    return event.type == RESPONSE


def _dump(message: JSONRPCMessage) -> object:
    return message.model_dump(by_alias=True, mode="json", exclude_unset=True)
