"""The watcher where the store cannot tell of others' commits, or might fail to."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

import holdfast
from holdfast.backends.base import Capabilities
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import WatchConfig
from holdfast.supervisor.watcher import Rota
from holdfast.testing import FaultyBackend

pytestmark = pytest.mark.anyio


class Telling(FaultyBackend):
    """A store that tells of others' commits as ``watches`` and ``complete`` say."""

    def __init__(self, inner: MemoryBackend, *, watches: bool, complete: bool) -> None:
        super().__init__(inner)
        self._watches, self._complete = watches, complete

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(
            super().capabilities, exclusive=False, watches=self._watches, watch_is_complete=self._complete
        )

    async def watch(self, changed: Any) -> None:
        self.calls["watch"] += 1
        if self._complete:
            await super().watch(changed)
        await anyio.sleep_forever()  # it never tells


@pytest.mark.parametrize("watches", [False, True])
async def test_a_silent_store_is_polled(watches: bool) -> None:
    """C32: an event of another instance arrives though nobody tells of it."""
    data = MemoryData()
    async with (
        holdfast.Supervisor(Telling(MemoryBackend(data), watches=watches, complete=False)) as here,
        holdfast.Supervisor(MemoryBackend(data)) as there,
    ):
        session = await here.create("s")
        elsewhere = await there.require("s")
        async with session.subscribe() as events:
            for number in range(3):
                await elsewhere.append(number)
                with anyio.fail_after(5):
                    assert (await anext(events)).data == number


class FakeActor:
    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation


def test_the_rota_goes_often_where_there_is_news() -> None:
    rota = Rota(WatchConfig(poll_min_s=1.0, poll_max_s=8.0))
    busy: Any = FakeActor(1)
    quiet: Any = FakeActor(2)
    rota.welcome({busy, quiet}, 0.0)
    looks = {busy: 0, quiet: 0}
    now_s = 0.0
    while now_s < 64:
        now_s += rota.delay_s(now_s)
        for actor in list(rota.due(now_s)):
            looks[actor] += 1
            rota.seen(actor, now_s, news=actor is busy)
    assert looks[busy] >= 63
    assert looks[quiet] == 1 + 2 + (64 - 7) // 8  # after 1, 2, 4, then every 8


def test_the_rota_forgets_who_left() -> None:
    rota = Rota(WatchConfig(poll_min_s=1.0, poll_max_s=8.0))
    gone: Any = FakeActor(1)
    stays: Any = FakeActor(2)
    rota.welcome({gone, stays}, 0.0)
    rota.welcome({stays}, 0.5)
    assert list(rota.due(10.0)) == [stays]
    assert rota.delay_s(10.0) == 8.0
