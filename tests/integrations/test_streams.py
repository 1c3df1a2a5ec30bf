"""Resuming streams: every message once, in order, on whichever instance the client asks."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import msgspec
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp_types import JSONRPCResponse

from holdfast.config import Limits
from holdfast.integrations.mcp import SessionEventStore
from holdfast.model import Cursor
from tests.integrations.harness import (
    CONFIG,
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

pytestmark = pytest.mark.anyio


def progress(events: list[Any]) -> list[int]:
    return [event.data["params"]["progress"] for event in events if event.data and "params" in event.data]


async def begin(http: Any, session_id: str, gate: Any, steps: int, *, of: int, id: Any = 1) -> list[Any]:
    """Start the slow tool, read its first steps, and lose the connection."""
    gate.let(steps)
    body = tool_call("steps", id, progress=True, count=of)
    async with http.stream("POST", PATH, json=body, headers=headers(session_id)) as response:
        events = await Events(response).take(1 + steps)
    assert events[0].data is None
    return events


async def test_a_stream_begins_with_a_priming_event_and_every_event_has_an_id(start: Any, gate: Any) -> None:
    instance = await start(retry_interval=1234)
    session_id = await initialize(instance.http)
    gate.let(2)
    events = await call(instance.http, session_id, tool_call("steps", 1, progress=True, count=2))
    assert events[0].data is None
    assert events[0].retry == "1234"
    assert progress(events) == [1, 2]
    assert events[-1].data["result"]["structuredContent"] == {"result": "finished"}
    assert [Cursor.parse(event.id).stream for event in events] == ["1"] * 4


async def test_what_was_missed_is_replayed_after_the_response(start: Any, gate: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    seen = await begin(instance.http, session_id, gate, 1, of=3)
    gate.let(2)
    async with resumed(instance.http, session_id, seen[-1].id) as events:
        missed = await events.rest()
    assert progress(missed) == [2, 3]
    assert missed[-1].data["id"] == 1
    async with resumed(instance.http, session_id, seen[0].id) as events:
        assert progress(await events.rest()) == [1, 2, 3]


async def test_a_resumed_stream_follows_the_tool_live_then_ends(start: Any, gate: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    seen = await begin(instance.http, session_id, gate, 1, of=3)
    async with resumed(instance.http, session_id, seen[-1].id) as events:
        for step in (2, 3):
            gate.let(1)
            assert progress([await anext(events)]) == [step]
        (response,) = await events.rest()
    assert response.data["result"]["isError"] is False


async def test_a_resumed_stream_is_primed_where_it_turns_live(start: Any, gate: Any) -> None:
    """A client that loses it again before anything came still knows where it stands."""
    instance = await start(retry_interval=55)
    session_id = await initialize(instance.http)
    seen = await begin(instance.http, session_id, gate, 2, of=3)
    async with resumed(instance.http, session_id, seen[1].id, primings=True) as events:
        missed, priming = await events.take(2)
    assert progress([missed]) == [2]
    assert (priming.id, priming.data, priming.retry) == (seen[2].id, None, "55")


async def test_a_tool_on_one_instance_is_followed_on_another(start: Any, gate: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    seen = await begin(a.http, session_id, gate, 1, of=3)
    async with resumed(b.http, session_id, seen[-1].id) as events:
        for step in (2, 3):
            gate.let(1)
            assert progress([await anext(events)]) == [step]
        (response,) = await events.rest()
    assert response.data["result"]["structuredContent"] == {"result": "finished"}


async def test_a_restarted_server_replays(start: Any, gate: Any) -> None:
    first = await start()
    session_id = await initialize(first.http)
    gate.let(2)
    seen = await call(first.http, session_id, tool_call("steps", 1, progress=True, count=2))
    await first.kill()
    second = await start()
    async with resumed(second.http, session_id, seen[1].id) as events:
        missed = await events.rest()
    assert [(event.id, event.data) for event in missed] == [(event.id, event.data) for event in seen[2:]]


async def test_streams_are_not_mixed(start: Any, gate: Any) -> None:
    instance = await start()
    session_id, other_id = await initialize(instance.http), await initialize(instance.http)
    seen = await begin(instance.http, session_id, gate, 1, of=2, id=1)
    await call(instance.http, session_id, tool_call("put", 2, key="a", value=1))
    await call(instance.http, session_id, tool_call("touch_elsewhere", 3))
    await call(instance.http, other_id, tool_call("put", 1, key="a", value=2))
    gate.let(1)
    async with resumed(instance.http, session_id, seen[-1].id) as events:
        missed = await events.rest()
    assert progress(missed) == [2]
    assert {Cursor.parse(event.id).stream for event in missed} == {"1"}
    assert {Cursor.parse(event.id).incarnation for event in missed} == {Cursor.parse(seen[0].id).incarnation}


async def test_string_ids_are_kept_apart_and_given_back(start: Any, gate: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    seen = await begin(instance.http, session_id, gate, 1, of=1, id="über/1 ?")
    async with resumed(instance.http, session_id, seen[-1].id) as events:
        (response,) = await events.rest()
    assert response.data["id"] == "über/1 ?"


async def test_a_request_id_used_again_gives_each_call_its_own_replay(start: Any, gate: Any) -> None:
    """A client that comes back as a new process counts from the start again."""
    instance = await start()
    session_id = await initialize(instance.http)
    gate.let(1)
    first = await call(instance.http, session_id, tool_call("steps", 1, progress=True, count=1))
    second = await call(instance.http, session_id, tool_call("put", 1, key="a", value=5))
    async with resumed(instance.http, session_id, first[0].id) as events:
        assert [event.id for event in await events.rest()] == [event.id for event in first[1:]]
    async with resumed(instance.http, session_id, first[-1].id) as events:
        assert await events.rest() == []
    async with resumed(instance.http, session_id, second[0].id) as events:
        assert [event.id for event in await events.rest()] == [event.id for event in second[1:]]


async def test_a_newer_resume_takes_over_from_an_older(start: Any, gate: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    seen = await begin(instance.http, session_id, gate, 1, of=3)
    async with resumed(instance.http, session_id, seen[-1].id) as older:
        gate.let(1)
        second = await anext(older)
        async with resumed(instance.http, session_id, second.id) as newer:
            assert await older.rest() == []
            gate.let(1)
            assert progress(await newer.rest()) == [3]


async def test_a_resume_takes_over_from_a_live_response(start: Any, gate: Any) -> None:
    """The server may believe in a connection that its client has lost."""
    instance = await start()
    session_id = await initialize(instance.http)
    gate.let(1)
    body = tool_call("steps", 1, progress=True, count=2)
    async with instance.http.stream("POST", PATH, json=body, headers=headers(session_id)) as response:
        live = Events(response)
        seen = await live.take(2)
        async with resumed(instance.http, session_id, seen[-1].id) as events:
            assert await live.rest() == []
            gate.let(1)
            assert progress(await events.rest()) == [2]


async def test_a_tool_can_hang_up_again_and_again(start: Any, gate: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    got = await call(instance.http, session_id, tool_call("hang_up", 1, progress=True))
    connections = 1
    while got[-1].data is None or "id" not in got[-1].data:
        connections += 1
        async with resumed(instance.http, session_id, got[-1].id) as events:
            while not instance.manager._live[session_id].events.tails("1"):
                await anyio.lowlevel.checkpoint()
            gate.let(1)
            got += await events.rest()
    assert progress(got) == [1, 2]
    assert got[-1].data["result"]["structuredContent"] == {"result": "finished"}
    assert connections == 3


async def test_an_old_client_resumes_too(start: Any, gate: Any) -> None:
    """Before 2025-11-25 there are no priming events."""
    instance = await start()
    session_id = await initialize(instance.http, "2025-06-18")
    gate.let(1)
    body = tool_call("steps", 1, progress=True, count=2)
    async with instance.http.stream(
        "POST", PATH, json=body, headers=headers(session_id, version="2025-06-18")
    ) as response:
        (seen,) = await Events(response).take(1)
    assert seen.data is not None
    gate.let(1)
    async with resumed(instance.http, session_id, seen.id) as events:
        assert progress(await events.rest()) == [2]


# The standalone stream


async def test_the_standalone_stream_is_primed_and_live_from_any_instance(start: Any) -> None:
    a, b = await start(retry_interval=77), await start()
    session_id = await initialize(a.http)
    await call(b.http, session_id, message("ping", id=1))
    async with resumed(a.http, session_id, None, primings=True) as events:
        priming = await anext(events)
        assert (priming.data, priming.retry) == (None, "77")
        await call(b.http, session_id, tool_call("touch_elsewhere", 2))
        notification = await anext(events)
    assert notification.data["method"] == "notifications/resources/updated"
    async with resumed(b.http, session_id, priming.id) as events:
        assert (await anext(events)).id == notification.id


async def test_the_standalone_stream_is_resumed_after_a_restart(start: Any) -> None:
    first = await start()
    session_id = await initialize(first.http)
    async with resumed(first.http, session_id, None, primings=True) as events:
        priming = await anext(events)
    await call(first.http, session_id, tool_call("touch_elsewhere", 2))
    await first.kill()
    second = await start()
    async with resumed(second.http, session_id, priming.id) as events:
        missed = await anext(events)
        await call(second.http, session_id, tool_call("touch_elsewhere", 3))
        live = await anext(events)
    assert missed.id != live.id
    assert missed.data == live.data


async def test_only_one_standalone_stream_unless_it_is_resumed(start: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    async with resumed(instance.http, session_id, None, primings=True) as events:
        priming = await anext(events)
        assert (await refused_get(instance.http, session_id)).status_code == 409
        async with resumed(instance.http, session_id, priming.id) as newer:
            assert await events.rest() == []
            await call(instance.http, session_id, tool_call("touch_elsewhere", 1))
            assert (await anext(newer)).data["method"] == "notifications/resources/updated"


# Cursors that cannot be served


async def test_a_cursor_that_is_none_is_refused(start: Any) -> None:
    instance = await start()
    session_id, other_id = await initialize(instance.http), await initialize(instance.http)
    foreign = await call(instance.http, other_id, message("ping", id=1))
    own = Cursor.parse((await call(instance.http, session_id, message("ping", id=1)))[0].id)
    for cursor in ("nonsense", "7", foreign[0].id, str(own._replace(seq=10_000))):
        response = await refused_get(instance.http, session_id, cursor)
        assert response.status_code == 400, cursor
        assert "Last-Event-ID" in response.json()["error"]["message"]


async def test_a_tools_own_stream_is_not_to_be_read_by_a_client_that_guesses_its_name(start: Any) -> None:
    """Nor is it taken for the stream of a request that died."""
    instance = await start()
    session_id = await initialize(instance.http)
    session = await instance.store.require(session_id)
    event = await session.append({"secret": 1}, stream="own")
    for cursor in (event.id, str(Cursor.parse(event.id)._replace(seq=1))):
        assert (await refused_get(instance.http, session_id, cursor)).status_code == 400
    assert [event.data for event in await session.events(stream="own")] == [{"secret": 1}]


async def test_a_trimmed_cursor_is_gone_and_names_what_is_left(start: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    old = (await call(instance.http, session_id, tool_call("put", 1, key="a", value=1)))[0].id
    new = (await call(instance.http, session_id, tool_call("put", 2, key="a", value=2)))[0].id
    await (await instance.store.require(session_id)).delete_events_before(new)
    response = await refused_get(instance.http, session_id, old)
    assert response.status_code == 410
    assert response.json()["error"]["data"] == {"firstEventId": new}


# What cannot be stored


async def test_a_message_past_the_limit_reaches_the_live_client_without_an_id(start: Any) -> None:
    instance = await start(config=msgspec.structs.replace(CONFIG, limits=Limits(max_event_bytes=4_000)))
    session_id = await initialize(instance.http)
    priming, progressed, response = await call(instance.http, session_id, tool_call("large", 1, progress=True))
    assert progressed.id is None
    assert progressed.data["params"]["message"] == "x" * 5_000
    assert response.data["result"]["structuredContent"] == {"result": "y" * 5_000}
    async with resumed(instance.http, session_id, priming.id) as events:
        (substitute,) = await events.rest()
    assert "could not be stored" in substitute.data["error"]["message"]
    assert "4,000 bytes" in substitute.data["error"]["message"]
    assert len(await call(instance.http, session_id, message("ping", id=2))) == 2


async def test_the_event_store_alone_keeps_messages_as_they_are(start: Any) -> None:
    instance = await start()
    session = await instance.store.create()
    events = SessionEventStore(session)
    data = {"text": "naïve \u0000 \U0001f600", "n": 2**70, "none": None, "nested": [1.5, {"a": []}]}
    first = await events.store_event("7", None)
    await events.store_event("7", JSONRPCResponse(jsonrpc="2.0", id=7, result=data))
    got: list[Any] = []

    async def send(event: Any) -> None:
        got.append(event.message)

    assert await events.replay_events_after(first, send) is None
    assert got == [JSONRPCResponse(jsonrpc="2.0", id=7, result=data)]


# The SDK's own client


async def test_the_sdks_client_resumes_by_itself(start: Any, gate: Any) -> None:
    """The tool hangs up twice; the client reconnects with its last id and sees one uninterrupted call."""
    instance = await start(retry_interval=0)
    steps: list[float] = []

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        steps.append(progress)

    async with (
        streamable_http_client("http://127.0.0.1:1/mcp", http_client=instance.http) as (read, write),
        ClientSession(read, write) as client,
    ):
        with anyio.fail_after(10):
            await client.initialize()
            gate.let(2)
            result = await client.call_tool("hang_up", {}, progress_callback=on_progress)
    assert result.structured_content == {"result": "finished"}
    assert steps == [1, 2]
