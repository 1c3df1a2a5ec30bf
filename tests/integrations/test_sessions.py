"""Sessions that outlive their process, belong to somebody, and end when they should."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

from holdfast.config import Limits
from holdfast.integrations.mcp.keys import HANDSHAKE_KEY
from holdfast.testing import FaultKind
from tests.integrations.harness import (
    CONFIG,
    INITIALIZE,
    PATH,
    call,
    headers,
    initialize,
    message,
    refused_get,
    resumed,
    tool_call,
    user,
)

pytestmark = pytest.mark.anyio


def result(events: list[Any]) -> Any:
    return events[-1].data["result"]["structuredContent"]


async def test_a_session_is_created_in_the_store_at_initialize(start: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    session = await instance.store.require(session_id)
    assert (await session.info()).owner is None
    handshake = await session.get(HANDSHAKE_KEY)
    assert handshake["params"]["clientInfo"] == {"name": "raw", "version": "1"}
    assert handshake["initialized"] is True


@pytest.mark.parametrize("version", ["2025-11-25", "2025-06-18", "2025-03-26"])
@pytest.mark.parametrize("ending", ["kill", "stop"])
async def test_a_restarted_server_goes_on_with_the_session(start: Any, ending: str, version: str) -> None:
    first = await start()
    session_id = await initialize(first.http, version)
    await call(first.http, session_id, tool_call("put", key="a", value=7), version)
    await getattr(first, ending)()
    second = await start()
    events = await call(second.http, session_id, tool_call("state", 2), version)
    assert result(events) == {"a": 7}


async def test_two_instances_serve_one_session_at_once(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    for number, instance in enumerate([a, b, a, b], 1):
        await call(instance.http, session_id, tool_call("put", number, key=f"k{number}", value=number))
    assert result(await call(b.http, session_id, tool_call("state", 9))) == {f"k{n}": n for n in range(1, 5)}


async def test_the_clients_handshake_is_restored(start: Any, server: Any) -> None:
    seen: list[Any] = []

    async def record(ctx: Any, call_next: Any) -> Any:
        if ctx.method == "tools/call":
            session = ctx.session
            initialized = session._connection.initialized.is_set()
            seen.append((session.client_params, session.protocol_version, initialized))
        return await call_next(ctx)

    server.middleware.append(record)
    first = await start()
    session_id = await initialize(first.http, "2025-06-18")
    await call(first.http, session_id, tool_call("state", 1), "2025-06-18")
    await first.kill()
    await call((await start()).http, session_id, tool_call("state", 2), "2025-06-18")
    assert seen[0] == seen[1]
    params, version, initialized = seen[1]
    assert initialized
    assert params.client_info.name == "raw"
    assert params.capabilities.sampling is not None
    assert version == "2025-06-18"


async def test_an_unknown_session_is_not_found(start: Any) -> None:
    instance = await start()
    for session_id in ("nobody", "x" * 500, "mcp-instance.other"):
        for method in ("POST", "GET", "DELETE"):
            response = await instance.http.request(
                method, PATH, json=message("ping", id=1) if method == "POST" else None, headers=headers(session_id)
            )
            assert response.status_code == 404, (session_id, method)
            assert response.json()["error"]["message"] == "Session not found"


async def test_a_session_of_the_store_that_is_none_of_mcp_is_not_found(start: Any) -> None:
    instance = await start()
    other = await instance.store.create("a-web-session")
    response = await instance.http.post(PATH, json=message("ping", id=1), headers=headers(other.id))
    assert response.status_code == 404


@pytest.mark.parametrize(
    "body", [message("tools/list", id=1), message("notifications/initialized"), {"nonsense": True}, [1, 2], None]
)
async def test_only_initialize_opens_a_session(start: Any, body: Any) -> None:
    instance = await start()
    before = await instance.store.count()
    response = await instance.http.post(PATH, content=b"{" if body is None else None, json=body, headers=headers())
    assert 400 <= response.status_code < 500
    assert await instance.store.count() == before


async def test_a_refused_initialize_leaves_no_session(start: Any) -> None:
    instance = await start()
    before = await instance.store.count()
    response = await instance.http.post(
        PATH, json=message("initialize", INITIALIZE, 1), headers=headers() | {"accept": "text/plain"}
    )
    assert response.status_code == 406
    assert await instance.store.count() == before


# Owners


async def test_only_the_principal_that_opened_it_finds_the_session(start: Any) -> None:
    alice, bob, nobody = await start(user("app", "alice")), await start(user("app", "bob")), await start()
    session_id = await initialize(alice.http)
    stored = await alice.store.require(session_id)
    assert (await stored.info()).owner == '["app",null,"alice"]'
    for stranger in (bob, nobody):
        for method in ("POST", "GET", "DELETE"):
            response = await stranger.http.request(
                method, PATH, json=message("ping", id=1) if method == "POST" else None, headers=headers(session_id)
            )
            assert response.status_code == 404
    assert len(await call(alice.http, session_id, message("ping", id=1))) == 2


async def test_the_owner_is_checked_where_the_session_is_live_too(start: Any) -> None:
    instance = await start(user("app", "alice"))
    session_id = await initialize(instance.http)
    instance.user = user("app", "mallory")
    assert (await refused_get(instance.http, session_id)).status_code == 404
    instance.user = None
    assert (await refused_get(instance.http, session_id)).status_code == 404


async def test_an_owned_session_survives_with_its_owner(start: Any) -> None:
    first = await start(user("https://client.example/" + "x" * 600))
    session_id = await initialize(first.http)
    await first.kill()
    second = await start(user("https://client.example/" + "x" * 600))
    assert len(await call(second.http, session_id, message("ping", id=1))) == 2
    second.user = user("https://client.example/" + "y" * 600)
    assert (await refused_get(second.http, session_id)).status_code == 404


# Ends


async def test_delete_removes_the_stored_session(start: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    response = await instance.http.delete(PATH, headers=headers(session_id))
    assert response.status_code == 200
    assert await instance.store.get(session_id) is None
    assert (await refused_get(instance.http, session_id)).status_code == 404


async def test_delete_works_where_the_session_is_not_live(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    await call(a.http, session_id, message("ping", id=1))
    assert (await b.http.delete(PATH, headers=headers(session_id))).status_code == 200
    assert await b.store.get(session_id) is None
    response = await a.http.post(PATH, json=message("ping", id=2), headers=headers(session_id))
    assert response.status_code == 404


async def test_delete_ends_an_open_stream(start: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    async with resumed(instance.http, session_id, None, primings=True) as events:
        assert (await instance.http.delete(PATH, headers=headers(session_id))).status_code == 200
        assert [event.data for event in await events.rest()] == [None]


async def test_an_expired_session_is_not_found(start: Any, clock: Any) -> None:
    instance = await start(session_options={"ttl_s": 60.0})
    session_id = await initialize(instance.http)
    await clock.advance(59)
    assert len(await call(instance.http, session_id, message("ping", id=1))) == 2
    await clock.advance(59)
    assert len(await call(instance.http, session_id, message("ping", id=2))) == 2
    await clock.advance(61)
    response = await instance.http.post(PATH, json=message("ping", id=3), headers=headers(session_id))
    assert response.status_code == 404


async def test_a_session_that_a_tool_closed_takes_no_more_requests(start: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    seen = await call(instance.http, session_id, tool_call("put", key="a", value=1))
    await (await instance.store.require(session_id)).close()
    response = await instance.http.post(PATH, json=message("ping", id=2), headers=headers(session_id))
    assert response.status_code == 404
    async with resumed(instance.http, session_id, seen[0].id) as events:
        assert [event.id for event in await events.rest()] == [seen[1].id]


async def test_a_delete_that_cannot_be_stored_says_so_and_can_be_repeated(start: Any, clock: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    fault = instance.backend.inject(FaultKind.UNAVAILABLE, "commit", times=None)
    async with clock.flowing():
        assert (await instance.http.delete(PATH, headers=headers(session_id))).status_code == 503
        fault.release()
        await clock.advance(5)
        assert (await instance.http.delete(PATH, headers=headers(session_id))).status_code == 200
    assert await instance.store.get(session_id) is None


async def test_a_running_request_keeps_its_session_alive(start: Any, clock: Any, gate: Any) -> None:
    instance = await start(session_options={"ttl_s": 60.0})
    session_id = await initialize(instance.http)
    async with instance.http.stream(
        "POST", PATH, json=tool_call("steps", 1, count=1), headers=headers(session_id)
    ) as response:
        while not gate.started:
            await clock.settle()
        await clock.advance(600)
        assert response.status_code == 200
        assert await instance.store.get(session_id) is not None


async def test_the_idle_timeout_ends_only_this_processes_part(start: Any) -> None:
    instance = await start(session_idle_timeout=0.02)
    session_id = await initialize(instance.http)
    await call(instance.http, session_id, tool_call("put", key="a", value=1))
    while instance.manager._live:
        await anyio.sleep(0.005)  # the SDK's idle timeout runs by the event loop's clock
    assert result(await call(instance.http, session_id, tool_call("state", 2))) == {"a": 1}


async def test_more_sessions_than_allowed_are_refused(start: Any) -> None:
    instance = await start(max_sessions=1)
    session_id = await initialize(instance.http)
    response = await instance.http.post(PATH, json=message("initialize", INITIALIZE, 1), headers=headers())
    assert response.status_code == 503
    assert len(await call(instance.http, session_id, message("ping", id=1))) == 2


async def test_more_sessions_than_the_store_may_hold_are_refused(start: Any) -> None:
    config = msgspec.structs.replace(CONFIG, limits=Limits(max_sessions=1))
    instance = await start(config=config)
    await initialize(instance.http)
    response = await instance.http.post(PATH, json=message("initialize", INITIALIZE, 1), headers=headers())
    assert response.status_code == 503


async def test_a_store_that_fails_is_service_unavailable(start: Any, clock: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    instance.cut_off()
    async with clock.flowing():
        response = await instance.http.post(PATH, json=message("ping", id=1), headers=headers(session_id))
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "Service Unavailable: the session store failed"
        response = await instance.http.post(PATH, json=message("initialize", INITIALIZE, 1), headers=headers())
        assert response.status_code == 503
    await instance.kill()
