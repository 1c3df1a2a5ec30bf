"""Several instances on real stores, in one process and in processes of their own, one of which is killed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.lowlevel
import httpx2
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import MCPServer
from mcp_types import ElicitResult

import holdfast
from holdfast.demo.process import ServerProcess
from holdfast.demo.server import VOLUMES
from holdfast.integrations.mcp import REQUEST_LOST, HoldfastSessionManager
from tests.integrations.asgi_client import in_process
from tests.integrations.harness import (
    PATH,
    Endpoint,
    Events,
    call,
    headers,
    initialize,
    message,
    refused_get,
    resumed,
    tool_call,
    user,
)
from tests.integrations.instances import add_tools, answer, cancellation
from tests.integrations.test_streams import begin, progress
from tests.servers.postgres import new_schema, shared_url

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(server: MCPServer[Any], gate: Any) -> MCPServer[Any]:
    add_tools(server, gate)
    return server


# Real stores


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sessions.db'}"
    return shared_url(schema=new_schema())


class Peer:
    """One instance in this process, with a store of its own."""

    def __init__(self, server: Any, url: str, **options: Any) -> None:
        self.store = holdfast.open(url)
        self.manager = HoldfastSessionManager(server, self.store, **options)

    def client(self, principal: Any = None) -> Any:
        return in_process(Endpoint(self.manager), user=principal)


@asynccontextmanager
async def peers(server: Any, url: str, **options: Any) -> AsyncIterator[tuple[Peer, Peer]]:
    pair = Peer(server, url, **options), Peer(server, url, **options)
    async with AsyncExitStack() as stack:
        for peer in pair:
            await stack.enter_async_context(peer.store)
            await stack.enter_async_context(peer.manager.run())
        yield pair


async def test_the_owner_is_checked_on_every_instance(server: Any, store_url: str) -> None:
    async with peers(server, store_url) as (a, b), a.client(user("app", "ann")) as ann:
        session_id = await initialize(ann)
        for peer in (a, b, a, b):
            for principal in (None, user("app", "bob"), user("other", "ann")):
                async with peer.client(principal) as http:
                    assert (await refused_get(http, session_id)).status_code == 404
                    response = await http.post(PATH, json=message("ping", id=1), headers=headers(session_id))
                    assert response.status_code == 404
                    assert (await http.delete(PATH, headers=headers(session_id))).status_code == 404
            async with peer.client(user("app", "ann")) as http:
                assert len(await call(http, session_id, message("ping", id=1))) == 2


async def test_delete_at_one_ends_all_of_it_at_the_other(server: Any, store_url: str, gate: Any) -> None:
    async with peers(server, store_url, lease_s=3.0) as (a, b), a.client() as to_a, b.client() as to_b:
        session_id = await initialize(to_a)
        seen = await begin(to_a, session_id, gate, 1, of=3)
        async with resumed(to_a, session_id, None) as standalone, resumed(to_a, session_id, seen[-1].id) as tail:
            assert (await to_b.delete(PATH, headers=headers(session_id))).status_code == 200
            with anyio.fail_after(10):
                assert await standalone.rest() == []
                assert await tail.rest() == []
                while session_id in a.manager._live:  # the tool, too
                    await anyio.sleep(0.01)
        for http in (to_a, to_b):
            assert (await refused_get(http, session_id)).status_code == 404


async def test_a_tool_on_one_instance_is_followed_live_at_the_other(server: Any, store_url: str, gate: Any) -> None:
    async with peers(server, store_url) as (a, b), a.client() as to_a, b.client() as to_b:
        session_id = await initialize(to_a)
        seen = await begin(to_a, session_id, gate, 1, of=6)
        with anyio.fail_after(20):
            async with resumed(to_b, session_id, seen[-1].id) as tail:
                for step in range(2, 7):
                    gate.let(1)
                    assert progress([await anext(tail)]) == [step]
                (final,) = await tail.rest()
    assert final.data["result"]["structuredContent"] == {"result": "finished"}


async def test_answers_and_cancellations_find_their_instance(server: Any, store_url: str, gate: Any) -> None:
    async with peers(server, store_url, lease_s=3.0) as (a, b), a.client() as to_a, b.client() as to_b:
        session_id = await initialize(to_a)
        with anyio.fail_after(20):
            async with to_a.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
                events = Events(response)
                _, question = await events.take(2)
                assert await answer(to_b, session_id, question) == 202
                (final,) = await events.rest()
            assert "Ada" in final.data["result"]["structuredContent"]["result"]
            body = tool_call("steps", 2, progress=True, count=1)
            async with to_a.stream("POST", PATH, json=body, headers=headers(session_id)) as response:
                events = Events(response)
                await events.take(1)
                await to_b.post(PATH, json=cancellation(2), headers=headers(session_id))
                (final,) = await events.rest()
    assert "error" in final.data


class RoundRobinTransport(httpx2.AsyncBaseTransport):
    """Each request to the next client."""

    def __init__(self, clients: Sequence[httpx2.AsyncClient]) -> None:
        self._turns = itertools.cycle(clients)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await next(self._turns)._transport.handle_async_request(request)


async def test_the_sdks_client_is_asked_and_answers_wherever_its_requests_go(server: Any, store_url: str) -> None:
    async def on_elicit(_context: Any, _params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "Ada"})

    async with peers(server, store_url) as (a, b), a.client() as to_a, b.client() as to_b:
        transport = RoundRobinTransport([to_a, to_b])
        async with (
            httpx2.AsyncClient(transport=transport, timeout=20) as http,
            streamable_http_client("http://127.0.0.1:1/mcp", http_client=http) as (read, write),
            ClientSession(read, write, elicitation_callback=on_elicit) as client,
        ):
            with anyio.fail_after(20):
                await client.initialize()
                for tool in ("ask", "ask_apart", "ask", "ask_twice", "ask_apart"):
                    result = await client.call_tool(tool, {})
                    assert "Ada" in str(result.structured_content), result


# Server processes


@asynccontextmanager
async def processes(folder: Path, url: str) -> AsyncIterator[list[ServerProcess]]:
    servers = [ServerProcess(folder, url, number=number, lease_s=3.0) for number in (1, 2)]
    async with AsyncExitStack() as stack:
        async with anyio.create_task_group() as tasks:
            for server in servers:
                tasks.start_soon(stack.enter_async_context, server.running())
        yield servers


def test_a_call_that_dies_with_its_instance_ends_at_the_other_and_goes_on_there(tmp_path: Path, store_url: str) -> None:
    """In two real processes: state, replay, live tail, an honest end, and the tool's own checkpoint."""

    async def story() -> None:
        async with processes(tmp_path, store_url) as (a, b):
            async with httpx2.AsyncClient(base_url=a.url, timeout=30) as to_a:
                async with httpx2.AsyncClient(base_url=b.url, timeout=30) as to_b:
                    await tell(a, to_a, to_b)

    async def tell(a: ServerProcess, to_a: httpx2.AsyncClient, to_b: httpx2.AsyncClient) -> None:
        session_id = await initialize(to_a)
        await call(to_a, session_id, tool_call("remember", 1, name="owner", value="Ada"))
        recalled = (await call(to_b, session_id, tool_call("recall", 2)))[-1].data["result"]["structuredContent"]
        assert recalled == {"facts": {"owner": "Ada"}, "volumes": []}
        body = tool_call("survey", 3, progress=True)
        async with to_a.stream("POST", PATH, json=body, headers=headers(session_id)) as response:
            seen = await Events(response).take(4)
        async with resumed(to_b, session_id, seen[2].id) as tail:
            live = await tail.take(8)
            assert progress(live) == list(range(3, 11))
            await a.kill()
            rest = await tail.rest()
        assert rest[-1].data["error"]["code"] == REQUEST_LOST
        told = progress([*seen, *live[1:], *rest])
        assert told == list(range(1, told[-1] + 1))
        again = await call(to_b, session_id, tool_call("survey", 4, progress=True))
        assert again[-1].data["result"]["structuredContent"] == {"from": progress(again)[0], "to": VOLUMES}
        assert progress(again)[0] in (told[-1] + 1, told[-1] + 2)  # the last checkpoint may be a step ahead
        recalled = (await call(to_b, session_id, tool_call("recall", 5)))[-1].data["result"]["structuredContent"]
        assert recalled["volumes"] == list(range(1, VOLUMES + 1))

    anyio.run(story)
