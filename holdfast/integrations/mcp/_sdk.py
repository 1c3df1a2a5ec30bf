"""All use of the SDK's private parts. Nothing else in Holdfast touches them.

What it relies on, in mcp 2.3 (``tests/integrations/test_sdk_seam.py`` fails where this changes):

- `StreamableHTTPSessionManager._handle_stateful_request(scope, receive, send)` serves every request
  of an initialize-era client; its own version opens a session for one without a session id and
  discards it again unless it is an ``initialize``.
- The manager keeps its transports in ``_server_instances``, and runs servers in ``_task_group`` with
  ``_lifespan_state``.
- A transport turns an `EventMessage` into an SSE event by ``_create_event_data``, and has its options
  in ``_retry_interval`` and ``_idle_timeout``, its state in ``_terminated`` and ``_requests_in_flight``.
- A transport hands what a client posts to its server by ``_read_stream_writer``.
- A transport stores a priming event before it dispatches a request, stores every outgoing message
  before it sends it, and answers a GET with ``Last-Event-ID`` by nothing but
  `EventStore.replay_events_after` when that returns None.
- `JSONRPCDispatcher` counts its requests' ids in ``_next_id``.
- The app of ``streamable_http_app`` holds its manager in a `StreamableHTTPASGIApp`, perhaps inside
  a `RequireAuthMiddleware`, and ``Server._session_manager``.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import anyio.abc
import structlog
from mcp.server import Server
from mcp.server.auth.middleware.bearer_auth import RequireAuthMiddleware
from mcp.server.connection import Connection
from mcp.server.mcpserver import MCPServer
from mcp.server.runner import serve_connection
from mcp.server.streamable_http import EventMessage, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.shared.dispatcher import DispatchContext, OnNotify, OnNotifyIntercept, OnRequest
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import JSONRPCMessage
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from holdfast.integrations.mcp.events import PRIMING_MESSAGE, SessionEventStore

__all__ = ["DurableTransport", "ManagerSeam", "ServerHooks", "lowlevel", "put_manager"]

_log = structlog.stdlib.get_logger("holdfast.integrations.mcp")

_MAX_FIRST_ID: Final = 1 << 52


class DurableTransport(StreamableHTTPServerTransport):
    """The SDK's transport, whose streams can also be closed while they are replayed."""

    def __init__(self, session_id: str, events: SessionEventStore, **options: Any) -> None:
        super().__init__(mcp_session_id=session_id, event_store=events, **options)
        self._tails = events

    def _create_event_data(self, event_message: EventMessage) -> dict[str, Any]:
        if event_message.message is not PRIMING_MESSAGE:
            return super()._create_event_data(event_message)
        data: dict[str, Any] = {"id": event_message.event_id, "data": ""}
        if self._retry_interval is not None:
            data["retry"] = self._retry_interval
        return data

    def close_sse_stream(self, request_id: int | str) -> None:
        super().close_sse_stream(request_id)
        self._tails.close_tail(str(request_id))

    async def deliver(self, message: JSONRPCMessage) -> None:
        """Hand a message of the client's to the session's server, as if it had come in here.

        Raises: `anyio.ClosedResourceError`, `anyio.BrokenResourceError` once the server has ended.
        """
        if self._read_stream_writer is None:
            raise anyio.ClosedResourceError
        await self._read_stream_writer.send(SessionMessage(message))

    @property
    def usable(self) -> bool:
        """It has not ended, nor is it about to."""
        return not self._terminated and not (self.idle_scope is not None and self.idle_scope.cancel_called)

    def hold(self) -> None:
        """Put off the idle timeout: work goes on without a connection."""
        if self.idle_scope is not None and self._idle_timeout is not None and not self._requests_in_flight:
            self.idle_scope.deadline = anyio.current_time() + self._idle_timeout


class ServerHooks:
    """What the manager wants to know of a session's server. The defaults do nothing."""

    def connected(self, connection: Connection) -> None:
        """Before the first message: the place to restore a handshake."""

    def request_begins(self, request_id: int | str, method: str) -> None:
        """Just before its handler."""

    async def request_done(self, connection: Connection, method: str) -> None:
        """Its handler has returned; the response is not sent yet."""

    async def notification_done(self, connection: Connection, method: str) -> None: ...

    def ended(self) -> None:
        """The server's task is over: deleted, idle, failed, or shut down."""


@dataclass(frozen=True)
class _Handlers:
    """A connection's handlers with the hooks around them."""

    hooks: ServerHooks
    connection: Connection
    request: OnRequest
    notify: OnNotify

    async def on_request(
        self, dctx: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if dctx.request_id is not None:
            self.hooks.request_begins(dctx.request_id, method)
        result = await self.request(dctx, method, params)
        await self.hooks.request_done(self.connection, method)
        return result

    async def on_notify(
        self, dctx: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> None:
        await self.notify(dctx, method, params)
        await self.hooks.notification_done(self.connection, method)


class _Dispatcher(JSONRPCDispatcher[TransportContext]):
    """The SDK's dispatcher with hooks, and with request ids that other processes do not use.

    Every process that restores a session starts a dispatcher of its own. Were they all to count
    from 1, a late answer to one's request could be taken for the answer to another's.
    """

    def __init__(self, read_stream: Any, write_stream: Any, hooks: ServerHooks) -> None:
        super().__init__(read_stream, write_stream, inline_methods=frozenset({"initialize"}))
        self._next_id = secrets.randbelow(_MAX_FIRST_ID)
        self._hooks = hooks
        self.connection: Connection | None = None

    async def run(
        self,
        on_request: OnRequest,
        on_notify: OnNotify,
        on_notify_intercept: OnNotifyIntercept | None = None,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        assert self.connection is not None
        handlers = _Handlers(self._hooks, self.connection, on_request, on_notify)
        await super().run(handlers.on_request, handlers.on_notify, on_notify_intercept, task_status=task_status)


class ManagerSeam(StreamableHTTPSessionManager):
    """The SDK's manager, opened for one that finds its sessions elsewhere."""

    _task_group: anyio.abc.TaskGroup | None  # type: ignore[assignment]  # the SDK does not say

    @abstractmethod
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of an initialize-era client."""

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.serve(scope, receive, send)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the SDK say what is wrong with a request that has no session and does not open one."""
        await super()._handle_stateful_request(scope, receive, send)

    @property
    def full(self) -> bool:
        return self.max_sessions is not None and len(self._server_instances) >= self.max_sessions

    @property
    def tasks(self) -> anyio.abc.TaskGroup | None:
        """Where the sessions' servers run; None while the manager does not."""
        return self._task_group

    def new_transport(self, session_id: str, events: SessionEventStore) -> DurableTransport:
        return DurableTransport(
            session_id,
            events,
            is_json_response_enabled=self.json_response,
            security_settings=self.security_settings,
            retry_interval=self.retry_interval,
            idle_timeout=self.session_idle_timeout,
        )

    async def start(self, session_id: str, transport: DurableTransport, hooks: ServerHooks) -> None:
        """Run a server for the transport until it ends. Returns when it can be used."""
        tasks = self.tasks
        assert tasks is not None
        self._server_instances[session_id] = transport
        try:
            await tasks.start(self._run_server, session_id, transport, hooks)
        except BaseException:
            await self.discard(session_id, transport)
            raise

    async def _run_server(
        self,
        session_id: str,
        transport: DurableTransport,
        hooks: ServerHooks,
        *,
        task_status: anyio.abc.TaskStatus[None],
    ) -> None:
        async with transport.connect() as (read_stream, write_stream):
            dispatcher = _Dispatcher(read_stream, write_stream, hooks)
            connection = Connection.for_loop(dispatcher, session_id=session_id)
            dispatcher.connection = connection
            hooks.connected(connection)
            task_status.started()
            try:
                with transport.idle_scope or anyio.CancelScope():
                    await serve_connection(
                        self.app, dispatcher, connection=connection, lifespan_state=self._lifespan_state
                    )
            except Exception as exc:
                _log.error("mcp.server_failed", session=session_id, exc_info=exc)
            finally:
                await self.discard(session_id, transport)
                hooks.ended()

    async def discard(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        """Forget the transport and end its streams. The stored session is not touched."""
        if self._server_instances.get(session_id) is transport:
            del self._server_instances[session_id]
        if not transport.is_terminated:
            with anyio.CancelScope(shield=True):
                await transport.terminate()


def lowlevel(server: Server[Any] | MCPServer[Any]) -> Server[Any]:
    """The low-level server inside the high-level one."""
    return server._lowlevel_server if isinstance(server, MCPServer) else server  # noqa: SLF001


def put_manager(app: Starlette, server: Server[Any], manager: StreamableHTTPSessionManager) -> None:
    """Make the app of ``streamable_http_app`` serve from ``manager``."""
    server._session_manager = manager  # noqa: SLF001
    for route in app.routes:
        endpoint = route.endpoint if isinstance(route, Route) else None
        if isinstance(endpoint, RequireAuthMiddleware):
            endpoint = endpoint.app
        if isinstance(endpoint, StreamableHTTPASGIApp):
            endpoint.session_manager = manager
            return
    raise RuntimeError("the SDK's app has no streamable HTTP endpoint: this version of mcp is not supported")
