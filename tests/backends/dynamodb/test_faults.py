"""DynamoDB that throttles, fails, breaks off and does things by halves: nothing is lost, nothing done twice.

An HTTP proxy injects each fault before a real server; CONFORMANCE 43, 44, P5.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import anyio
import pytest

import holdfast
from holdfast.backends.base import Batch, EventQuery, LoadRequest, Marker, Outcome, SessionWrite, Status
from holdfast.backends.dynamodb import DynamoDBBackend, DynamoDBConfig
from holdfast.errors import OutcomeUnknown, Rejected, SchemaError, StoreError, Unavailable
from holdfast.model import Durability
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head, texts
from tests.servers.dynamodb import config_for
from tests.servers.http_proxy import Failing, HttpProxy

pytestmark = pytest.mark.anyio

PASSING = [
    Failing.THROTTLED, Failing.CONTROL_THROTTLED, Failing.CONFLICT, Failing.IN_PROGRESS, Failing.ERROR_BEFORE,
    Failing.ERROR_AFTER, Failing.UNAVAILABLE, Failing.RESET_BEFORE, Failing.RESET_AFTER, Failing.SILENT_AFTER,
]  # fmt: skip
UNANSWERED = [Failing.ERROR_AFTER, Failing.RESET_AFTER, Failing.SILENT_AFTER]
"""Done, and nobody was told."""


NO_UVLOOP = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
UVLOOP = pytest.param(("asyncio", {"use_uvloop": True}), id="asyncio+uvloop", marks=NO_UVLOOP)
on_every_loop = pytest.mark.parametrize("anyio_backend", ["asyncio", UVLOOP, "trio"])
"""For tests of how connections break, which each loop tells in its own way; the others are about what is sent."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def config(proxy: HttpProxy) -> DynamoDBConfig:
    return config_for(proxy.url, request_timeout_s=0.3)


BIG = "x" * 5_000
"""An event that goes into an item of its own, hence a transaction."""


@on_every_loop
@pytest.mark.parametrize("failing", PASSING)
@pytest.mark.parametrize("text", ["small", BIG], ids=["put", "transaction"])
async def test_a_passing_fault_goes_unnoticed(direct: Direct, proxy: HttpProxy, failing: Failing, text: str) -> None:
    head = await direct.create("s")
    fault = proxy.inject(failing, "PutItem" if text == "small" else "TransactWriteItems")
    outcome = await direct.one(blind(head, sets={"k": (b"1", 1)}, events=[new_event(text)]))
    assert fault.hits == 1
    assert outcome == Outcome(Status.COMMITTED, head.version, 0, 1, 1)
    assert texts(await direct.events(head)) == [text]
    assert (await direct.head("s")).version == head.version + 1


async def test_a_cancelled_transaction_is_tried_again(direct: Direct, proxy: HttpProxy) -> None:
    head = await direct.create("s")
    fault = proxy.inject(Failing.CANCELLED, "TransactWriteItems", times=2)
    await direct.append(head, BIG)
    assert fault.hits == 2
    assert texts(await direct.events(head)) == [BIG]


@pytest.mark.parametrize("failing", UNANSWERED)
@pytest.mark.parametrize("kind", ["create", "append", "large append", "delete", "close", "clear"])
async def test_what_was_done_unnoticed_is_resolved(
    backend: DynamoDBBackend, other: DynamoDBBackend, clock: ManualClock, proxy: HttpProxy, failing: Failing, kind: str
) -> None:
    """P5: also if another instance has written since: the outcome is that of the one time it was done."""
    head = new_head("s", clock.now_us())
    direct, second = Direct(backend, clock), Direct(other, clock, "second")
    if kind != "create":
        await direct.one(creation(head, units=0, sets={"k": (b"1", 1)}))
    writes = {
        "create": creation(head, units=1, events=[new_event("once")]),
        "append": blind(head, events=[new_event("once")]),
        "large append": blind(head, events=[new_event(BIG)]),
        "delete": blind(head, delete=True),
        "close": blind(head, close=True),
        "clear": blind(head, cleared=True, sets={"l": (b"2", 1)}),
    }
    proxy.inject(failing, "TransactWriteItems" if kind == "large append" else "PutItem", times=1)
    proxy.inject(Failing.EXPIRED, times=None)
    with pytest.raises(OutcomeUnknown):
        await direct.one(writes[kind])
    with pytest.raises(StoreError):
        await backend.resolve(direct.last_marker)
    proxy.heal()
    if kind == "delete":
        await second.create("s")
    elif kind != "close":
        await second.append(await second.head("s"), "from elsewhere")
    assert await backend.resolve(direct.last_marker) == [Outcome(Status.COMMITTED, 0, 0, 1, 1)]
    assert await backend.resolve(direct.last_marker) == [Outcome(Status.COMMITTED, 0, 0, 1, 1)]
    found = texts(await second.events(await second.head("s")))
    expected = {"create": ["once"], "append": ["once"], "large append": [BIG]}.get(kind, [])
    assert found == [*expected, *([] if kind in ("delete", "close") else ["from elsewhere"])]


async def test_what_was_not_done_is_done_by_the_resolution(
    backend: DynamoDBBackend, direct: Direct, proxy: HttpProxy
) -> None:
    """An answer "not done" could be overtaken by a request that is still on its way; so there is none."""
    head = await direct.create("s")
    proxy.inject(Failing.RESET_BEFORE, "PutItem", times=None)
    with pytest.raises(OutcomeUnknown):
        await direct.append(head, "x")
    proxy.heal()
    assert await backend.resolve(direct.last_marker) == [Outcome(Status.COMMITTED, head.version, 0, 1, 1)]
    assert texts(await direct.events(head)) == ["x"]


async def test_marks_that_were_pushed_out_are_not_guessed(
    backend: DynamoDBBackend, other: DynamoDBBackend, clock: ManualClock, proxy: HttpProxy
) -> None:
    """Many lanes have written since: whether ours was done cannot be told, and it is not done again."""
    direct = Direct(backend, clock)
    head = await direct.create("s")
    proxy.inject(Failing.RESET_AFTER, "PutItem")
    proxy.inject(Failing.THROTTLED, times=None)
    with pytest.raises(OutcomeUnknown):
        await direct.append(head, "once")
    proxy.heal()
    for number in range(8):
        await Direct(other, clock, f"writer {number}").append(head, str(number))
    with pytest.raises(OutcomeUnknown):
        await backend.resolve(direct.last_marker)
    assert texts(await direct.events(head)) == ["once", *map(str, range(8))]


async def test_a_batch_done_in_part_is_finished(backend: DynamoDBBackend, direct: Direct, proxy: HttpProxy) -> None:
    """Throttled in mid-batch: the rest follows, and nothing is done twice."""
    heads = [await direct.create(f"s{number}") for number in range(10)]
    fault = proxy.inject(Failing.THROTTLED, "PutItem", times=None, skip=6)
    with pytest.raises(OutcomeUnknown, match="in part"):
        await direct.commit(*(blind(head, events=[new_event(head.id)]) for head in heads))
    assert fault.hits > 4
    proxy.heal()
    outcomes = await backend.resolve(direct.last_marker)
    assert outcomes is not None
    assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}
    for head in heads:
        assert texts(await direct.events(head)) == [head.id]


async def test_nothing_done_is_said_to_be_nothing(direct: Direct, proxy: HttpProxy) -> None:
    heads = [await direct.create(f"s{number}") for number in range(3)]
    proxy.inject(Failing.THROTTLED, "PutItem", times=None)
    with pytest.raises(Unavailable, match="throttles"):
        await direct.commit(*(blind(head, events=[new_event()]) for head in heads))


@on_every_loop
async def test_a_cancelled_commit_can_be_resolved(backend: DynamoDBBackend, direct: Direct, proxy: HttpProxy) -> None:
    """C49: as the engine does when a commit takes too long."""
    head = await direct.create("s")
    proxy.inject(Failing.SILENT_AFTER, "PutItem", times=None)
    with anyio.move_on_after(0.1) as scope:
        await direct.append(head, "x")
    assert scope.cancelled_caught
    proxy.heal()
    outcomes = await backend.resolve(direct.last_marker)
    assert outcomes is not None
    assert outcomes[0].status is Status.COMMITTED
    assert texts(await direct.events(head)) == ["x"]


async def test_one_refused_write_does_not_double_its_batch(
    direct: Direct, backend: DynamoDBBackend, proxy: HttpProxy
) -> None:
    """P11: a batch that is bisected since DynamoDB refuses one write; what was done already is done once."""
    heads = [await direct.create(f"s{number}") for number in range(8)]
    proxy.inject(Failing.INVALID, "PutItem", times=None, text=b'"s5"')
    writes = [blind(head, events=[new_event(head.id)]) for head in heads]
    failed = await _bisect(direct, writes)
    assert failed == ["s5"]
    proxy.heal()
    for head in heads:
        assert texts(await direct.events(head)) == ([] if head.id == "s5" else [head.id])


async def _bisect(direct: Direct, writes: list[SessionWrite]) -> list[str]:
    """As the engine's writer does; the ids that were refused alone."""
    try:
        await direct.commit(*writes)
    except Rejected:
        if len(writes) == 1:
            return [writes[0].id]
        middle = len(writes) // 2
        return await _bisect(direct, writes[:middle]) + await _bisect(direct, writes[middle:])
    return []


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [
        (Failing.EXPIRED, Unavailable, "credentials have expired"),
        (Failing.DENIED, Unavailable, "denied"),
        (Failing.NO_TABLE, SchemaError, "no such table"),
    ],
)
async def test_what_time_does_not_cure_is_said_at_once(
    direct: Direct, backend: DynamoDBBackend, proxy: HttpProxy, failing: Failing, error: type[Exception], message: str
) -> None:
    head = await direct.create("s")
    fault = proxy.inject(failing, times=None)
    calls: list[Callable[[], Any]] = [
        lambda: direct.append(head, "x"),
        lambda: backend.load([LoadRequest("s")]),
        lambda: backend.read_events(EventQuery("s", head.incarnation)),
        lambda: direct.listed(),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(error, match=message):
            await call()
        assert fault.hits <= 1 + number + 8  # a list asks every partition


@pytest.mark.parametrize(
    "failing", [Failing.THROTTLED, Failing.ERROR_BEFORE, Failing.RESET_BEFORE, Failing.UNAVAILABLE]
)
async def test_reads_are_tried_again(
    direct: Direct, backend: DynamoDBBackend, proxy: HttpProxy, failing: Failing
) -> None:
    head = await direct.append(await direct.create("s"), "a", BIG)
    for action in ("GetItem", "BatchGetItem", "Query"):
        proxy.inject(failing, action, times=2)
    assert (await backend.load([LoadRequest("s"), LoadRequest("t")]))[0] is not None
    assert texts(await direct.events(head)) == ["a", BIG]
    assert await direct.listed() == ["s"]


async def test_half_answered_batches_are_read_to_the_end(
    direct: Direct, backend: DynamoDBBackend, proxy: HttpProxy
) -> None:
    heads = [await direct.create(f"s{number}") for number in range(20)]
    fault = proxy.inject(Failing.UNPROCESSED, "BatchGetItem", times=4)
    snapshots = await backend.load([LoadRequest(head.id) for head in heads])
    assert fault.hits == 4
    assert [snapshot and snapshot.head.id for snapshot in snapshots] == [head.id for head in heads]


async def test_half_done_deletes_are_done_to_the_end(
    direct: Direct, backend: DynamoDBBackend, proxy: HttpProxy
) -> None:
    head = await direct.create("s")
    for _ in range(6):
        head = await direct.append(head, BIG)
    fault = proxy.inject(Failing.UNPROCESSED, "BatchWriteItem", times=3)
    await direct.one(blind(head, delete=True))
    assert fault.hits >= 1
    proxy.heal()

    async def left() -> int:
        return sum([len(page) async for page in backend._table.range("s", "E", "T")])

    assert await backend._bridge.call(left) == 1  # the head, a tombstone


@on_every_loop
async def test_the_engine_over_a_bad_connection(make: Callable[[], DynamoDBBackend], proxy: HttpProxy) -> None:
    """Every seventh request fails in some way, done or not: every append is there once, in order."""
    async with Supervisor(make(), holdfast.Config(durability=Durability.PROCESS)) as store:
        sessions = [await store.create(f"s{number}") for number in range(5)]
        for number, failing in enumerate([*PASSING, *UNANSWERED, *PASSING]):
            proxy.inject(failing, skip=number * 3)

        async def write(session: holdfast.Session) -> None:
            for number in range(15):
                await session.append(number)
                await session.update("n", lambda value: value + 1, default=0)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(write, session)
        for session in sessions:
            assert [event.data for event in await session.events()] == list(range(15))
            assert await session.get("n") == 15


async def test_a_cold_open_sends_nothing(make: Callable[[], DynamoDBBackend], proxy: HttpProxy, direct: Direct) -> None:
    """Serverless: no DescribeTable on the way to the first answer."""
    head = await direct.create("s")
    proxy.actions.clear()
    cold = DynamoDBBackend(config_for(proxy.url, table=make()._config.table, create=False, verify=False))
    await cold.open()
    try:
        assert not proxy.actions
        assert (await cold.load([LoadRequest("s")]))[0] is not None
        batch = Batch(
            writes=[blind(head, events=[new_event()])],
            marker=Marker("cold", 0, 1),
            durability=Durability.PROCESS,
            now_us=head.active_us,
            max_events=None,
        )
        assert (await cold.commit(batch))[0].status is Status.COMMITTED
        assert proxy.actions == {"GetItem": 1, "PutItem": 1}
    finally:
        await cold.close()
