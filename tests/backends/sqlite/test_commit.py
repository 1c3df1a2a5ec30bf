"""Commits: two connections on one file, what one remembers of it, deletes in steps, cancellation."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from holdfast.backends.base import Expired, Status, TrimPolicy
from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig, removal, upkeep
from holdfast.errors import Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, fenced, new_event, new_head, texts

SECOND = 1_000_000
MakeBackend = Callable[[], Awaitable[SQLiteBackend]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def config(path: Path) -> SQLiteConfig:
    return SQLiteConfig(path=str(path), poll_interval_s=0.001)


@pytest.fixture
async def make_backend(config: SQLiteConfig) -> AsyncIterator[MakeBackend]:
    """Makes further backends on the same file."""
    backends = list[SQLiteBackend]()

    async def make() -> SQLiteBackend:
        backend = SQLiteBackend(config)
        backends.append(backend)
        await backend.open()
        return backend

    yield make
    for backend in backends:
        await backend.close()


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


async def test_hints_give_way_to_another_instance(
    direct: Direct, make_backend: MakeBackend, clock: ManualClock
) -> None:
    """Each instance writes on top of the other's last commit, whatever its hints."""
    other = Direct(await make_backend(), clock, "other")
    head = await direct.create("s")
    for number in range(10):
        assert (await direct.one(blind(head, events=[new_event(f"a{number}")]))).base_seq == 3 * number
        assert (await direct.one(blind(head, events=[new_event(f"b{number}")]))).base_seq == 3 * number + 1
        assert (await other.one(blind(head, events=[new_event(f"c{number}")]))).base_seq == 3 * number + 2
    expected = [f"{letter}{number}" for number in range(10) for letter in "abc"]
    assert texts(await direct.events(head)) == expected


async def test_hints_are_fenced(direct: Direct, make_backend: MakeBackend, clock: ManualClock) -> None:
    other = Direct(await make_backend(), clock, "other")
    head = await direct.append(await direct.create("s"), "one")
    await other.append(head, "two")
    assert (await direct.one(fenced(head, sets={"k": (b"1", 1)}))).status is Status.CONFLICT


async def test_hints_and_removal(direct: Direct, make_backend: MakeBackend, clock: ManualClock) -> None:
    other = await make_backend()
    deleted, expired = await direct.create("d"), await direct.create("e", ttl_us=SECOND)
    await direct.append(deleted, "x")
    await direct.append(expired, "x")
    await Direct(other, clock, "other").one(blind(deleted, delete=True))
    await clock.advance(1)
    assert await other.expire(clock.now_us(), 10) == [Expired("e", expired.incarnation, None)]
    for head in (deleted, expired):
        assert (await direct.one(blind(head, events=[new_event()]))).status is Status.MISSING


async def test_hints_and_own_upkeep(direct: Direct, backend: SQLiteBackend, clock: ManualClock) -> None:
    """Upkeep runs on the same connection, where no version of the data tells of it."""
    trimmed, expired = await direct.create("t"), await direct.create("e", ttl_us=SECOND)
    await direct.append(trimmed, "1", "2", "3")
    await direct.append(expired, "x")
    assert await backend.trim([("t", trimmed.incarnation)], TrimPolicy(max_bytes=3), 100) == 2
    assert (await direct.one(blind(trimmed, events=[new_event()]))).base_first_seq == 3
    await clock.advance(1)
    await backend.expire(clock.now_us(), 10)
    assert (await direct.one(blind(expired, accepted_us=0, events=[new_event()]))).status is Status.MISSING


async def test_hints_after_a_failed_commit(direct: Direct, backend: SQLiteBackend) -> None:
    """What a rolled-back commit would have made of a row is forgotten."""
    head = await direct.append(await direct.create("s"), "one")
    pages = await backend._write_connection_run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    await backend._write_connection_run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").close())
    with pytest.raises(Unavailable):
        await direct.one(blind(head, events=[new_event("x" * 50_000)]))
    await backend._write_connection_run(lambda c: c.execute("PRAGMA max_page_count = 100000").close())
    assert (await direct.one(blind(head, events=[new_event()]))).base_seq == 1


async def test_hints_and_large_metadata(direct: Direct) -> None:
    head = await direct.append(await direct.create("s"), "one")
    await direct.one(blind(head, metadata=b'"' + b"x" * 5_000 + b'"', events=[new_event("two")]))
    assert (await direct.one(blind(head, events=[new_event("three")]))).base_seq == 2
    assert texts(await direct.events(head)) == ["one", "two", "three"]


async def test_delete_and_create_in_one_batch(direct: Direct) -> None:
    old = await direct.append(await direct.create("s"), "old")
    new = new_head("s", 1)
    outcomes = await direct.commit(blind(old, delete=True), creation(new, events=[new_event("new")]))
    assert [outcome.status for outcome in outcomes] == [Status.COMMITTED, Status.COMMITTED]
    assert texts(await direct.events(new)) == ["new"]


async def test_creation_that_ends_deleted(direct: Direct, path: Path) -> None:
    assert (await direct.one(creation(new_head("s", 1), events=[new_event()], delete=True))).status is Status.COMMITTED
    assert not await direct.exists("s")
    assert rows(path, "events") == 0


async def test_awkward_text(direct: Direct) -> None:
    """TEXT holds any Unicode, NUL at any place included, and tells all of it apart."""
    names = ["", "\0", "a", "a\0", "a\0b", "A", "é", "e\u0301", "\U0001f600", "' OR 1=1 --", "%", "\ufeff"]
    head = await direct.create("s", owner="a\0b")
    await direct.one(
        blind(
            head,
            sets={name: (b'"%d"' % number, 1) for number, name in enumerate(names)},
            events=[new_event(name, stream=name, type=name) for name in names],
        )
    )
    assert await direct.state("s") == {name: b'"%d"' % number for number, name in enumerate(names)}
    events = await direct.events(head)
    assert [(event.stream, event.type, event.data) for event in events] == [(name, name, name) for name in names]
    for name in names:
        assert texts((await direct.page(head, stream=name)).events) == [name]
    await direct.one(blind(head, removes={"a\0"}))
    assert set(await direct.state("s")) == set(names) - {"a\0"}
    assert await direct.listed(owner="a\0b") == ["s"]
    assert await direct.listed(owner="a") == []


async def test_large_sessions_are_deleted_in_steps(
    direct: Direct, backend: SQLiteBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is free at once; rows beyond the bound wait for the trimmer, out of sight."""
    monkeypatch.setattr(removal, "_EVENTS_AT_ONCE", 10)
    small, large, larger = await direct.create("a"), await direct.create("b"), await direct.create("c")
    await direct.append(small, *"12345")
    await direct.append(large, *"123456789")
    await direct.append(larger, *"123456789")
    await direct.commit(*(blind(head, delete=True) for head in (small, large, larger)))
    assert (rows(path, "sessions"), rows(path, "events"), rows(path, "graveyard")) == (0, 13, 2)
    again = await direct.append(await direct.create("b"), "new")
    assert await backend.trim([("c", larger.incarnation)], TrimPolicy(), 100) == 9
    assert [await backend.trim(None, TrimPolicy(), 3) for _ in range(3)] == [3, 1, 0]
    assert (rows(path, "events"), rows(path, "graveyard")) == (1, 0)
    assert texts(await direct.events(again)) == ["new"]


async def test_upkeep_goes_round(
    direct: Direct, backend: SQLiteBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scans in steps, from where the last one ended, miss no session and take none twice."""
    monkeypatch.setattr(upkeep, "_SCANNED_SESSIONS", 3)
    monkeypatch.setattr(upkeep, "_TARGETS_AT_ONCE", 2)
    for number in range(20):
        lives = number % 3 == 0
        head = await direct.create(f"{number}", ttl_us=None if lives else SECOND)
        await direct.append(head, *"12345", max_events=2)
    trimmed = [await backend.trim(None, TrimPolicy(), 7) for _ in range(10)]
    assert sum(trimmed) == 60
    assert trimmed == [7] * 8 + [4, 0]
    await clock.advance(1)
    expired = [[session.id for session in await backend.expire(clock.now_us(), 4)] for _ in range(5)]
    assert [len(ids) for ids in expired] == [4, 4, 4, 1, 0]
    assert sorted(int(id) for ids in expired for id in ids) == [n for n in range(20) if n % 3]
    await direct.append(await direct.create("late", ttl_us=SECOND), "x")
    await direct.create("early", ttl_us=SECOND, incarnation=1)
    await clock.advance(1)
    assert {session.id for session in await backend.expire(clock.now_us(), 10)} == {"late", "early"}


def test_circuit() -> None:
    circuit = upkeep.Circuit(0)
    circuit.advance(10)
    assert (circuit.position, circuit.done) == (10, False)
    circuit.advance(upkeep.MAX_INTEGER)
    assert (circuit.position, circuit.done) == (0, True)

    circuit = upkeep.Circuit(10)
    circuit.advance(upkeep.MAX_INTEGER)
    assert (circuit.position, circuit.done) == (0, False)
    circuit.advance(5)
    assert not circuit.done
    circuit.advance(12)
    assert (circuit.position, circuit.done) == (12, True)


class Gate:
    """Holds the write connection's thread until it is opened."""

    def __init__(self, backend: SQLiteBackend) -> None:
        self._backend = backend
        self._opened = threading.Event()
        self._reached = threading.Event()

    async def hold(self, tasks: anyio.abc.TaskGroup) -> None:
        tasks.start_soon(self._backend._write_connection_run, lambda _: (self._reached.set(), self._opened.wait(10)))
        while not self._reached.is_set():
            await anyio.sleep(0.001)

    async def queued(self) -> None:
        """Wait until something else waits for the thread."""
        writer = self._backend._writer
        assert writer is not None
        while writer._tx.empty():
            await anyio.sleep(0.001)

    def open(self) -> None:
        self._opened.set()


async def test_cancelled_commit_is_finished_and_resolved(backend: SQLiteBackend, direct: Direct) -> None:
    """C43, C49: the answer of `resolve` comes after the commit, which nobody awaits any more."""
    head = await direct.create("s")
    gate = Gate(backend)
    async with anyio.create_task_group() as tasks:
        await gate.hold(tasks)
        async with anyio.create_task_group() as given_up:
            given_up.start_soon(direct.one, blind(head, events=[new_event("kept")]))
            await gate.queued()
            given_up.cancel_scope.cancel()
        resolved = list[object]()

        async def resolve() -> None:
            resolved.append(await backend.resolve(direct.last_marker))

        tasks.start_soon(resolve)
        await anyio.wait_all_tasks_blocked()
        assert resolved == []
        gate.open()
    assert [[outcome.status for outcome in outcomes] for outcomes in resolved] == [[Status.COMMITTED]]
    assert texts(await direct.events(head)) == ["kept"]


async def test_close_waits_for_a_commit(
    backend: SQLiteBackend, direct: Direct, make_backend: MakeBackend, clock: ManualClock
) -> None:
    head = await direct.create("s")
    gate = Gate(backend)
    async with anyio.create_task_group() as tasks:
        await gate.hold(tasks)
        tasks.start_soon(direct.one, blind(head, events=[new_event("last")]))
        await gate.queued()
        tasks.start_soon(backend.close)
        await anyio.wait_all_tasks_blocked()
        gate.open()
    assert texts(await Direct(await make_backend(), clock).events(head)) == ["last"]


async def test_watch_tells_of_others_alone(
    backend: SQLiteBackend, direct: Direct, make_backend: MakeBackend, clock: ManualClock
) -> None:
    """Own commits, upkeep and checkpoints are no news."""
    other = Direct(await make_backend(), clock, "other")
    told = anyio.Event()
    polls = 0

    def poll(connection: sqlite3.Connection) -> bool:
        nonlocal polls
        polls += 1
        return found(connection)

    found, backend._thread.others_have_committed = backend._thread.others_have_committed, poll  # type: ignore[method-assign]
    head = await direct.create("s")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.watch, lambda _: told.set())
        with anyio.fail_after(10):
            await told.wait()  # that the watch has begun
        told = anyio.Event()
        for _ in range(40):
            await direct.append(head, "own")
        await backend.trim(None, TrimPolicy(), 10)
        seen = polls
        while polls < seen + 2:
            await anyio.sleep(0.001)
        assert not told.is_set()
        await other.append(head, "news")
        with anyio.fail_after(5):
            await told.wait()
        tasks.cancel_scope.cancel()
