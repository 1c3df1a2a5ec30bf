"""An MCP server to test with, whose slow tool goes on only when the test lets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import ElicitRequestedSchema

from holdfast.integrations.mcp import current_session
from holdfast.testing import ManualClock
from tests.integrations.harness import instances


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On trio, httpx2 leaves generators behind when a response is closed in the middle."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:Async generator 'tests.integrations:ResourceWarning"))


class Gate:
    """A tool passes it as often as the test says."""

    def __init__(self) -> None:
        self._semaphore = anyio.Semaphore(0)
        self.started = 0

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self._semaphore.release()

    async def passed(self) -> None:
        await self._semaphore.acquire()


@pytest.fixture(autouse=True)
def no_patience_at_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that are cancelled with their server try for seconds to say so to nobody."""
    for limit in ("_SHUTDOWN_WRITE_TIMEOUT", "_ABANDON_WRITE_TIMEOUT"):
        monkeypatch.setattr(f"mcp.shared.jsonrpc_dispatcher.{limit}", 0.01)


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
async def server(gate: Gate) -> MCPServer[Any]:
    server = MCPServer[Any]("tested", log_level="ERROR")

    @server.tool()
    async def put(key: str, value: int, ctx: Context[Any, Any]) -> int:
        await current_session(ctx).set(key, value)
        return value

    @server.tool()
    async def state(ctx: Context[Any, Any]) -> dict[str, Any]:
        return await current_session(ctx).state()

    @server.tool()
    async def steps(count: int, ctx: Context[Any, Any]) -> str:
        gate.started += 1
        for step in range(1, count + 1):
            await gate.passed()
            await ctx.report_progress(step, count, f"step {step}")
        return "finished"

    @server.tool()
    async def touch_elsewhere(ctx: Context[Any, Any]) -> str:
        """A notification that belongs to no request."""
        await ctx.session.send_resource_updated("file:///elsewhere")
        return "done"

    @server.tool()
    async def large(ctx: Context[Any, Any]) -> str:
        await ctx.report_progress(1, 1, "x" * 5_000)
        return "y" * 5_000

    @server.tool()
    async def hang_up(ctx: Context[Any, Any]) -> str:
        """Close the connection in mid-call, twice, as a server does that wants to be polled."""
        close = ctx.request_context.close_sse_stream
        assert close is not None
        for step in (1, 2):
            await ctx.report_progress(step, 2, f"before {step}")
            await close()
            await gate.passed()
        return "finished"

    @server.tool()
    async def ask(ctx: Context[Any, Any]) -> str:
        schema: ElicitRequestedSchema = {"type": "object", "properties": {"name": {"type": "string"}}}
        answer = await ctx.request_context.session.elicit_form(
            "Who?", schema, related_request_id=ctx.request_context.request_id
        )
        return str(answer.content)

    return server


@pytest.fixture
async def start(server: MCPServer[Any], clock: ManualClock) -> AsyncIterator[Any]:
    """Starts an instance; all share one store."""
    async with instances(server, clock) as starter:
        yield starter
