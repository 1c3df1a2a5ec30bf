"""What each operation costs in request units, as docs/dynamodb.md says; counted by the emulator.

dynoxide gives the figures (``ReturnConsumedCapacity``); they are those that AWS's published rules give
for the sizes of our items, which is checked where the rules are simple.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from holdfast.backends.base import EventQuery, LoadRequest
from holdfast.backends.dynamodb import DynamoDBBackend, DynamoDBConfig
from holdfast.model import new_incarnation, new_session_id
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head
from tests.servers.dynamodb import config_for, dynoxide, fast_endpoint
from tests.servers.http_proxy import HttpProxy
from tests.servers.processes import not_here

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[3] / "docs/dynamodb.md"
TEXT = "x" * 198
"""200 bytes as JSON."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def proxy() -> Iterator[HttpProxy]:
    if dynoxide() is None:
        not_here("dynoxide counts request units, and is not to be had")
    with HttpProxy(fast_endpoint()) as proxy:
        yield proxy


@pytest.fixture
def config(proxy: HttpProxy) -> DynamoDBConfig:
    return config_for(proxy.url)


class Meter:
    """Counts the units of a piece of work."""

    def __init__(self, proxy: HttpProxy) -> None:
        self._proxy = proxy
        self.rows = dict[str, tuple[float, float]]()

    async def __call__(
        self, what: str, work: Callable[[], Awaitable[object]], times: int = 1, *, writes: int = 1
    ) -> None:
        """Note the units of ``work``, a mean of ``times``, for each of its ``writes``."""
        proxy = self._proxy
        proxy.read_units = proxy.write_units = 0.0
        proxy.metered = True
        for _ in range(times):
            await work()
        proxy.metered = False
        count = times * writes
        digits = 2 if writes > 1 else 6  # which of a flush's requests ends first is not always the same
        self.rows[what] = (round(proxy.write_units / count, digits), round(proxy.read_units / count, digits))

    def table(self) -> str:
        lines = ["| operation | write units | read units |", "| --- | --- | --- |"]
        lines += [f"| {what} | {writes:.4g} | {reads:.4g} |" for what, (writes, reads) in self.rows.items()]
        return "\n".join(lines)


async def test_request_units_are_those_of_the_page(
    proxy: HttpProxy, backend: DynamoDBBackend, clock: ManualClock
) -> None:
    direct, meter = Direct(backend, clock), Meter(proxy)

    def head(number: int, **fields: object) -> object:
        incarnation = new_incarnation(clock.now_us())
        return new_head(new_session_id(incarnation), clock.now_us(), incarnation=incarnation, ttl_us=10**10, **fields)

    anonymous, owned, plain, small, large, burst, mixed = (head(n, owner="owner" if n == 1 else None) for n in range(7))
    await meter("create a session", lambda: direct.one(creation(anonymous)))
    await meter("create a session with an owner", lambda: direct.one(creation(owned)))
    for each in (plain, small, large, burst, mixed):
        await direct.one(creation(each))

    def append(to: object) -> Callable[[], Awaitable[object]]:
        return lambda: direct.one(blind(to, events=[new_event(TEXT, time_us=clock.now_us())]))

    await meter("append one event of 200 bytes (mean of 1,000)", append(plain), 1_000)
    crowd = [head(n) for n in range(64)]
    for each in crowd:
        await direct.one(creation(each))

    async def append_together() -> None:
        await direct.commit(*(blind(each, events=[new_event(TEXT, time_us=clock.now_us())]) for each in crowd))

    await meter(
        "append one such event in a flush of 64 sessions (mean of 100 flushes)", append_together, 100, writes=len(crowd)
    )
    thousand = [new_event(TEXT, time_us=clock.now_us()) for _ in range(1_000)]
    await meter("append 1,000 such events in one flush", lambda: direct.one(blind(burst, events=thousand)))
    ten = thousand[:10]
    await meter("append 10 such events in one flush", lambda: direct.one(blind(mixed, events=ten)))
    await meter(
        "set a key of 100 bytes", lambda: direct.one(blind(small, sets={"k": (b'"' + b"x" * 98 + b'"', 1)})), 10
    )
    both = {"sets": {"k": (b"[1]", 1)}, "events": thousand[:1]}
    await meter(
        "set a small key and append one event, as one unit (mean of 100)", lambda: direct.one(blind(small, **both)), 100
    )
    value = {"k": (b'"' + b"x" * 1_998 + b'"', 1)}
    await meter("set a key of 2,000 bytes", lambda: direct.one(blind(large, sets=value)), 10)
    await meter("touch (store activity)", lambda: direct.one(blind(anonymous, units=0, active_us=clock.now_us())), 10)

    await meter("load a session, small state", lambda: backend.load([LoadRequest(small.id)]))
    await meter("load a session, a key of 2,000 bytes", lambda: backend.load([LoadRequest(large.id)]))
    newest = EventQuery(plain.id, plain.incarnation, after_seq=999)
    await meter("look for news (a poll, or the newest event)", lambda: backend.read_events(newest))
    for what, session in (("one by one", plain), ("in one flush", burst)):
        whole = EventQuery(session.id, session.incarnation, limit=10_000)
        await meter(f"replay 1,000 events that were appended {what}", lambda whole=whole: backend.read_events(whole))
    await meter("delete a small session", lambda: direct.one(blind(anonymous, delete=True)))
    await meter("look for expired sessions when there are none", lambda: backend.expire(clock.now_us(), 100))

    table = meter.table()
    assert meter.rows["append one event of 200 bytes (mean of 1,000)"][0] < 1.4
    assert meter.rows["append one such event in a flush of 64 sessions (mean of 100 flushes)"][0] < 0.8
    assert meter.rows["append 1,000 such events in one flush"][0] <= 1_000 / 2, "one put each would be 1,000"
    assert meter.rows["append 10 such events in one flush"][0] <= 10 / 2
    assert table in PAGE.read_text(), f"docs/dynamodb.md should have\n{table}"
