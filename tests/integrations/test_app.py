"""The app that users make in three lines, and the session that their tools get."""

from __future__ import annotations

import runpy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server import Server, ServerRequestContext
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolRequestParams, CallToolResult, TextContent
from starlette.applications import Starlette

import holdfast
from holdfast.errors import InvalidInput, StoreClosed
from holdfast.integrations.mcp import current_session, streamable_http_app
from tests.integrations.asgi_client import in_process
from tests.integrations.harness import INITIALIZE, PATH, call, headers, initialize, message, resumed, tool_call
from tests.integrations.test_streams import begin, progress

EXAMPLE = Path(__file__).parents[2] / "examples" / "mcp_server.py"

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    async with app.router.lifespan_context(app), in_process(app) as http:
        yield http


async def test_a_high_level_server_in_three_lines(server: MCPServer[Any], tmp_path: Path) -> None:
    store = holdfast.open(f"sqlite:///{tmp_path / 'sessions.db'}")
    app = streamable_http_app(server, store)
    async with (
        serving(app) as http,
        streamable_http_client("http://127.0.0.1:1/mcp", http_client=http) as (read, write),
        ClientSession(read, write) as client,
    ):
        await client.initialize()
        await client.call_tool("put", {"key": "a", "value": 3})
        result = await client.call_tool("state", {})
    assert result.structured_content == {"a": 3}
    with pytest.raises(StoreClosed):
        await store.count()


async def test_a_low_level_server_too(tmp_path: Path) -> None:
    async def on_call_tool(ctx: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        count = await current_session(ctx).update("calls", lambda calls: calls + 1, 0)
        return CallToolResult(content=[TextContent(type="text", text=str(count))])

    app = streamable_http_app(Server("low", on_call_tool=on_call_tool), holdfast.open("memory://"))
    async with serving(app) as http:
        session_id = await initialize(http)
        for number in (1, 2):
            events = await call(http, session_id, tool_call("any", number))
            assert events[-1].data["result"]["content"][0]["text"] == str(number)


async def test_a_store_that_is_open_already_stays_open(server: MCPServer[Any]) -> None:
    async with holdfast.open("memory://") as store:
        async with serving(streamable_http_app(server, store)) as http:
            session_id = await initialize(http)
        assert await store.get(session_id) is not None


async def test_two_servers_on_one_sqlite_file(server: MCPServer[Any], gate: Any, tmp_path: Path) -> None:
    """A tool runs on one; its client, come back to the other, follows it live."""
    url = f"sqlite:///{tmp_path / 'sessions.db'}"
    a, b = (streamable_http_app(server, holdfast.open(url)) for _ in range(2))
    async with serving(a) as to_a, serving(b) as to_b:
        session_id = await initialize(to_a)
        seen = await begin(to_a, session_id, gate, 1, of=3)
        async with resumed(to_b, session_id, seen[-1].id) as events:
            gate.let(1)
            assert progress([await anext(events)]) == [2]
            gate.let(1)
            rest = await events.rest()
    assert progress(rest) == [3]
    assert rest[-1].data["result"]["structuredContent"] == {"result": "finished"}


async def test_the_sdks_options_are_passed_on(server: MCPServer[Any]) -> None:
    app = streamable_http_app(server, holdfast.open("memory://"), streamable_http_path="/other", json_response=True)
    async with serving(app) as http:
        assert (await http.post(PATH, json={})).status_code == 404
        response = await http.post("/other", json=message("initialize", INITIALIZE, 1), headers=headers())
        assert response.json()["result"]["serverInfo"]["name"] == "tested"
        assert response.headers["mcp-session-id"]
        foreign = await http.post("/other", json={}, headers=headers() | {"host": "evil.example"})
        assert foreign.status_code == 421


async def test_authenticated_clients_own_their_sessions() -> None:
    class Verifier:
        async def verify_token(self, token: str) -> AccessToken | None:
            return AccessToken(token=token, client_id="app", scopes=[], subject=token) if token != "bad" else None

    url: Any = "https://auth.example"
    server = MCPServer[Any](
        "private",
        log_level="ERROR",
        token_verifier=Verifier(),
        auth=AuthSettings(issuer_url=url, resource_server_url=url, validate_token_resource=False),
    )
    async with holdfast.open("memory://") as store, serving(streamable_http_app(server, store)) as http:
        http.headers["authorization"] = "Bearer alice"
        session_id = await initialize(http)
        assert (await (await store.require(session_id)).info()).owner == '["app",null,"alice"]'
        assert len(await call(http, session_id, message("ping", id=1))) == 2
        http.headers["authorization"] = "Bearer bob"
        response = await http.post(PATH, json=message("ping", id=2), headers=headers(session_id))
        assert response.status_code == 404
        http.headers["authorization"] = "Bearer bad"
        response = await http.post(PATH, json=message("ping", id=3), headers=headers(session_id))
        assert response.status_code == 401


async def test_clients_of_the_newest_protocol_are_served_without_sessions(
    server: MCPServer[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with holdfast.open("memory://") as store, serving(streamable_http_app(server, store)) as http:
        before = await store.count()
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "new", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        newest = headers() | {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list"}
        response = await http.post(PATH, json=message("tools/list", {"_meta": meta}, 1), headers=newest)
        assert response.status_code == 200, response.text
        assert "tools" in response.text
        newest |= {"mcp-method": "tools/call", "mcp-name": "state"}
        body = message("tools/call", {"name": "state", "arguments": {}, "_meta": meta}, 2)
        response = await http.post(PATH, json=body, headers=newest)
        assert '"isError":true' in response.text
        assert "no Holdfast session" in caplog.text
        assert await store.count() == before


async def test_tools_do_not_see_or_clear_the_adapters_own_keys(start: Any, server: MCPServer[Any]) -> None:
    seen: list[Any] = []

    @server.tool()
    async def wipe(ctx: Context[Any, Any]) -> int:
        session = current_session(ctx)
        seen.append((await session.keys(), await session.state()))
        return await session.clear()

    first = await start()
    session_id = await initialize(first.http)
    await call(first.http, session_id, tool_call("put", 1, key="a", value=1))
    events = await call(first.http, session_id, tool_call("wipe", 2))
    assert seen == [(["a"], {"a": 1})]
    assert events[-1].data["result"]["structuredContent"] == {"result": 1}
    await first.kill()
    second = await start()
    events = await call(second.http, session_id, tool_call("state", 3))
    assert events[-1].data["result"]["structuredContent"] == {}


async def test_a_context_without_a_session_says_so() -> None:
    ctx = ServerRequestContext[Any, Any](
        session=None,  # type: ignore[arg-type]
        lifespan_context={},
        protocol_version="2025-11-25",
        method="tools/call",
    )
    with pytest.raises(InvalidInput, match="no Holdfast session"):
        current_session(ctx)


async def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):  # a second run finds the session again
        example = runpy.run_path(str(EXAMPLE))
        async with serving(example["app"]) as http:
            if number == 1:
                session_id = await initialize(http)
            events = await call(http, session_id, tool_call("note", number, text="remember"))
            assert events[-1].data["result"]["structuredContent"] == {"result": number}
