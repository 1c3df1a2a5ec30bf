"""What is in the way for good: other programs' keys, missing rights, values too large, scripts that fail."""

from __future__ import annotations

import contextlib

import anyio
import pytest

import holdfast
from holdfast.backends.base import LoadRequest, SessionFilter, Status, TrimPolicy
from holdfast.backends.redis import RedisBackend, commit
from holdfast.backends.redis.scripts import COMMIT, Script
from holdfast.backends.urls import create_backend
from holdfast.errors import LimitExceeded, OutcomeUnknown, Rejected, SessionNotFound, Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head, texts
from tests.servers.processes import wait_until
from tests.servers.proxy import TcpProxy
from tests.servers.valkey import ALWAYS, ValkeyServer, new_prefix, own_server

pytestmark = pytest.mark.anyio

SECOND = 1_000_000


async def test_another_programs_key(server: ValkeyServer, direct: Direct, backend: RedisBackend) -> None:
    """C47: refused for good, and nothing of the batch is stored; without it, the rest commits."""
    heads = [await direct.create(f"good{number}") for number in range(10)]
    key = backend._keys.head("bad")
    bad = creation(new_head("bad", 0))
    for foreign in (("RPUSH", key, "x"), ("SET", key, "short")):
        server.command("DEL", key)
        server.command(*foreign)
        for batch in ([*(blind(head, events=[new_event("x")]) for head in heads), bad], [bad]):
            with pytest.raises(Rejected, match="another program's"):
                await direct.commit(*batch)
    for head in heads:
        assert await direct.head(head.id) == head
    server.command("DEL", key)
    assert (await direct.one(bad)).status is Status.COMMITTED


@pytest.mark.parametrize("letter", ["h", "s", "e"])
async def test_another_programs_keys(server: ValkeyServer, direct: Direct, backend: RedisBackend, letter: str) -> None:
    """State, events, a head that is too short: refused for good, and nothing of the batch is stored."""
    one, two = await direct.create("one"), await direct.create("two")
    key = backend._keys.head("two")[:-1] + letter.encode()
    server.command("SET", key, "x")
    good, bad = blind(one, events=[new_event("once")]), blind(two, sets={"k": (b"1", 1)}, events=[new_event("x")])
    if server.is_cluster:  # that they were ours was seen before: the others are stored, and it may try again
        outcomes = await direct.commit(good, bad)
        assert [outcome.status for outcome in outcomes] == [Status.COMMITTED, Status.CONFLICT]
        assert await backend.resolve(direct.last_marker) == outcomes
        one = await direct.head("one")
    with pytest.raises(Rejected, match="another program's"):
        await direct.commit(good, bad)
    assert await direct.head("one") == one
    with pytest.raises(Rejected, match="another program's"):
        await direct.one(bad)
    if letter != "h":
        with pytest.raises(Rejected, match="another program's"):
            await direct.one(blind(two, removes=["k"], events=[new_event("x")]))
        server.command("DEL", key)
        assert await direct.head("two") == two
        assert (await direct.one(bad)).status is Status.COMMITTED


@pytest.mark.parametrize("letter", ["s", "e"])
async def test_poison_among_many(server: ValkeyServer, letter: str) -> None:
    """C47, P11: of sessions that are written to at once, one whose state (or log) is another program's fails alone."""
    prefix = new_prefix()
    async with holdfast.open(server.url(prefix=prefix)) as store:
        sessions = [await store.create(f"s{number}") for number in range(30)]
        server.command("SET", f"{prefix}:{{s7}}:{letter}", "foreign")
        failed: dict[str, Exception] = {}

        async def write(session: holdfast.Session) -> None:
            try:
                async with session.unit() as unit:
                    unit.set("k", 1)
                    unit.append("once")
            except holdfast.HoldfastError as exc:
                failed[session.id] = exc

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(write, session)
        assert failed.keys() == {"s7"}
        # That its state cannot be read may be found out first.
        assert isinstance(failed["s7"], Rejected | SessionNotFound)
        for session in sessions:
            if session.id != "s7":
                assert [event.data for event in await session.events()] == ["once"]
                assert await session.state() == {"k": 1}


@pytest.mark.parametrize(("letter", "foreign"), [("h", "list"), ("h", "short"), ("h", "other"), ("s", "list")])
async def test_reads_beside_another_programs_key(
    server: ValkeyServer, direct: Direct, backend: RedisBackend, clock: ManualClock, letter: str, foreign: str
) -> None:
    """P11: who asks for it finds no session; others are loaded, listed and counted as ever."""
    heads = [await direct.create(name) for name in "abc"]
    key = backend._keys.head("b")[:-1] + letter.encode()
    server.command("DEL", key)
    server.command("RPUSH" if foreign == "list" else "SET", key, "x" * 200 if foreign == "other" else "x")
    snapshots = await backend.load([LoadRequest(head.id) for head in heads])
    assert [snapshot is not None for snapshot in snapshots] == [True, False, True]
    wanted = ["a", "c"] if letter == "h" else ["a", "b", "c"]
    assert await direct.listed() == wanted
    assert await backend.count_sessions(SessionFilter(clock.now_us())) == len(wanted)


@pytest.mark.parametrize("letter", ["h", "e"])
async def test_trimming_beside_another_programs_key(
    server: ValkeyServer, direct: Direct, backend: RedisBackend, letter: str
) -> None:
    """P9: the others are trimmed, also by a sweep, which goes on behind it."""
    for _ in range(2):
        heads = [await direct.append(await direct.create(new_prefix()), "x", "y") for _ in range(12)]
        server.command("DEL", key := backend._keys.head(heads[3].id)[:-1] + letter.encode())
        server.command("HSET", key, "k", "v")
        sessions = [(head.id, head.incarnation) for head in heads[:6]]
        assert await backend.trim(sessions, TrimPolicy(min_time_us=1), 100) == 10
        assert await backend.trim(None, TrimPolicy(min_time_us=1), 100) == 12
        assert await backend.trim(None, TrimPolicy(min_time_us=1), 100) == 0


async def test_log_that_lacks_events(
    server: ValkeyServer, direct: Direct, backend: RedisBackend, clock: ManualClock
) -> None:
    """Another program deleted some: that is an error, and not an empty page, nor other events in their place."""
    head = await direct.append(await direct.create("s"), "a", "b", "c")
    key = backend._keys.head("s")[:-1] + b"e"
    server.command("LTRIM", key, "1", "-1")
    with pytest.raises(Unavailable, match="damaged"):
        await direct.events(head)
    assert texts((await direct.page(head, after_seq=1)).events) == ["b", "c"]
    assert await backend.trim([("s", head.incarnation)], TrimPolicy(max_bytes=1), 100) == 0
    server.command("DEL", key)
    with pytest.raises(Unavailable, match="damaged"):
        await direct.page(head, last=True, limit=1)


async def test_another_programs_marker(server: ValkeyServer, direct: Direct, backend: RedisBackend) -> None:
    head = await direct.create("s")
    marker = direct.last_marker
    key = backend._keys.session_marker(backend._keys.head("s"), marker)
    if not server.is_cluster:
        key = backend._keys.marker(*marker[:2])
    server.command("DEL", key)
    server.command("RPUSH", key, "x")
    with pytest.raises(Rejected, match="another program's"):
        await direct.one(blind(head, events=[new_event("x")]))
    assert await direct.events(head) == []


async def test_more_than_the_server_takes(server: ValkeyServer, clock: ManualClock) -> None:
    """C47: of one argument (proto-max-bulk-len). Alone it is refused by name; in company, before anything is sent."""
    server.command("CONFIG", "SET", "proto-max-bulk-len", "1mb")
    try:
        url = server.url(prefix=new_prefix())
        async with holdfast.open(url) as store:
            assert store.capabilities.max_unit_bytes == 256 << 10
            sessions = [await store.create() for _ in range(8)]
            with pytest.raises(LimitExceeded, match="262,144"):
                await sessions[0].set("k", "x" * 300_000)
            async with anyio.create_task_group() as tasks:  # more than one call takes
                for session in sessions:
                    tasks.start_soon(session.set, "k", "x" * 250_000)
            assert [len(await session.get("k")) for session in sessions] == [250_000] * 8
        backend = create_backend(url)
        await backend.open()
        direct = Direct(backend, clock)
        heads = [await direct.create(name) for name in "ab"]
        large = blind(heads[0], sets={"k": (b'"%s"' % (b"x" * (1 << 20)), 1)})
        with pytest.raises(Rejected, match="proto-max-bulk-len"):
            await direct.commit(large, blind(heads[1], events=[new_event("x")]))
        assert await direct.head("b") == heads[1]
        assert (await direct.one(blind(heads[1], events=[new_event("x")]))).status is Status.COMMITTED
        await backend.close()
    finally:
        server.command("CONFIG", "SET", "proto-max-bulk-len", "512mb")


async def test_missing_right(server: ValkeyServer, proxy: TcpProxy, clock: ManualClock) -> None:
    """A command that the server's user may not use: found before anything is changed."""
    server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-pexpire")
    backend = create_backend(f"redis://app:secret@127.0.0.1:{proxy.port}/?prefix={new_prefix()}")
    await backend.open()
    try:
        direct = Direct(backend, clock)
        mortal = creation(new_head("mortal", clock.now_us(), ttl_us=SECOND), events=[new_event("x")])
        for _ in range(2):
            with pytest.raises(Unavailable, match="denied"):
                await direct.commit(creation(new_head("s", clock.now_us())), mortal)
            assert not await direct.exists("mortal")
        server.command("ACL", "SETUSER", "app", "+pexpire")
        assert (await direct.one(mortal)).status is Status.COMMITTED
    finally:
        await backend.close()
        server.command("ACL", "DELUSER", "app")


async def test_server_that_ends_in_mid_script(clock: ManualClock) -> None:
    """Nobody can kill a script that has changed something; with its server it goes whole, and is made up for."""
    keys, replies = 200_000, list[bytes]()
    with own_server({**ALWAYS, "busy-reply-threshold": "10"}) as server:
        backend = create_backend(server.url(timeout_s=20))
        assert isinstance(backend, RedisBackend)
        await backend.open()
        direct = Direct(backend, clock)
        head = await direct.create("s")

        def end_server() -> None:
            wait_until(lambda: b"BUSY" in server.command("PING"), what="the script does not run")
            replies.append(server.command("SCRIPT", "KILL"))
            with contextlib.suppress(OSError):
                replies.append(server.command("SHUTDOWN", "NOSAVE"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, end_server)
            write = blind(head, sets={f"k{number}": (b"1", 1) for number in range(keys)}, events=[new_event("once")])
            with pytest.raises(OutcomeUnknown):
                await direct.one(write)
        assert [reply[:11] for reply in replies] == [b"-UNKILLABLE"]
        server.stop()
        server.start()
        assert await direct.head("s") == head
        outcomes = await backend.resolve(direct.last_marker)
        assert outcomes is not None
        assert outcomes[0].status is Status.COMMITTED
        assert len(await direct.state("s")) == keys
        assert texts(await direct.events(head)) == ["once"]
        await backend.close()


async def test_script_that_breaks_off(
    server: ValkeyServer, direct: Direct, backend: RedisBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a mistake of ours: the session is named, and what was done until then is not known, and not done again."""
    heads = [await direct.create(name) for name in "abc"]
    fault = b"call('RPUSH', key, list(values, 1, 1)); if values[1]:find('bad', 1, true) then error('a mistake') end "
    source = COMMIT.source.replace(
        b"local _, length = in_chunks('RPUSH'", fault + b"local _, length = in_chunks('RPUSH'"
    )
    assert source != COMMIT.source
    script = Script(source, server.command("SCRIPT", "LOAD", source).split(b"\r\n")[1])
    monkeypatch.setattr(commit, "COMMIT", script)
    writes = [blind(head, events=[new_event("bad" if head.id == "b" else "good")]) for head in heads]
    with pytest.raises(OutcomeUnknown, match=r"'b'.*a mistake"):
        await direct.commit(*writes)
    for _ in range(2):
        with pytest.raises(OutcomeUnknown, match=r"'b'.*a mistake"):
            await backend.resolve(direct.last_marker)
    key = backend._keys.head("b")[:-1] + b"e"
    assert server.command("LLEN", key) == b":1\r\n"
    monkeypatch.undo()
    assert (await direct.one(blind(heads[0], events=[new_event("later")]))).status is Status.COMMITTED
