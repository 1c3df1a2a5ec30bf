"""PostgreSQL goes away under a running engine, in every way that can be staged, and comes back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from holdfast import Config, Durability, Supervisor
from holdfast.backends.bridge import Bridge
from holdfast.backends.postgres import PostgresBackend, PostgresConfig
from holdfast.backends.postgres.driver import connect as connect_to
from holdfast.backends.postgres.hints import Listener, Notifier, pack, unpack
from holdfast.config import WriterConfig
from holdfast.errors import DeadlineExceeded, HoldfastError, OutcomeUnknown, StoreError, Unavailable
from holdfast.supervisor.session import Session
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, new_event
from tests.backends.postgres.support import MakeBackend, opened, sql
from tests.servers.postgres import (
    PASSWORD,
    SAFE,
    PostgresServer,
    embedded_binaries,
    new_schema,
    own_server,
    port_of,
    server_folder,
    shared_url,
    with_port,
)
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[pytest.param("asyncio", id="asyncio"), pytest.param("trio", id="trio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that may be stopped, with fsync on: what it has acknowledged, it must have after a crash."""
    with own_server(SAFE) as server:
        yield server


IMPATIENT = WriterConfig(commit_timeout_s=1.0, read_timeout_s=1.0, retry_for_s=1.5, breaker_cooldown_s=0.1)


def supervisor(dsn: str, **settings: Any) -> Supervisor:
    backend = PostgresBackend(
        PostgresConfig(
            dsn=dsn,
            schema="public",
            connect_timeout_s=1.0,
            pool_timeout_s=0.5,
            statement_timeout_s=1.0,
            pgbouncer=False,
        )
    )
    return Supervisor(backend, Config(**({"writer": IMPATIENT} | settings)))


class Load:
    """Callers that append to sessions for as long as it runs, and remember what was acknowledged."""

    def __init__(self, sessions: list[Session]) -> None:
        self.acknowledged: dict[str, list[str]] = {session.id: [] for session in sessions}
        self.sent: dict[str, int] = {session.id: 0 for session in sessions}
        self.errors = list[HoldfastError]()
        self.durability: Durability | None = None
        self.blocked_s = 0.0
        """For so long the test itself has held the event loop up."""
        self._sessions = sessions
        self._running = True

    async def run(self, deadline_s: float) -> None:
        async with anyio.create_task_group() as tasks:
            for session in self._sessions:
                tasks.start_soon(self._append, session, deadline_s)

    async def _append(self, session: Session, deadline_s: float) -> None:
        while self._running:
            number = self.sent[session.id] = self.sent[session.id] + 1
            began = time.monotonic() - self.blocked_s
            try:
                await session.append(number, deadline_s=deadline_s, durability=self.durability)
            except StoreError as exc:
                self.errors.append(exc)
                assert time.monotonic() - self.blocked_s - began < deadline_s + 1.0, exc
                await anyio.sleep(0.02)
            else:
                self.acknowledged[session.id].append(number)
            await anyio.sleep(0.001)

    def do(self, function: Callable[[], None]) -> None:
        """Call what blocks: a server must be started by the main thread."""
        began = time.monotonic()
        function()
        self.blocked_s += time.monotonic() - began

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def more(self, count: int = 20) -> None:
        """Wait for so many more acknowledgements."""
        wanted = self.count + count
        with anyio.fail_after(30):
            while self.count < wanted:
                await anyio.sleep(0.01)

    async def failed(self) -> None:
        with anyio.fail_after(30):
            while not self.errors:
                await anyio.sleep(0.01)

    def stop(self) -> None:
        self._running = False

    async def verify(self) -> None:
        """Everything acknowledged is there, once, in order; seqs have no gap."""
        for session in self._sessions:
            events = [event async for event in session.replay()]
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            stored = [event.data for event in events]
            assert stored == sorted(set(stored))
            assert set(self.acknowledged[session.id]) <= set(stored)


@pytest.mark.parametrize("how", ["restarted", "crashed", "frozen", "black hole", "connections reset"])
async def test_outage_under_load(server: PostgresServer, how: str) -> None:
    """C44, P1, P5: clear errors within the deadline, recovery by itself, nothing acknowledged lost or doubled."""
    with TcpProxy("127.0.0.1", server.port) as proxy:
        begin: dict[str, Callable[[], None]] = {
            "restarted": server.stop,
            "crashed": server.crash,
            "frozen": server.freeze,
            "black hole": proxy.black_hole,
            "connections reset": proxy.reset,
        }
        end: dict[str, Callable[[], None]] = {
            "restarted": server.start,
            "crashed": server.start,
            "frozen": server.thaw,
            "black hole": proxy.heal,
            "connections reset": proxy.heal,
        }
        async with supervisor(with_port(server.url(), proxy.port)) as store:
            load = Load([await store.create() for _ in range(10)])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run, 2.0)
                await load.more()
                load.do(begin[how])
                try:
                    if how != "connections reset":
                        await load.failed()
                        await anyio.sleep(0.5)
                finally:
                    load.do(end[how])
                await load.more()
                load.stop()
            assert all(isinstance(error, Unavailable | DeadlineExceeded | StoreError) for error in load.errors)
            await load.verify()


async def test_replica_is_promoted(server: PostgresServer) -> None:
    """P1 at "replicated": the primary dies for good; the engine goes on with its replica, and nothing is lost.

    The replica has none itself: it takes what asks for no more than it can do.
    """
    with own_server(SAFE) as primary, server_folder() as folder:
        await sql(primary.url(), "ALTER SYSTEM SET synchronous_standby_names = '*'", fetch=False)
        replica = PostgresServer(embedded_binaries(), folder, SAFE)
        replica.copy_from(primary)
        replica.start()
        try:
            await sql(primary.url(), "SELECT pg_reload_conf()")
            dsn = (
                f"postgresql://holdfast:{PASSWORD}@/postgres"
                f"?host=127.0.0.1%2C127.0.0.1&port={primary.port}%2C{replica.port}"
            )
            patient = WriterConfig(commit_timeout_s=2.0, read_timeout_s=2.0, retry_for_s=5.0, breaker_cooldown_s=0.1)
            async with supervisor(dsn, durability=Durability.REPLICATED, writer=patient) as store:
                load = Load([await store.create() for _ in range(10)])
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(load.run, 30.0)
                    await load.more()
                    primary.crash()
                    replica.promote()
                    await sql(replica.url(), "ALTER SYSTEM SET synchronous_standby_names = ''", fetch=False)
                    await sql(replica.url(), "SELECT pg_reload_conf()")
                    await load.failed()
                    load.durability = Durability.DISK
                    await load.more()
                    load.stop()
                await load.verify()
        finally:
            replica.stop()


async def test_replication_that_is_no_more_is_not_promised(server: PostgresServer, clock: ManualClock) -> None:
    """P1: the server is set up otherwise since the store was opened: nothing is stored, and the error is clear."""
    async with opened(server.url(), new_schema()) as make:
        direct = Direct(await make(), clock)
        head = await direct.create("s")
        with pytest.raises(Unavailable, match="synchronous_standby_names"):
            await direct.commit(blind(head, events=[new_event("x")]), durability=Durability.REPLICATED)
        assert await direct.backend.resolve(direct.last_marker) is None
        assert await direct.events(head) == []
        await direct.commit(blind(head, events=[new_event("x")]), durability=Durability.DISK)
        assert len(await direct.events(head)) == 1


async def test_cancelled_wait_for_a_standby_is_no_success(server: PostgresServer, clock: ManualClock) -> None:
    """P1: an administrator ends the wait; the server says "committed", and warns that it is so here alone.

    Even if the role asked for no warnings.
    """
    await sql(server.url(), "ALTER ROLE holdfast SET client_min_messages = 'error'", fetch=False)
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with opened(server.url(), new_schema()) as make:
        backend = await make()
        direct = Direct(backend, clock)
        head = await direct.create("s")
        await sql(server.url(), "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", fetch=False)
        try:
            await sql(server.url(), "SELECT pg_reload_conf()")
            await anyio.sleep(0.3)

            async def give_up(call: Callable[[], Any], kind: type[StoreError]) -> None:
                async with anyio.create_task_group() as tasks:

                    async def wait() -> None:
                        with pytest.raises(kind, match="standby"):
                            await call()
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(wait)
                    with anyio.fail_after(10):
                        while True:
                            await sql(server.url(), cancel)
                            await anyio.sleep(0.05)

            write = blind(head, events=[new_event("x")])
            await give_up(lambda: direct.commit(write, durability=Durability.REPLICATED), OutcomeUnknown)
            await give_up(lambda: backend.resolve(direct.last_marker), Unavailable)
        finally:
            await sql(server.url(), "ALTER SYSTEM RESET synchronous_standby_names", fetch=False)
            await sql(server.url(), "SELECT pg_reload_conf()")
        assert len(await direct.events(head)) == 1
        with anyio.fail_after(10):
            while (await sql(server.url(), "SHOW synchronous_standby_names"))[0][0]:
                await anyio.sleep(0.01)
        await sql(server.url(), "ALTER ROLE holdfast RESET client_min_messages", fetch=False)
        # Nobody is waited for any more: it cannot tell of that commit what was asked for.
        with pytest.raises(Unavailable, match="synchronous_standby_names"):
            await backend.resolve(direct.last_marker)


async def test_commit_let_go_without_a_standby_is_no_success(server: PostgresServer, clock: ManualClock) -> None:
    """P1: the standby is dead, and an administrator empties the setting: all that wait go on, and nobody is warned."""
    async with opened(server.url(), new_schema()) as make:
        direct = Direct(await make(), clock)
        head = await direct.create("s")
        await sql(server.url(), "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", fetch=False)
        try:
            await sql(server.url(), "SELECT pg_reload_conf()")
            await anyio.sleep(0.3)
            async with anyio.create_task_group() as tasks:

                async def commit() -> None:
                    with pytest.raises(OutcomeUnknown, match="standby"):
                        await direct.commit(blind(head, events=[new_event("x")]), durability=Durability.REPLICATED)

                tasks.start_soon(commit)
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                with anyio.fail_after(10):
                    while not (await sql(server.url(), waiting))[0][0]:
                        await anyio.sleep(0.01)
                await sql(server.url(), "ALTER SYSTEM RESET synchronous_standby_names", fetch=False)
                await sql(server.url(), "SELECT pg_reload_conf()")
        finally:
            await sql(server.url(), "ALTER SYSTEM RESET synchronous_standby_names", fetch=False)
            await sql(server.url(), "SELECT pg_reload_conf()")
        assert len(await direct.events(head)) == 1


# --- hints -----------------------------------------------------------------------


class Heard:
    """What a watch was told."""

    def __init__(self) -> None:
        self.hints = list[Any]()

    def __call__(self, changed: Any) -> None:
        self.hints.append(changed)

    async def until(self, wanted: Callable[[Any], bool]) -> None:
        with anyio.fail_after(10):
            while not any(map(wanted, self.hints)):
                await anyio.sleep(0.005)


async def test_hints_come_again_after_a_lost_connection(make_backend: MakeBackend, clock: ManualClock) -> None:
    """C32: each new connection tells of anything, then of what is changed elsewhere; own commits are no news."""
    with TcpProxy("127.0.0.1", port_of(shared_url())) as proxy:
        sender = Direct(await make_backend(), clock)
        receiver = await make_backend(dsn=with_port(shared_url(), proxy.port), pgbouncer=False)
        own = Direct(receiver, clock, "own")
        heard = Heard()
        head, mine = await sender.create("s"), await own.create("mine")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receiver.watch, heard)
            for _ in range(2):
                await heard.until(lambda changed: changed is None)
                heard.hints.clear()
                await own.append(mine, "x")
                await sender.append(head, "x")
                await heard.until(lambda changed: changed is not None and head.incarnation in changed)
                assert not any(mine.incarnation in changed for changed in heard.hints)
                heard.hints.clear()
                proxy.reset()
            tasks.cancel_scope.cancel()


async def test_touches_are_no_news(make_backend: MakeBackend, clock: ManualClock) -> None:
    sender, receiver = Direct(await make_backend(), clock), await make_backend()
    heard = Heard()
    head = await sender.create("s")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.watch, heard)
        await heard.until(lambda changed: changed is None)
        early = await sender.create("early")
        await heard.until(lambda changed: changed is not None and early.incarnation in changed)
        heard.hints.clear()  # the hint of the first creation was not behind this one
        await sender.one(blind(head, units=0, active_us=head.active_us + 1))
        late = await sender.create("late")
        await heard.until(lambda changed: changed is not None and late.incarnation in changed)
        assert not any(head.incarnation in changed for changed in heard.hints if changed is not None)
        tasks.cancel_scope.cancel()


async def test_failing_hints_fail_no_commit(make_backend: MakeBackend, clock: ManualClock) -> None:
    backend = await make_backend()
    direct = Direct(backend, clock)
    head = await direct.create("s")
    await anyio.sleep(0.1)
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_notify%'"
    await sql(shared_url(), query + " AND pid <> pg_backend_pid()")
    for number in range(5):
        await direct.one(blind(head, events=[new_event(str(number))]))
        await anyio.sleep(0.05)
    assert len(await direct.events(head)) == 5


async def test_hint_after_an_idle_connection_was_ended(make_backend: MakeBackend, clock: ManualClock) -> None:
    """As `idle_session_timeout` does: the next hint goes over a new connection, at once and without a complaint."""
    backend, heard = await make_backend(), Heard()
    receiver, direct = await make_backend(), Direct(backend, clock)
    ended = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.watch, heard)
        await heard.until(lambda changed: changed is None)
        head = await direct.create("s")
        await heard.until(lambda changed: changed is not None and head.incarnation in changed)
        assert await sql(shared_url(), ended)
        await anyio.sleep(0.2)
        heard.hints.clear()
        with capture_logs() as logs:
            await direct.append(head, "x")
            await heard.until(lambda changed: changed is not None and head.incarnation in changed)
        assert logs == []
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("refused", ["notify", "listen"])
async def test_refused_hints_are_tried_again_ever_later(refused: str) -> None:
    """A connection that can be made is no success while each statement on it fails, as with an empty channel's."""
    connected = list[float]()
    waits = [0.1, 0.2, 0.4]

    async def run() -> None:
        enough = asyncio.Event()

        async def connect() -> Any:
            connected.append(time.monotonic())
            if len(connected) > len(waits):
                enough.set()
            return await connect_to(PostgresConfig(dsn=shared_url()), pooled=False)

        if refused == "notify":
            notifier = Notifier(connect, "", timeout_s=5.0)
            notifier.start()
            notifier.tell([1])
            stop = notifier.stop
        else:
            listener = Listener(connect, 'no"quotes' + "\0", own="me", timeout_s=5.0)
            listening = asyncio.ensure_future(listener.next())
            listening.add_done_callback(lambda _: None)

            async def stop() -> None:
                listening.cancel()
                await listener.stop()

        try:
            async with asyncio.timeout(20):
                await enough.wait()
        finally:
            await stop()

    bridge = Bridge("test")
    await bridge.start()
    try:
        await bridge.call(run)
    finally:
        await bridge.stop()
    gaps = [later - earlier for earlier, later in itertools.pairwise(connected)]
    assert all(gap >= wait / 2 for gap, wait in zip(gaps, waits, strict=False)), gaps


@pytest.mark.parametrize("count", [0, 1, 700, 701, 5_600, 5_601])
def test_hints_are_packed(count: int) -> None:
    """Payloads stay below the server's 8,000 bytes; past a bound they say "anything"."""
    incarnations = [(1 << 62) + number for number in range(count)]
    payloads = pack("me", incarnations)
    assert all(len(payload) < 8_000 for payload in payloads)
    found = [unpack(payload) for payload in payloads]
    assert {instance for instance, _ in found} <= {"me"}
    if count > 5_600:
        assert [changed for _, changed in found] == [None]
    else:
        assert [each for _, changed in found for each in changed or ()] == incarnations
    assert unpack("other nonsense!") == ("other", None)
