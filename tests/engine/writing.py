"""A store whose writer is set as a test says, and the wait until it has written everything."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel

from holdfast.backends.base import Backend
from holdfast.config import Config, WriterConfig
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import ManualClock

__all__ = ["drained", "open_store"]

PATIENCE_S = 10


def open_store(backend: Backend, clock: ManualClock, **writer: Any) -> Supervisor:
    return Supervisor(backend, Config(ttl_s=None, writer=WriterConfig(**writer)), clock=clock)


async def drained(store: Supervisor) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not store._engine.idle:
            await anyio.lowlevel.checkpoint()
