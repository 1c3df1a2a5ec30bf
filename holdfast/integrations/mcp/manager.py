"""A session manager whose sessions live in Holdfast.

For clients of the protocol versions up to 2025-11-25, which have sessions. Requests of newer
versions go to the SDK's own handling, untouched.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog
from mcp.server import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http import LAST_EVENT_ID_HEADER, MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import (
    DEFAULT_MAX_REQUEST_BODY_SIZE,
    DEFAULT_MAX_SESSIONS,
    DEFAULT_SESSION_IDLE_TIMEOUT,
)
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, RequestId
from mcp_types.version import is_version_at_least
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.errors import (
    EventGap,
    HoldfastError,
    InvalidCursor,
    InvalidInput,
    LimitExceeded,
    SessionError,
    SessionNotFound,
    StoreError,
)
from holdfast.integrations.mcp._sdk import ManagerSeam, lowlevel
from holdfast.integrations.mcp.asgi import SendWatch, error_response, read_body, replay_body, with_header
from holdfast.integrations.mcp.context import with_session
from holdfast.integrations.mcp.envelope import Envelope
from holdfast.integrations.mcp.events import SessionEventStore
from holdfast.integrations.mcp.inbox import RELAYED
from holdfast.integrations.mcp.keys import HANDSHAKE_KEY, INBOX, STANDALONE
from holdfast.integrations.mcp.lease import Lease
from holdfast.integrations.mcp.live import LiveSession
from holdfast.integrations.mcp.principal import owner_of
from holdfast.model import Cursor, SessionInfo

if TYPE_CHECKING:
    from holdfast.supervisor.session import Session
    from holdfast.supervisor.supervisor import Supervisor

__all__ = ["HoldfastSessionManager"]

_log = structlog.stdlib.get_logger("holdfast.integrations.mcp")

_GIVE_UP_WITHIN_S: Final = 2.0
"""A store that is away must not hold up the process's end."""
_MAX_REQUEST_ID: Final = 256
_PRIMED_SINCE: Final = "2025-11-25"
"""Older clients cannot read an event without data."""


class _Refusal(Exception):
    """The request gets ``response`` and goes no further."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class HoldfastSessionManager(ManagerSeam):
    """Serves an MCP server's sessions from a Holdfast store, on any number of instances.

    A session is created in the store at ``initialize``, for the principal that asks. Any instance
    can serve it from then on: one that does not know it restores it, with the client's handshake.
    ``session_idle_timeout`` only ends this process's part; how long a session lives is the store's
    TTL (``ttl_s``, ``lifetime_s``; by default the store's settings). DELETE removes all of it.

    ``instance_name`` and ``lease_s``: see `Lease`. The other options are the SDK's.
    """

    def __init__(
        self,
        server: Server[Any] | MCPServer[Any],
        store: Supervisor,
        *,
        json_response: bool = False,
        retry_interval: int | None = None,
        security_settings: TransportSecuritySettings | None = None,
        session_idle_timeout: float | None = DEFAULT_SESSION_IDLE_TIMEOUT,
        max_request_body_size: int = DEFAULT_MAX_REQUEST_BODY_SIZE,
        max_sessions: int | None = DEFAULT_MAX_SESSIONS,
        instance_name: str | None = None,
        lease_s: float = 15.0,
        session_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            lowlevel(server),
            json_response=json_response,
            retry_interval=retry_interval,
            security_settings=security_settings,
            session_idle_timeout=session_idle_timeout,
            max_request_body_size=max_request_body_size,
            max_sessions=max_sessions,
        )
        self._store = store
        self.lease = Lease(store.clock, name=instance_name, lease_s=lease_s)
        self._session_options = session_options or {}
        self._live: dict[str, LiveSession] = {}
        self._cut_off: list[SessionEventStore] = []
        """Of servers that ended with the manager, with something under way."""
        self._kept: set[LiveSession] = set()
        """Those that are being kept alive at this moment."""
        self._starting = anyio.Lock()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None, None]:
        """Serve while entered, once. The store must be open."""
        try:
            async with super().run():
                assert self.tasks is not None
                self.tasks.start_soon(self._keep_alive)
                yield
        finally:
            await self._give_up()

    async def _give_up(self) -> None:
        """What was under way ends at once, for every instance; if the store is away, when the lease runs out."""
        with anyio.move_on_after(_GIVE_UP_WITHIN_S, shield=True):
            async with anyio.create_task_group() as tasks:
                for events in self._cut_off:
                    tasks.start_soon(events.end_all)

    def new_event_store(self, session: Session) -> SessionEventStore:
        """The event store of a session that is about to be served. A subclass may watch it."""
        return SessionEventStore(session, self.lease)

    async def _keep_alive(self) -> None:
        """Prolong the lease where something is under way, and so keep those sessions. None waits for another."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self.lease.pause()
                for live in list(self._live.values()):
                    if live.events.under_way and live not in self._kept:
                        self._kept.add(live)
                        tasks.start_soon(self._keep, live)

    async def _keep(self, live: LiveSession) -> None:
        try:
            await self._keep_session(live)
        finally:
            self._kept.discard(live)

    async def _keep_session(self, live: LiveSession) -> None:
        """What takes long is kept alive, and may be cancelled through another instance."""
        if live.events.requests.running:
            live.transport.hold()
        first_seq = live.events.requests.first_seq
        if first_seq is not None:
            live.events.inbox.read(first_seq)
        try:
            await live.events.keep()
        except SessionNotFound:  # deleted at another instance
            await self.discard(live.session.id, live.transport)
        except HoldfastError as exc:
            _log.warning("mcp.session_not_kept", session=live.session.id, error=repr(exc))

    # One request

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, envelope = scope["method"], None
        if method == "POST":
            body = await read_body(receive)
            if body is None:
                return
            receive, envelope = replay_body(body, receive), Envelope.of(body)
        try:
            await self._route(method, envelope, scope, receive, send)
        except _Refusal as refusal:
            await refusal.response(scope, receive, send)

    async def _route(self, method: str, envelope: Envelope | None, scope: Scope, receive: Receive, send: Send) -> None:
        session_id = Headers(scope=scope).get(MCP_SESSION_ID_HEADER)
        if session_id is not None:
            live, info = await self._find(session_id, owner_of(scope))
        elif envelope is not None and envelope.method == "initialize" and envelope.kind == "request":
            await self._open(envelope, scope, receive, send)
            return
        else:
            await self.refuse(scope, receive, send)
            return
        scope = with_session(scope, live.session)
        if method == "POST":
            if info.status == "closed":  # by a tool: its streams can still be read, but it takes no more requests
                raise _Refusal(_not_found())
            await self._post(live, envelope, scope, receive, send)
        elif method == "GET":
            await self._get(live, info, scope, receive, send)
        elif method == "DELETE":
            await self._delete(live, scope, receive, send)
        else:
            await live.transport.handle_request(scope, receive, send)

    async def _open(self, envelope: Envelope, scope: Scope, receive: Receive, send: Send) -> None:
        """A new session, which is only kept if its ``initialize`` is accepted."""
        _check_request_id(envelope)
        if self.full:
            raise _Refusal(_too_many(self.max_sessions))
        try:
            with _store_errors():
                # Where nobody logs in, the id is the only credential: 192 random bits, not a UUIDv7's 62.
                session_id = secrets.token_urlsafe(24)
                session = await self._store.create(session_id, owner=owner_of(scope), **self._session_options)
        except LimitExceeded as exc:
            raise _Refusal(_too_many(exc.limit)) from None
        watch = SendWatch(send)
        live: LiveSession | None = None
        try:
            live = await self._start(session, None)
            await self._post(live, envelope, with_session(scope, session), receive, watch)
        finally:
            if not watch.succeeded:
                with anyio.CancelScope(shield=True):
                    await self._abandon(session, live)

    async def _abandon(self, session: Session, live: LiveSession | None) -> None:
        if live is not None:
            await self.discard(session.id, live.transport)
        try:
            await session.delete()
        except HoldfastError as exc:  # its TTL will see to it
            _log.info("mcp.unopened_session_not_deleted", session=session.id, error=repr(exc))

    async def _post(
        self, live: LiveSession, envelope: Envelope | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if envelope is not None and envelope.kind == "request":
            with live.events.requests.admit(_check_request_id(envelope)):
                await live.transport.handle_request(scope, receive, send)
        elif envelope is not None and envelope.kind == "answer":
            await self._answer(live, envelope, scope, receive, send)
        else:
            if envelope is not None and envelope.method in RELAYED:
                await self._relay(live, envelope)
            await live.transport.handle_request(scope, receive, send)

    async def _answer(self, live: LiveSession, envelope: Envelope, scope: Scope, receive: Receive, send: Send) -> None:
        """To whoever asked: a handler here, or one of another instance."""
        question = str(envelope.id)
        if live.events.inbox.awaits(question):
            watch = SendWatch(send)
            await live.transport.handle_request(scope, receive, watch)
            if watch.succeeded:
                live.events.inbox.settled(question)
        elif await self._relay(live, envelope):
            await Response(status_code=202)(scope, receive, send)
        else:
            raise _Refusal(_unexpected_answer(envelope.id))

    async def _relay(self, live: LiveSession, envelope: Envelope) -> bool:
        """Leave a message for the instance that waits for it; False if no other one does."""
        message = envelope.message()
        try:
            with _store_errors():
                return message is not None and await live.events.inbox.forward(message)
        except SessionError:
            raise _Refusal(_not_found()) from None
        except LimitExceeded as exc:
            reason = f"Content Too Large: what is meant for another instance goes through the store: {exc}"
            raise _Refusal(error_response(413, INVALID_REQUEST, reason)) from None

    async def _get(self, live: LiveSession, info: SessionInfo, scope: Scope, receive: Receive, send: Send) -> None:
        """Resume a stream, or open the standalone one: which is to resume it from now."""
        headers = Headers(scope=scope)
        live.events.primes = is_version_at_least(headers.get(MCP_PROTOCOL_VERSION_HEADER, ""), _PRIMED_SINCE)
        last_event_id = headers.get(LAST_EVENT_ID_HEADER)
        if last_event_id:
            cursor = await self._check_cursor(live, last_event_id)
            live.transport.close_sse_stream(cursor.stream)  # this connection takes over
        elif live.events.tails(STANDALONE):
            raise _Refusal(error_response(409, INVALID_REQUEST, "Conflict: Only one SSE stream is allowed per session"))
        else:
            now = Cursor(live.session.incarnation, info.last_seq, STANDALONE)
            scope = with_header(scope, LAST_EVENT_ID_HEADER, str(now))
        await live.transport.handle_request(scope, receive, send)

    async def _check_cursor(self, live: LiveSession, last_event_id: str) -> Cursor:
        try:
            with _store_errors():
                return await live.events.check(last_event_id)
        except InvalidCursor as exc:
            raise _Refusal(error_response(400, INVALID_PARAMS, f"Bad Request: Last-Event-ID: {exc}")) from None
        except EventGap as exc:
            message = "Gone: events after Last-Event-ID are no longer held"
            raise _Refusal(error_response(410, INVALID_REQUEST, message, {"firstEventId": exc.first_id})) from None
        except SessionNotFound:
            raise _Refusal(_not_found()) from None

    async def _delete(self, live: LiveSession, scope: Scope, receive: Receive, send: Send) -> None:
        """The session is gone from the store before the client reads that it is."""

        async def purge() -> None:
            with _store_errors():
                await live.session.delete()

        try:
            await live.transport.handle_request(scope, receive, SendWatch(send, before=purge))
        finally:
            if live.transport.is_terminated:
                await self.discard(live.session.id, live.transport)

    # Sessions

    async def _find(self, session_id: str, owner: str | None) -> tuple[LiveSession, SessionInfo]:
        """The session as served here, restored if need be.

        Another principal's session, an expired one and one that is none of MCP's are refused alike.
        """
        live = self._live.get(session_id)
        try:
            with _store_errors():
                known = live is not None and live.transport.usable
                session = live.session if live is not None and known else await self._store.require(session_id)
                info = await session.info()
                if info.owner != owner:
                    raise _Refusal(_not_found())
                if live is None or not live.serves(session):
                    handshake = await session.get(HANDSHAKE_KEY)
                    if handshake is None:
                        raise _Refusal(_not_found())
                    live = await self._start(session, handshake)
                else:
                    await live.catch_up()
        except (SessionNotFound, InvalidInput):
            if live is not None:
                await self.discard(session_id, live.transport)
            raise _Refusal(_not_found()) from None
        return live, info

    async def _start(self, session: Session, handshake: dict[str, Any] | None) -> LiveSession:
        async with self._starting:
            live = self._live.get(session.id)
            if live is not None and live.serves(session):
                return live
            if self.full:
                raise _Refusal(_too_many(self.max_sessions))
            events = self.new_event_store(session)
            transport = self.new_transport(session.id, events)
            live = LiveSession(session, events, transport, handshake=handshake, on_end=self._ended)
            self._live[session.id] = live
            assert self.tasks is not None
            events.inbox.connect(self.tasks, transport.deliver)
            try:
                await self.start(session.id, transport, live)
            except BaseException:
                self._forget(live)
                raise
            return live

    def _ended(self, live: LiveSession) -> None:
        self._forget(live)
        if self.tasks is not None:
            self.tasks.start_soon(live.events.end_all)
        else:
            self._cut_off.append(live.events)

    def _forget(self, live: LiveSession) -> None:
        if self._live.get(live.session.id) is live:
            del self._live[live.session.id]


@contextmanager
def _store_errors() -> Generator[None, None, None]:
    """A store that cannot serve is a 503, not a crash: the client may try again."""
    try:
        yield
    except StoreError as exc:
        _log.warning("mcp.store_failed", error=repr(exc))
        raise _Refusal(error_response(503, INTERNAL_ERROR, "Service Unavailable: the session store failed")) from None


def _check_request_id(envelope: Envelope) -> RequestId:
    """A request's id, if it can name a stream."""
    request_id = envelope.id
    assert request_id is not None
    if not str(request_id) or len(str(request_id)) > _MAX_REQUEST_ID or request_id in (STANDALONE, INBOX):
        raise _Refusal(error_response(400, INVALID_REQUEST, "Bad Request: unusable JSON-RPC request id"))
    return request_id


def _not_found() -> Response:
    return error_response(404, INVALID_REQUEST, "Session not found")


def _too_many(limit: int | None) -> Response:
    _log.warning("mcp.too_many_sessions", limit=limit)
    return error_response(503, INTERNAL_ERROR, "Too many open sessions")


def _unexpected_answer(request_id: RequestId | None) -> Response:
    return error_response(
        400,
        INVALID_REQUEST,
        f"Bad Request: nobody waits for an answer to request {request_id!r:.100}: it was answered, or has ended",
    )
