"""A lease in the store says that a server process is alive.

The lease is a Holdfast session with a short TTL that its process keeps touching: it is gone when
the TTL has passed, for every instance at once, by the store's own rules. A token names one life of
it. Clocks of the instances must agree to well within the lease.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import structlog

from holdfast.errors import HoldfastError, SessionExists, SessionNotFound

if TYPE_CHECKING:
    from holdfast.supervisor.session import Session
    from holdfast.supervisor.supervisor import Supervisor

__all__ = ["LEASE_OWNER", "Lease"]

_log = structlog.stdlib.get_logger("holdfast.integrations.mcp")

LEASE_OWNER: Final = "holdfast:mcp-instances"
_PREFIX: Final = "mcp-instance."
_GIVE_UP_WITHIN_S: Final = 2.0
"""A store that is away must not hold up the process's end: the lease runs out by itself."""


class Lease:
    """The lease of this process.

    Without a ``name`` it is a new one at each start, and requests of a killed process count as lost
    once its lease has run out. With a name that is the same at each start, and no other live
    process's, they count as lost as soon as the next process of that name has started.
    """

    def __init__(self, store: Supervisor, *, name: str | None = None, lease_s: float = 15.0) -> None:
        self._store = store
        self._lease_s = lease_s
        self._id = _PREFIX + (name or secrets.token_hex(8))
        self._session: Session | None = None

    @property
    def token(self) -> str:
        assert self._session is not None
        return _token(self._id, self._session.incarnation)

    async def pause(self) -> None:
        """Wait a third of the lease: between two looks at it, and between two prolongations."""
        await self._store.clock.sleep(self._lease_s / 3)

    async def alive(self, token: str) -> bool:
        """Whether the process that held ``token`` still holds it. Does not prolong it."""
        leases = {_token(info.id, info.incarnation) async for info in self._store.scan(owner=LEASE_OWNER)}
        return token in leases

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Hold the lease; on leaving, give it up, so that requests still running count as lost at once."""
        await self._store.delete(self._id)
        self._session = await self._create()
        try:
            yield
        finally:
            with anyio.move_on_after(_GIVE_UP_WITHIN_S, shield=True):
                await self._give_up()

    async def prolong(self) -> None:
        """To be called after each `pause`. Takes a new lease where the old one ran out."""
        assert self._session is not None
        try:
            await self._session.touch()
        except SessionNotFound:
            _log.warning("mcp.lease_ran_out", lease=self._id, lease_s=self._lease_s)
            try:
                self._session = await self._create()
            except SessionExists:
                _log.exception("mcp.lease_taken_by_another_process", lease=self._id)

    async def _create(self) -> Session:
        return await self._store.create(
            self._id,
            owner=LEASE_OWNER,
            ttl_s=self._lease_s,
            metadata={"host": platform.node(), "pid": os.getpid()},
        )

    async def _give_up(self) -> None:
        assert self._session is not None
        try:
            await self._session.delete()
        except HoldfastError as exc:
            _log.info("mcp.lease_not_given_up", lease=self._id, error=repr(exc))


def _token(lease_id: str, incarnation: int) -> str:
    return f"{lease_id}@{incarnation}"
