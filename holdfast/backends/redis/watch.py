"""Hints of other instances' commits, by publish and subscribe. Some may be lost: the engine polls besides."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog
from redis.exceptions import RedisError as DriverError

from holdfast.backends.redis.errors import translate
from holdfast.backends.redis.keys import Keys
from holdfast.backends.redis.link import CONNECTION_ERRORS, Link, Node, pack
from holdfast.errors import StoreError

__all__ = ["Listener"]

_log: Final = structlog.stdlib.get_logger("holdfast.redis")

_QUIET_S: Final = 15.0
"""After so long without a message the connection is tried; after twice as long it is dead."""
_RETRY_S: Final = 0.1
_RETRY_MAX_S: Final = 2.0


class Listener:
    """One subscription, on a connection of its own. Lives in the driver's event loop."""

    def __init__(self, link: Link, keys: Keys, instance: bytes) -> None:
        self._link: Final = link
        self._channel: Final = keys.channel
        self._instance: Final = instance
        self._node: Node | None = None
        self._connection: Any = None
        self._tried = False

    async def next(self) -> list[int] | None:
        """The incarnations that another instance wrote to; None: anything may have changed, as after a new connection.

        Waits for as long as it takes, for the server too.
        """
        delay_s = _RETRY_S
        while True:
            try:
                if self._connection is None:
                    await self._subscribe()
                    return None
                message = await self._read()
            except (StoreError, *CONNECTION_ERRORS) as exc:
                await self.close()
                if delay_s == _RETRY_S:  # once until it works again
                    _log.warning("redis.listening_failed", error=str(_translated(exc)))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_MAX_S)
                continue
            if message is not None and not message.startswith(self._instance):
                body = message[len(self._instance) :]
                return [int.from_bytes(body[at : at + 8], "big") for at in range(0, len(body), 8)]

    async def _subscribe(self) -> None:
        self._node = self._link.node()
        self._connection = await self._node.connect()
        self._tried = False
        await self._connection.send_packed_command(pack([(b"SUBSCRIBE", self._channel)]), check_health=False)
        await self._connection.read_response(disconnect_on_error=False)

    async def _read(self) -> bytes | None:
        """A message; None for anything else. Raises: the driver's `ConnectionError` if nobody is there any more."""
        reply = await self._connection.read_response(timeout=_QUIET_S, disconnect_on_error=False)
        if reply is None:
            if self._tried:
                raise DriverError("the server is silent")
            self._tried = True
            await self._connection.send_packed_command(pack([(b"PING",)]), check_health=False)
            return None
        self._tried = False
        return reply[2] if reply[0] == b"message" else None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._node is not None:
            await self._node.release(connection, reusable=False)


def _translated(exc: Exception) -> StoreError:
    return exc if isinstance(exc, StoreError) else translate(exc)
