"""What the tests of several instances share: tools that ask, and what a client sends to whichever instance."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import httpx2
import pytest
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import ElicitRequestedSchema

from holdfast.errors import InvalidInput
from holdfast.integrations.mcp import current_session
from tests.integrations.harness import (
    PATH,
    headers,
    message,
)

__all__ = ["add_tools", "answer", "cancellation"]

SCHEMA: ElicitRequestedSchema = {"type": "object", "properties": {"name": {"type": "string"}}}


def add_tools(server: MCPServer[Any], gate: Any) -> None:
    @server.tool()
    async def ask_apart(ctx: Context[Any, Any]) -> str:
        """A question that belongs to no request's stream."""
        return str((await ctx.request_context.session.elicit_form("Who?", SCHEMA)).content)

    @server.tool()
    async def ask_twice(ctx: Context[Any, Any]) -> list[str]:
        found = []
        for _ in range(2):
            request_id = ctx.request_context.request_id
            answer = await ctx.request_context.session.elicit_form("Who?", SCHEMA, related_request_id=request_id)
            found.append(str(answer.content))
        return found

    @server.tool()
    async def give_up(ctx: Context[Any, Any]) -> str:
        with anyio.move_on_after(0.01):
            await ctx.request_context.session.elicit_form(
                "Who?", SCHEMA, related_request_id=ctx.request_context.request_id
            )
        await gate.passed()
        return "gave up"

    @server.tool()
    async def start_over(ctx: Context[Any, Any]) -> int:
        async with current_session(ctx).unit() as unit:
            unit.set("old", 1)
            unit.clear()
            unit.set("new", 2)
            unit.append({"cleared": True}, stream="own")
        with pytest.raises(InvalidInput):
            unit.set("late", 3)
        return len(unit.events)


async def answer(http: httpx2.AsyncClient, session_id: str, question: Any, name: str = "Ada") -> int:
    """POST the answer to a question; the status."""
    body = message(None, id=question.data["id"], result={"action": "accept", "content": {"name": name}})
    return (await http.post(PATH, json=body, headers=headers(session_id))).status_code


def cancellation(request_id: Any) -> Any:
    return message("notifications/cancelled", {"requestId": request_id, "reason": "changed my mind"})
