"""An MCP server whose sessions survive kill -9: run it, connect, kill it, run it again.

pip install 'holdfast[mcp]'
python examples/mcp_server.py
"""

from __future__ import annotations

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer

import holdfast
from holdfast.integrations.mcp import current_session, streamable_http_app

server = MCPServer("notes")


@server.tool()
async def note(text: str, ctx: Context) -> int:
    """Keep a note in this session; how many there are now."""
    notes = await current_session(ctx).update("notes", lambda notes: [*notes, text], [])
    return len(notes)


@server.tool()
async def count_down(start: int, ctx: Context) -> str:
    """Count down once a second, on from where an interrupted call had got to."""
    session = current_session(ctx)
    for left in range(await session.get("left", start), 0, -1):
        await ctx.report_progress(start - left, start, f"{left} left")
        await anyio.sleep(1)
        await session.set("left", left - 1)
    await session.remove("left")
    return "lift-off"


store = holdfast.open("sqlite:///mcp-sessions.db")
app = streamable_http_app(server, store, retry_interval=1_000)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000)
