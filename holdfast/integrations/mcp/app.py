"""An MCP server with its sessions in Holdfast, as an ASGI app."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from mcp.server import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http_manager import (
    DEFAULT_MAX_REQUEST_BODY_SIZE,
    DEFAULT_MAX_SESSIONS,
    DEFAULT_SESSION_IDLE_TIMEOUT,
)
from starlette.applications import Starlette

from holdfast.integrations.mcp._sdk import lowlevel, put_manager
from holdfast.integrations.mcp.manager import HoldfastSessionManager

if TYPE_CHECKING:
    from holdfast.supervisor.supervisor import Supervisor

__all__ = ["streamable_http_app"]


def streamable_http_app(
    server: Server[Any] | MCPServer[Any],
    store: Supervisor,
    *,
    json_response: bool = False,
    retry_interval: int | None = None,
    session_idle_timeout: float | None = DEFAULT_SESSION_IDLE_TIMEOUT,
    max_request_body_size: int = DEFAULT_MAX_REQUEST_BODY_SIZE,
    max_sessions: int | None = DEFAULT_MAX_SESSIONS,
    instance_name: str | None = None,
    lease_s: float = 15.0,
    session_options: dict[str, Any] | None = None,
    **sdk_options: Any,
) -> Starlette:
    """The app that ``server.streamable_http_app()`` makes, with a `HoldfastSessionManager` in it.

    The app's lifespan opens ``store`` if it is not open, and closes it then. The named options are
    those of `HoldfastSessionManager`; ``sdk_options`` (paths, host, transport security,
    authentication …) are passed on to the SDK.
    """
    app = server.streamable_http_app(**sdk_options)
    inner = lowlevel(server)
    manager = HoldfastSessionManager(
        server,
        store,
        json_response=json_response,
        retry_interval=retry_interval,
        security_settings=inner.session_manager.security_settings,
        session_idle_timeout=session_idle_timeout,
        max_request_body_size=max_request_body_size,
        max_sessions=max_sessions,
        instance_name=instance_name,
        lease_s=lease_s,
        session_options=session_options,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        async with nullcontext() if store.is_open else store, manager.run():
            yield

    put_manager(app, inner, manager)
    app.router.lifespan_context = lifespan
    return app
