"""Several instances on one store: whichever a request reaches, it gets the same answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.lowlevel
import httpx2
import msgspec
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import ElicitRequestedSchema, ElicitResult

import holdfast
from holdfast.config import Limits
from holdfast.demo.process import ServerProcess
from holdfast.demo.server import VOLUMES
from holdfast.integrations.mcp import REQUEST_LOST, HoldfastSessionManager, current_session
from holdfast.integrations.mcp.keys import HANDSHAKE_KEY, INBOX, REQUEST_KEY
from holdfast.model import Cursor
from holdfast.testing import FaultKind
from tests.integrations.asgi_client import in_process
from tests.integrations.harness import (
    CONFIG,
    INITIALIZE,
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
from tests.integrations.test_streams import begin, progress
from tests.servers.postgres import new_schema, shared_url

pytestmark = pytest.mark.anyio

LEASE_S = 15.0
SCHEMA: ElicitRequestedSchema = {"type": "object", "properties": {"name": {"type": "string"}}}


@pytest.fixture
async def server(server: MCPServer[Any], gate: Any) -> MCPServer[Any]:
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
        return len(unit.events)

    return server


# Answers


async def answer(http: httpx2.AsyncClient, session_id: str, question: Any, name: str = "Ada") -> int:
    """POST the answer to a question; the status."""
    body = message(None, id=question.data["id"], result={"action": "accept", "content": {"name": name}})
    return (await http.post(PATH, json=body, headers=headers(session_id))).status_code


async def test_an_answer_at_another_instance_reaches_the_one_that_asked(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        assert await answer(b.http, session_id, question) == 202
        with anyio.fail_after(5):
            (final,) = await events.rest()
    assert "Ada" in final.data["result"]["structuredContent"]["result"]


async def test_what_is_no_message_is_passed_over(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        session = await b.store.require(session_id)
        await session.append_many([{"nonsense": 1}, [], None], stream=INBOX)
        assert await answer(b.http, session_id, question) == 202
        with anyio.fail_after(5):
            (final,) = await events.rest()
    assert "Ada" in final.data["result"]["structuredContent"]["result"]


async def test_an_error_is_an_answer_too(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        body = {"jsonrpc": "2.0", "id": question.data["id"], "error": {"code": -1, "message": "nobody is here"}}
        assert (await b.http.post(PATH, json=body, headers=headers(session_id))).status_code == 202
        with anyio.fail_after(5):
            (final,) = await events.rest()
    assert "nobody is here" in json.dumps(final.data)


async def test_a_question_asked_after_another_is_answered_elsewhere_too(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask_twice", 1), headers=headers(session_id)) as response:
        events = Events(response)
        await events.take(1)
        for name in ("Ada", "Bob"):
            with anyio.fail_after(5):
                (question,) = await events.take(1)
            assert await answer(b.http, session_id, question, name) == 202
        (final,) = await events.rest()
    assert final.data["result"]["structuredContent"]["result"] == ["{'name': 'Ada'}", "{'name': 'Bob'}"]


async def test_a_question_without_a_request_is_seen_and_answered_at_another_instance(start: Any, clock: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with resumed(b.http, session_id, None) as standalone:
        async with a.http.stream("POST", PATH, json=tool_call("ask_apart", 1), headers=headers(session_id)) as response:
            with anyio.fail_after(5):
                question = await anext(standalone)
            assert question.data["method"] == "elicitation/create"
            assert await answer(b.http, session_id, question) == 202
            with anyio.fail_after(5):
                final = (await Events(response).rest())[-1]
    assert "Ada" in final.data["result"]["structuredContent"]["result"]
    await clock.settle()
    assert await (await a.store.require(session_id)).keys() == [HANDSHAKE_KEY]


async def test_a_question_is_answered_once(start: Any, clock: Any) -> None:
    """The first answer counts, and afterwards nothing is left of the question but its event."""
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        assert await answer(b.http, session_id, question, "Ada") == 202
        with anyio.fail_after(5):
            (final,) = await events.rest()
    assert "Ada" in final.data["result"]["structuredContent"]["result"]
    await clock.settle()
    assert await answer(b.http, session_id, question, "Bob") == 400
    assert await answer(a.http, session_id, question, "Bob") == 400
    session = await a.store.require(session_id)
    assert await session.keys() == [HANDSHAKE_KEY]
    assert a.manager._live[session_id].events.inbox._reading is None


async def test_a_question_that_was_given_up_takes_no_answer(start: Any, gate: Any, clock: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("give_up", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question, cancelled = await events.take(3)
        assert cancelled.data["method"] == "notifications/cancelled"
        assert await answer(a.http, session_id, question) == 400
        gate.let(1)
        await events.rest()
    await clock.settle()
    assert await answer(b.http, session_id, question) == 400


async def test_an_answer_for_an_instance_that_died_is_refused(start: Any, clock: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        _, question = await Events(response).take(2)
    await a.kill()
    await clock.advance(LEASE_S + 1)
    assert await answer(b.http, session_id, question) == 400


async def test_an_answer_that_cannot_be_stored_is_to_be_repeated(start: Any, clock: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        await call(b.http, session_id, message("ping", id=5))
        fault = b.backend.inject(FaultKind.UNAVAILABLE, times=None)
        async with clock.flowing():
            assert await answer(b.http, session_id, question) == 503
            fault.release()
            await clock.advance(5)
            assert await answer(b.http, session_id, question) == 202
        with anyio.fail_after(5):
            (final,) = await events.rest()
    assert "Ada" in final.data["result"]["structuredContent"]["result"]


async def test_an_answer_that_is_too_large_for_the_store_is_refused(start: Any) -> None:
    config = msgspec.structs.replace(CONFIG, limits=Limits(max_event_bytes=4_000))
    a, b = await start(config=config), await start(config=config)
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        assert await answer(b.http, session_id, question, "x" * 5_000) == 413
        assert await answer(a.http, session_id, question, "x" * 3_000) == 202
        await events.rest()


async def test_what_came_in_for_another_instance_is_not_to_be_read_as_a_stream(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    async with a.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        await answer(b.http, session_id, question)
        await events.rest()
    cursor = Cursor.parse(question.id)._replace(stream=INBOX)
    assert (await refused_get(b.http, session_id, str(cursor))).status_code == 400
    response = await b.http.post(PATH, json=message("ping", id=INBOX), headers=headers(session_id))
    assert response.status_code == 400


# Cancellations


def cancellation(request_id: Any) -> Any:
    return message("notifications/cancelled", {"requestId": request_id, "reason": "changed my mind"})


async def test_a_long_request_is_cancelled_through_another_instance(start: Any, gate: Any, clock: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    body = tool_call("steps", 1, progress=True, count=2)
    async with a.http.stream("POST", PATH, json=body, headers=headers(session_id)) as response:
        events = Events(response)
        gate.let(1)
        await events.take(2)
        response = await b.http.post(PATH, json=cancellation(1), headers=headers(session_id))
        assert response.status_code == 202
        await clock.advance(LEASE_S / 3 + 1)
        with anyio.fail_after(5):
            (final,) = await events.rest()
    assert "error" in final.data
    await clock.settle()
    session = await a.store.require(session_id)
    assert await session.get(REQUEST_KEY + "1") is None
    assert a.manager._live[session_id].events.inbox._reading is None


async def test_a_cancellation_of_what_runs_nowhere_is_ignored(start: Any, gate: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    gate.let(1)
    await call(a.http, session_id, tool_call("steps", 1, count=1))
    for request_id in (1, 2, "", None):
        response = await b.http.post(PATH, json=cancellation(request_id), headers=headers(session_id))
        assert response.status_code == 202
    session = await a.store.require(session_id)
    assert await session.events(stream=INBOX) == []


async def test_a_cancellation_is_found_though_the_requests_first_events_are_trimmed(
    start: Any, gate: Any, clock: Any
) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    body = tool_call("steps", 1, progress=True, count=9)
    async with a.http.stream("POST", PATH, json=body, headers=headers(session_id)) as response:
        events = Events(response)
        gate.let(3)
        seen = await events.take(4)
        session = await b.store.require(session_id)
        await session.delete_events_before(seen[-1].id)
        await clock.advance(LEASE_S / 3 + 1)
        await b.http.post(PATH, json=cancellation(1), headers=headers(session_id))
        await clock.advance(LEASE_S / 3 + 1)
        with anyio.fail_after(5):
            (final,) = await events.rest()
    assert "error" in final.data


# Handshake


async def test_an_instance_learns_that_the_client_said_initialized_to_another(start: Any) -> None:
    a, b = await start(), await start()
    body = message("initialize", INITIALIZE, 0)
    async with a.http.stream("POST", PATH, json=body, headers=headers()) as response:
        session_id = response.headers["mcp-session-id"]
        await Events(response).rest()
    connection = a.manager._live[session_id]._connection
    await call(a.http, session_id, message("ping", id=1))
    assert not connection.initialized.is_set()
    said = await b.http.post(PATH, json=message("notifications/initialized"), headers=headers(session_id))
    assert said.status_code == 202
    session = await b.store.require(session_id)
    while not (await session.get(HANDSHAKE_KEY))["initialized"]:
        await anyio.lowlevel.checkpoint()
    await call(a.http, session_id, message("ping", id=2))
    assert connection.initialized.is_set()


# State


async def test_a_tool_that_clears_in_a_unit_leaves_the_session_able_to_move(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    await call(a.http, session_id, tool_call("put", 1, key="a", value=1))
    cleared = await call(a.http, session_id, tool_call("start_over", 2))
    assert cleared[-1].data["result"]["structuredContent"] == {"result": 1}
    state = await call(b.http, session_id, tool_call("state", 3))
    assert state[-1].data["result"]["structuredContent"] == {"new": 2}
    session = await b.store.require(session_id)
    assert await session.keys() == [HANDSHAKE_KEY, "new"]
    assert [event.data for event in await session.events(stream="own")] == [{"cleared": True}]


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
