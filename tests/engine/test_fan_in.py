"""One wait for many acknowledgements."""

from __future__ import annotations

import anyio
import pytest

from holdfast.actors.fan_in import FanIn
from holdfast.errors import Rejected, SessionNotFound, Unavailable
from holdfast.testing import ManualClock
from holdfast.waiting import ack_factory

pytestmark = pytest.mark.anyio


async def test_it_ends_with_the_last_of_them(clock: ManualClock) -> None:
    fan_in = FanIn(3, ack_factory())
    ended = anyio.Event()

    async def wait() -> None:
        await fan_in
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        for _ in range(3):
            await clock.settle()
            assert not ended.is_set()
            fan_in.set_result(None)
    assert ended.is_set()


async def test_it_raises_the_first_error_that_matters() -> None:
    fan_in = FanIn(4, ack_factory())
    for error in (SessionNotFound("s"), Unavailable("first"), Rejected("second")):
        fan_in.set_exception(error)
    fan_in.set_result(None)
    with pytest.raises(Unavailable, match="first"):
        await fan_in


async def test_nobody_is_told_who_has_stopped_waiting(clock: ManualClock) -> None:
    fan_in = FanIn(2, ack_factory())
    waiting = anyio.CancelScope()

    async def wait() -> None:
        with waiting:
            await fan_in

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await clock.settle()
        assert not fan_in.done()
        waiting.cancel()
    assert fan_in.done()
