"""Requests that died with their process end with an error, once, and only if nobody runs them."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import msgspec
import pytest

from holdfast.config import WriterConfig
from holdfast.integrations.mcp import REQUEST_LOST
from holdfast.integrations.mcp.keys import HANDSHAKE_KEY, REQUEST_KEY
from holdfast.model import Cursor, Durability
from holdfast.supervisor.session import Session
from holdfast.testing import FaultKind, touches
from tests.integrations.harness import CONFIG, PATH, Events, call, headers, initialize, message, resumed, tool_call
from tests.integrations.test_streams import begin, progress

pytestmark = pytest.mark.anyio

LEASE_S = 15.0


async def read_rest(http: Any, session_id: str, cursor: str) -> list[Any]:
    with anyio.fail_after(5):
        async with resumed(http, session_id, cursor) as events:
            return await events.rest()


def is_lost(event: Any, id: Any = 1) -> bool:
    return event.data.get("error", {}).get("code") == REQUEST_LOST and event.data["id"] == id


async def test_the_next_process_of_the_same_name_ends_it_at_once(start: Any, gate: Any) -> None:
    first = await start(instance_name="web-1")
    session_id = await initialize(first.http)
    seen = await begin(first.http, session_id, gate, 2, of=5)
    await first.kill()
    second = await start(instance_name="web-1")
    missed = await read_rest(second.http, session_id, seen[1].id)
    assert progress(missed) == [2]
    assert is_lost(missed[-1])
    assert "whether it took effect is unknown" in missed[-1].data["error"]["message"]


@pytest.mark.parametrize("id", [1, "1", "call-äö", 2**60])
async def test_the_error_has_the_requests_own_id(start: Any, gate: Any, id: Any) -> None:
    first = await start(instance_name="web-1")
    session_id = await initialize(first.http)
    seen = await begin(first.http, session_id, gate, 1, of=5, id=id)
    await first.kill()
    (error,) = await read_rest((await start(instance_name="web-1")).http, session_id, seen[-1].id)
    assert is_lost(error, id)


async def test_another_process_waits_for_the_lease_to_run_out(start: Any, gate: Any, clock: Any) -> None:
    first = await start()
    session_id = await initialize(first.http)
    seen = await begin(first.http, session_id, gate, 1, of=5)
    second = await start()
    await first.kill()
    async with resumed(second.http, session_id, seen[-1].id) as events:
        await clock.advance(LEASE_S * 0.6)
        with anyio.move_on_after(0.05) as waiting:
            await anext(events)
        assert waiting.cancelled_caught
    async with resumed(second.http, session_id, seen[-1].id) as events:
        await clock.advance(LEASE_S)
        with anyio.fail_after(5):
            (error,) = await events.rest()
    assert is_lost(error)


async def test_a_clean_stop_ends_what_still_runs(start: Any, gate: Any) -> None:
    first, second = await start(), await start()
    session_id = await initialize(first.http)
    seen = await begin(first.http, session_id, gate, 1, of=5)
    await first.stop()
    session = await second.store.require(session_id)
    assert await session.keys() == [HANDSHAKE_KEY]
    missed = await read_rest(second.http, session_id, seen[-1].id)
    assert "error" in missed[-1].data
    assert missed[-1].data["id"] == 1


async def test_a_request_that_lives_elsewhere_is_left_alone(start: Any, gate: Any, clock: Any) -> None:
    """However long it takes: its process prolongs its lease."""
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    seen = await begin(a.http, session_id, gate, 1, of=2)
    async with resumed(b.http, session_id, seen[-1].id) as events:
        await clock.advance(LEASE_S * 10)
        gate.let(1)
        assert progress([await anext(events)]) == [2]
        (response,) = await events.rest()
    assert response.data["result"]["structuredContent"] == {"result": "finished"}


async def test_a_session_that_cannot_be_kept_leaves_the_others_alive(start: Any, gate: Any, clock: Any) -> None:
    """The store does not answer about it."""
    a, b = await start(config=msgspec.structs.replace(CONFIG, writer=WriterConfig(lanes=2))), await start()
    stuck, well = await initialize(a.http), await initialize(a.http)
    for session_id in (stuck, well):
        await begin(a.http, session_id, gate, 0, of=1)
    hold = a.backend.inject(FaultKind.HELD, when=touches(stuck))
    await (await a.store.require(stuck)).append("x", durability=Durability.MEMORY)
    await hold.struck()
    await clock.advance(LEASE_S * 3)
    record = await (await b.store.require(well)).get(REQUEST_KEY + "1")
    assert b.manager.lease.alive_elsewhere(record)
    hold.release()


async def test_a_start_under_another_name_declares_nothing_lost(start: Any, gate: Any) -> None:
    a = await start(instance_name="web-1")
    session_id = await initialize(a.http)
    seen = await begin(a.http, session_id, gate, 1, of=2)
    b = await start(instance_name="web-2")
    async with resumed(b.http, session_id, seen[-1].id) as events:
        gate.let(1)
        assert "result" in (await events.rest())[-1].data


async def test_the_error_is_stored_once_however_many_ask(start: Any, gate: Any) -> None:
    first = await start(instance_name="web-1")
    session_id = await initialize(first.http)
    seen = await begin(first.http, session_id, gate, 1, of=5)
    await first.kill()
    again, other = await start(instance_name="web-1"), await start(instance_name="web-2")
    found: list[Any] = []

    async def ask(instance: Any) -> None:
        found.append(await read_rest(instance.http, session_id, seen[-1].id))

    async with anyio.create_task_group() as tasks:
        for instance in (again, other):
            tasks.start_soon(ask, instance)
    assert [len(events) for events in found] == [1, 1]
    assert found[0][0].id == found[1][0].id
    session = await again.store.require(session_id)
    stored = await session.events(stream="1")
    assert [event.type for event in stored] == ["priming", "message", "response"]


async def test_the_record_is_there_while_it_runs_and_gone_afterwards(start: Any, gate: Any) -> None:
    instance = await start(instance_name="web-1")
    session_id = await initialize(instance.http)
    session = await instance.store.require(session_id)
    seen = await begin(instance.http, session_id, gate, 1, of=2)
    assert (await session.get(REQUEST_KEY + "1"))["id"] == 1
    gate.let(1)
    await read_rest(instance.http, session_id, seen[-1].id)
    assert await session.get(REQUEST_KEY + "1") is None
    stored = [event.type for event in await session.events(stream="1")]
    assert stored == ["priming", "message", "message", "response"]


async def test_two_who_end_it_in_one_process_store_one_end(start: Any, gate: Any, clock: Any) -> None:
    """A resume, and the clean-up after a server that failed. One has claimed it when the others look."""
    first = await start(instance_name="web-1")
    session_id = await initialize(first.http)
    seen = await begin(first.http, session_id, gate, 1, of=2)
    await first.kill()
    second = await start(instance_name="web-1")
    session = await second.store.require(session_id)
    claimed = anyio.Event()

    class Slow(Session):
        async def compare_and_set(self, *args: Any, **options: Any) -> int:
            version = await super().compare_and_set(*args, **options)
            claimed.set()
            await clock.settle()
            return version

    slow = Slow(session._engine, session._checks, session.id, session.incarnation)
    requests = second.manager.new_event_store(slow).requests
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(requests.end_if_lost, Cursor.parse(seen[-1].id))
            await claimed.wait()
            for _ in range(2):
                tasks.start_soon(requests.end_if_lost, Cursor.parse(seen[-1].id))
    stored = [event.type for event in await session.events(stream="1")]
    assert stored == ["priming", "message", "response"]


async def test_a_finished_request_is_not_lost(start: Any, gate: Any) -> None:
    first = await start(instance_name="web-1")
    session_id = await initialize(first.http)
    gate.let(1)
    seen = await call(first.http, session_id, tool_call("steps", 1, progress=True, count=1))
    await first.kill()
    missed = await read_rest((await start(instance_name="web-1")).http, session_id, seen[0].id)
    assert [event.id for event in missed] == [event.id for event in seen[1:]]


async def test_a_wiped_record_still_gets_an_honest_end(start: Any, gate: Any) -> None:
    first = await start(instance_name="web-1")
    session_id = await initialize(first.http)
    seen = await begin(first.http, session_id, gate, 1, of=2)
    session = await first.store.require(session_id)
    await session.remove(REQUEST_KEY + "1")
    await first.kill()
    (error,) = await read_rest((await start(instance_name="web-1")).http, session_id, seen[-1].id)
    assert is_lost(error)


async def test_a_request_cut_off_by_its_own_process_is_ended_for_others(start: Any, gate: Any, clock: Any) -> None:
    """The process lives on, so its lease does not tell."""
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    seen = await begin(a.http, session_id, gate, 1, of=2)
    live = a.manager._live[session_id]
    async with resumed(b.http, session_id, seen[-1].id) as events:
        await a.manager.discard(session_id, live.transport)
        with anyio.fail_after(5):
            missed = await events.rest()
    assert "error" in missed[-1].data


async def test_a_process_that_was_paused_prolongs_what_nobody_has_ended(start: Any, gate: Any, clock: Any) -> None:
    """And what another has ended meanwhile it leaves alone."""
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    seen = [await begin(a.http, session_id, gate, 0, of=1, id=id) for id in (1, 2, 3)]
    session = await b.store.require(session_id)
    for id in (1, 2, 3):
        await session.update(f"{REQUEST_KEY}{id}", lambda record: {**record, "until_us": 0})
    await session.update(REQUEST_KEY + "3", lambda record: {**record, "lease": "another@1"})
    assert is_lost((await read_rest(b.http, session_id, seen[0][-1].id))[-1], 1)
    await a.manager._live[session_id].events.keep()
    assert await session.get(REQUEST_KEY + "1") is None
    assert (await session.get(REQUEST_KEY + "2"))["until_us"] > clock.now_us()
    assert (await session.get(REQUEST_KEY + "3"))["until_us"] == 0
    async with resumed(b.http, session_id, seen[1][-1].id) as events:
        gate.let(3)
        assert "result" in (await events.rest())[-1].data


async def test_the_users_sessions_are_all_there_are(start: Any, gate: Any, clock: Any) -> None:
    """What the adapter notes of its processes is in the sessions that it concerns: in no list, count or bound."""
    a, b = await start(), await start()
    expired: list[Any] = []
    b.store.on_expired(expired.extend)
    assert await a.store.count() == 0
    session_id = await initialize(a.http)
    await begin(a.http, session_id, gate, 1, of=2)
    assert [info.id for info in (await a.store.list()).sessions] == [session_id]
    assert [info.id async for info in b.store.scan()] == [session_id]
    assert await b.store.count() == 1
    await a.kill()
    await clock.advance(LEASE_S * 2)
    assert await b.store.expire() == []
    assert expired == []


async def test_two_ends_stored_are_one_end_read(start: Any, gate: Any) -> None:
    """A process believed dead answers after all: every reader still sees the same end."""
    a = await start()
    session_id = await initialize(a.http)
    seen = await begin(a.http, session_id, gate, 1, of=1)
    session = await a.store.require(session_id)
    while (await session.last_events(1))[0].type != "response":
        await anyio.lowlevel.checkpoint()
    await session.append({"jsonrpc": "2.0", "id": 1, "result": {"late": True}}, type="response", stream="1")
    (response,) = await read_rest(a.http, session_id, seen[-1].id)
    assert response.data["result"]["structuredContent"] == {"result": "finished"}


# Answers


async def test_an_answer_reaches_the_instance_that_asked(start: Any) -> None:
    instance = await start()
    session_id = await initialize(instance.http)
    async with instance.http.stream("POST", PATH, json=tool_call("ask", 1), headers=headers(session_id)) as response:
        events = Events(response)
        _, question = await events.take(2)
        answer = message(None, id=question.data["id"], result={"action": "accept", "content": {"name": "Ada"}})
        malformed = headers(session_id) | {"accept": "text/plain"}
        assert (await instance.http.post(PATH, json=answer, headers=malformed)).status_code == 406
        for status in (202, 400):  # it is awaited once
            answered = await instance.http.post(PATH, json=answer, headers=headers(session_id))
            assert answered.status_code == status
        (final,) = await events.rest()
    assert "Ada" in final.data["result"]["structuredContent"]["result"]


async def test_an_answer_that_nobody_waits_for_is_refused_clearly(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    await initialize(b.http)
    for instance in (a, b):
        answer = message(None, id=77, result={"action": "decline"})
        refused = await instance.http.post(PATH, json=answer, headers=headers(session_id))
        assert refused.status_code == 400
        assert "nobody waits for an answer to request 77" in refused.json()["error"]["message"]


async def test_instances_do_not_ask_under_the_same_ids(start: Any) -> None:
    a, b = await start(), await start()
    session_id = await initialize(a.http)
    ids = []
    for number, instance in enumerate((a, b)):
        body = tool_call("ask", 10 + number)
        async with instance.http.stream("POST", PATH, json=body, headers=headers(session_id)) as response:
            _, question = await Events(response).take(2)
            ids.append(question.data["id"])
    assert ids[0] != ids[1]
