"""No script keeps the server for long, however long a log is: counted in entries, as the server tells."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from types import TracebackType

import pytest

from holdfast.backends.base import Head, TrimPolicy
from holdfast.backends.redis import RedisBackend
from holdfast.testing.contract.direct import Direct, blind, new_event, texts
from tests.servers.valkey import ValkeyServer, new_prefix, packed, shared_server

pytestmark = pytest.mark.anyio

EVENTS = 200_000
AT_ONCE = 10_000
BOUND = 2 * 5_000 + 512
"""Events that one script may look at and delete."""
WORDS = re.compile(r'"([^"]*)"')


class Monitor:
    """Listens to all that the server does, and counts the entries of lists that each script reads or deletes."""

    def __init__(self, server: ValkeyServer) -> None:
        self._connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self._server = server
        self._thread = threading.Thread(target=self._listen, name="monitor")
        self._ready = threading.Event()
        self.scripts: list[int] = []

    def __enter__(self) -> Monitor:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.command("ECHO", "that is all")
        self._thread.join()
        self._connection.close()

    def _listen(self) -> None:
        self._connection.sendall(packed("MONITOR"))
        with self._connection.makefile("r", errors="replace") as lines:
            for line in lines:
                self._ready.set()
                words = WORDS.findall(line)
                if words == ["ECHO", "that is all"]:
                    return
                self._count(words)

    def _count(self, words: list[str]) -> None:
        match [word.upper() for word in words[:1]]:
            case ["EVALSHA"]:
                self.scripts.append(0)
            case ["LRANGE"]:
                self.scripts[-1] += int(words[3]) - int(words[2]) + 1
            case ["LTRIM"]:
                self.scripts[-1] += int(words[2])
            case _:
                pass


@pytest.fixture(scope="module")
def server() -> ValkeyServer:
    return shared_server("valkey")


@pytest.fixture
def url(server: ValkeyServer) -> str:
    return server.url(prefix=new_prefix())


@pytest.fixture
async def head(direct: Direct) -> Head:
    """A session with a long log; the ninth event is the only one of its stream."""
    head = await direct.create("s")
    for start in range(1, EVENTS, AT_ONCE):
        events = [
            new_event(str(seq), stream="rare" if seq == 9 else "", time_us=seq) for seq in range(start, start + AT_ONCE)
        ]
        await direct.one(blind(head, events=events))
    return await direct.head("s")


@pytest.fixture
def monitor(head: Head, server: ValkeyServer) -> Iterator[Monitor]:
    with Monitor(server) as monitor:
        yield monitor
    assert monitor.scripts
    assert max(monitor.scripts) <= BOUND


async def test_newest_of_a_rare_stream(direct: Direct, head: Head, monitor: Monitor) -> None:
    page = await direct.page(head, stream="rare", limit=2, last=True)
    assert texts(page.events) == ["9"]
    assert (page.scanned_seq, page.more, page.last_seq) == (EVENTS, False, EVENTS)


async def test_newest_of_many(direct: Direct, head: Head, monitor: Monitor) -> None:
    page = await direct.page(head, limit=30_000, last=True)
    assert texts(page.events) == [str(seq) for seq in range(EVENTS - 29_999, EVENTS + 1)]


async def test_large_page(direct: Direct, head: Head, monitor: Monitor) -> None:
    page = await direct.page(head, after_seq=7, limit=30_000, max_bytes=1 << 40)
    assert texts(page.events) == [str(seq) for seq in range(8, 30_008)]
    assert (page.scanned_seq, page.more) == (30_007, True)


async def test_size_of_a_page_in_parts(direct: Direct, head: Head, monitor: Monitor) -> None:
    """The bound on its bytes is one for all parts, and the least page has one event."""
    whole = await direct.page(head, limit=20_000, max_bytes=1 << 40)
    short = await direct.page(head, limit=20_000, max_bytes=12_000 * 22)
    assert 5_000 < len(short.events) < 20_000
    assert short.events == whole.events[: len(short.events)]
    assert short.scanned_seq == len(short.events)
    assert len((await direct.page(head, max_bytes=1)).events) == 1


async def test_trim_by_age(direct: Direct, backend: RedisBackend, head: Head, monitor: Monitor) -> None:
    sessions = [(head.id, head.incarnation)]
    assert await backend.trim(sessions, TrimPolicy(min_time_us=50_001), 1_000) == 1_000
    assert await backend.trim(sessions, TrimPolicy(min_time_us=EVENTS - 9), EVENTS) == EVENTS - 1_010
    assert texts(await direct.events(head)) == [str(seq) for seq in range(EVENTS - 9, EVENTS + 1)]
    assert await backend.trim(sessions, TrimPolicy(min_time_us=EVENTS - 9), EVENTS) == 0


async def test_trim_by_size(direct: Direct, backend: RedisBackend, head: Head, monitor: Monitor) -> None:
    sessions = [(head.id, head.incarnation)]
    policy = TrimPolicy(max_bytes=8 * 50_000)  # of '"123456"'
    assert await backend.trim(sessions, policy, EVENTS) == EVENTS - 50_000
    assert (await direct.head("s")).first_seq == EVENTS - 49_999
    assert await backend.trim(sessions, policy, EVENTS) == 0


async def test_trim_of_dropped_events(direct: Direct, backend: RedisBackend, head: Head, monitor: Monitor) -> None:
    await direct.one(blind(head, floor_seq=EVENTS - 99))
    assert await backend.trim(None, TrimPolicy(), EVENTS) == EVENTS - 100
    assert len(await direct.events(head)) == 100


async def test_commit_after_a_drop(direct: Direct, head: Head, monitor: Monitor) -> None:
    """It deletes a part of what is dropped, and leaves the rest to the trimmer."""
    await direct.one(blind(head, floor_seq=EVENTS - 99))
    await direct.append(head, "new")
    assert len(await direct.events(head)) == 101
