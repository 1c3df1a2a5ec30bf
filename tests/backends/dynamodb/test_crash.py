"""CONFORMANCE 45: the server is killed again and again (kill -9); what was acknowledged is there, once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

import holdfast
from holdfast.backends.dynamodb import DynamoDBBackend
from holdfast.errors import StoreError
from holdfast.model import Durability
from holdfast.supervisor.supervisor import Supervisor
from tests.servers.dynamodb import config_for, own_dynoxide

pytestmark = pytest.mark.anyio

KILLS = 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_server_that_is_killed(tmp_path: Path) -> None:
    """The engine goes on by itself when the server is there again; numbers have no gap."""
    database = tmp_path / "dynamo.sqlite"
    with own_dynoxide(database) as (first, port):
        backend = DynamoDBBackend(config_for(f"http://127.0.0.1:{port}"))
        async with Supervisor(backend, holdfast.Config(durability=Durability.PROCESS)) as store:
            sessions = [await store.create(f"s{number}", ttl_s=None) for number in range(4)]
            acked: dict[str, list[int]] = {session.id: [] for session in sessions}
            tried: dict[str, int] = dict.fromkeys(acked, 0)
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(_append, session, acked[session.id], tried)
                first.send(signal.SIGKILL)
                for _ in range(KILLS - 1):
                    with own_dynoxide(database, port):
                        await _progress(acked)
                with own_dynoxide(database, port):
                    await _progress(acked)
                    tasks.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        for session in sessions:
                            await _check(session, acked[session.id])


async def _append(session: holdfast.Session, acked: list[int], tried: dict[str, int]) -> None:
    while True:
        tried[session.id] += 1
        number = tried[session.id]
        try:
            await session.append(number)
        except StoreError:
            await anyio.sleep(0.01)
        else:
            acked.append(number)


async def _progress(acked: dict[str, list[int]]) -> None:
    """Until each session has a few more."""
    goal = {name: len(numbers) + 5 for name, numbers in acked.items()}
    with anyio.fail_after(60):
        while any(len(acked[name]) < goal[name] for name in goal):
            await anyio.sleep(0.01)


async def _check(session: holdfast.Session, acked: list[int]) -> None:
    events = await session.events()
    found: list[Any] = [event.data for event in events]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert found == sorted(set(found)), "doubled, or out of order"
    assert set(acked) <= set(found)
