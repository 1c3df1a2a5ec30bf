"""Several instances on one store: whichever a request reaches, it gets the same answer."""

from __future__ import annotations

import json
from typing import Any

import anyio.lowlevel
import msgspec
import pytest
from mcp.server.mcpserver import MCPServer

from holdfast.config import Limits
from holdfast.integrations.mcp.keys import HANDSHAKE_KEY, INBOX, REQUEST_KEY
from holdfast.model import Cursor
from holdfast.testing import FaultKind
from tests.integrations.harness import (
    CONFIG,
    INITIALIZE,
    PATH,
    Events,
    call,
    headers,
    initialize,
    message,
    refused_get,
    resumed,
    tool_call,
)
from tests.integrations.instances import add_tools, answer, cancellation

pytestmark = pytest.mark.anyio

LEASE_S = 15.0


@pytest.fixture
async def server(server: MCPServer[Any], gate: Any) -> MCPServer[Any]:
    add_tools(server, gate)
    return server


# Answers


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
