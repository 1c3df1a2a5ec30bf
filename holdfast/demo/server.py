"""The demo's MCP server: a process of its own, so that it can be killed.

Every event whose storing has been acknowledged is noted in a ledger, a plain file beside the store:
what is in it must reach the client.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from mcp_types import JSONRPCMessage
from starlette.applications import Starlette
from starlette.routing import Route

import holdfast
from holdfast.demo.ledger import entry
from holdfast.integrations.mcp import HoldfastSessionManager, SessionEventStore, current_session

__all__ = ["PATH", "VOLUMES", "app"]

PATH: Final = "/mcp"
VOLUMES: Final = 40
_STEP_S: Final = 0.05
_DONE: Final = "survey.done"
_STREAM: Final = "survey"

server = MCPServer[Any]("holdfast-demo", log_level="WARNING")


@server.tool()
async def remember(name: str, value: str, ctx: Context[Any, Any]) -> None:
    """Keep a fact in the session's state."""
    await current_session(ctx).set(name, value)


@server.tool()
async def recall(ctx: Context[Any, Any]) -> dict[str, Any]:
    """All facts, and which volumes were surveyed, in order."""
    session = current_session(ctx)
    state = await session.state()
    state.pop(_DONE, None)
    return {"facts": state, "volumes": [event.data async for event in session.replay(stream=_STREAM)]}


@server.tool()
async def survey(ctx: Context[Any, Any]) -> dict[str, int]:
    """Go through a library, volume by volume, on from where an earlier call had to stop."""
    session = current_session(ctx)
    start = await session.get(_DONE, 0)
    for volume in range(start + 1, VOLUMES + 1):
        await anyio.sleep(_STEP_S)
        async with session.unit() as unit:  # the checkpoint, and the work that it stands for
            unit.set(_DONE, volume)
            unit.append(volume, stream=_STREAM)
        await ctx.report_progress(volume, VOLUMES, f"volume {volume}")
    return {"from": start + 1, "to": VOLUMES}


class _NotedEventStore(SessionEventStore):
    """Notes what has been acknowledged, after it has been."""

    ledger: int = -1

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        event_id = await super().store_event(stream_id, message)
        if message is not None:
            data = message.model_dump(by_alias=True, mode="json", exclude_unset=True)
            os.write(self.ledger, entry(event_id, data))
        return event_id


class _NotingManager(HoldfastSessionManager):
    ledger: int = -1

    def new_event_store(self, session: holdfast.Session) -> SessionEventStore:
        events = _NotedEventStore(session, self.lease)
        events.ledger = self.ledger
        return events


def app(store: holdfast.Supervisor, ledger: Path, *, instance_name: str | None, lease_s: float) -> Starlette:
    """One instance, which notes in ``ledger`` what it has acknowledged. ``instance_name``, ``lease_s``: see `Lease`."""
    manager = _NotingManager(server, store, retry_interval=200, instance_name=instance_name, lease_s=lease_s)
    manager.ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        async with store, manager.run():
            yield

    return Starlette(routes=[Route(PATH, StreamableHTTPASGIApp(manager))], lifespan=lifespan)
