"""The way to the server: commands out in one write, replies back, and what is known when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ReadOnlyError, ResponseError
from redis.exceptions import RedisError as DriverError

from holdfast.backends.redis.config import RedisConfig
from holdfast.backends.redis.errors import translate
from holdfast.errors import OutcomeUnknown, Unavailable

__all__ = ["CONNECTION_ERRORS", "Argument", "Command", "Link", "Node", "Reply", "SingleLink"]

Argument = bytes | int
Reply = Any
"""Bytes, an integer, None, a list of these, or an error: a refused command, of which nothing was done."""

CONNECTION_ERRORS: Final = (DriverError, OSError, RuntimeError)
"""What the driver raises when a connection breaks; uvloop raises RuntimeError for a closed transport."""
_REFUSALS: Final = (ResponseError, BusyLoadingError, AuthenticationError, AuthorizationError)


class Command(NamedTuple):
    """``key`` says where in a cluster it goes; None: anywhere."""

    key: bytes | None
    arguments: tuple[Argument, ...]


class Link(Protocol):
    """A server, or a cluster of them. Used from the driver's event loop only."""

    in_order: bool
    """Whether commands sent at once are carried out in their order."""

    async def send(self, commands: Sequence[Command]) -> list[Reply]:
        """Send all at once; one reply for each, which may be an error.

        Raises: `Unavailable` (none was sent) or `OutcomeUnknown` (the connection was lost: any of
        them may have been carried out, or be carried out later).
        """
        ...

    async def send_everywhere(self, commands: Sequence[tuple[Argument, ...]]) -> list[Reply]:
        """The same commands to every server; all replies."""
        ...

    def groups(self, keys: Sequence[bytes]) -> Iterable[list[int]]:
        """Which of the keys one script may use: their places in ``keys``."""
        ...

    def declared(self, heads: Sequence[bytes], *, writes: bool = False) -> list[bytes]:
        """The keys of sessions that a script must be given, one that ``writes`` or not: their heads first."""
        ...

    def node(self) -> Node:
        """Any server, to listen on."""
        ...

    async def close(self) -> None: ...


class Node:
    """One server, and connections to it."""

    def __init__(self, config: RedisConfig, host: str | None = None, port: int | None = None) -> None:
        self._pool: Final[Any] = ConnectionPool(**connection_options(config, host, port))
        self._places: Final = asyncio.Semaphore(config.pool_size)
        self._closed = False

    async def send(self, commands: Sequence[tuple[Argument, ...]]) -> list[Reply]:
        """As `Link.send`. Waits for a free connection."""
        async with self._places:
            connection = await self.connect()
            replies: list[Reply] = []
            try:
                await connection.send_packed_command(pack(commands), check_health=False)
                replies = [await _read(connection) for _ in commands]
            except CONNECTION_ERRORS as exc:
                raise OutcomeUnknown(f"the connection to the server was lost ({translate(exc)})") from exc
            finally:
                await self.release(connection, reusable=len(replies) == len(commands))
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            # Demoted. Its name may stand for another server by now: do not stay on the old connections.
            await self._pool.disconnect(inuse_connections=False)
        return replies

    async def connect(self) -> Any:
        """A connection that is the caller's until `release`. Raises: `Unavailable`."""
        try:
            return await self._pool.get_connection()
        except CONNECTION_ERRORS as exc:
            raise Unavailable(str(translate(exc))) from exc

    async def release(self, connection: Any, *, reusable: bool) -> None:
        if reusable and not self._closed:
            await self._pool.release(connection)
        else:  # perhaps because we are cancelled
            await asyncio.shield(self._discard(connection))

    async def _discard(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)

    async def close(self) -> None:
        """What is still on its way may end; nothing stays open behind it."""
        self._closed = True
        await self._pool.disconnect()


async def _read(connection: Any) -> Reply:
    """The next reply. What the driver raises for an answer is one, and the connection stays."""
    try:
        return await connection.read_response(disconnect_on_error=False)
    except _REFUSALS as exc:
        return exc


def pack(commands: Iterable[tuple[Argument, ...]]) -> bytes:
    """The commands in the server's protocol. The driver's own packing is several times slower."""
    pieces: list[bytes] = []
    for arguments in commands:
        pieces.append(b"*%d\r\n" % len(arguments))
        for argument in arguments:
            text = argument if isinstance(argument, bytes) else b"%d" % argument
            pieces.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(pieces)


def connection_options(config: RedisConfig, host: str | None = None, port: int | None = None) -> dict[str, Any]:
    """For the driver's pool. Nothing is tried again behind our back."""
    options: dict[str, Any] = {
        "db": config.db,
        "username": config.username,
        "password": config.password,
        "socket_timeout": config.timeout_s,
        "socket_connect_timeout": config.connect_timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if config.path is not None:
        return options | {"connection_class": UnixDomainSocketConnection, "path": config.path}
    options |= {"connection_class": Connection, "host": host or config.host, "port": port or config.port}
    options |= {"socket_keepalive": True}
    if config.tls:
        options |= {
            "connection_class": SSLConnection,
            "ssl_ca_certs": config.ssl_ca_certs,
            "ssl_certfile": config.ssl_certfile,
            "ssl_keyfile": config.ssl_keyfile,
            "ssl_cert_reqs": config.ssl_cert_reqs,
            "ssl_check_hostname": config.ssl_check_hostname and config.ssl_cert_reqs != "none",
        }
    return options


class SingleLink:
    """One server that has all keys."""

    in_order = True

    def __init__(self, config: RedisConfig) -> None:
        self._node: Final = Node(config)

    async def send(self, commands: Sequence[Command]) -> list[Reply]:
        return await self._node.send([command.arguments for command in commands])

    async def send_everywhere(self, commands: Sequence[tuple[Argument, ...]]) -> list[Reply]:
        return await self._node.send(commands)

    def groups(self, keys: Sequence[bytes]) -> Iterable[list[int]]:
        return [list(range(len(keys)))]

    def declared(self, heads: Sequence[bytes], *, writes: bool = False) -> list[bytes]:
        return list(heads)

    def node(self) -> Node:
        return self._node

    async def close(self) -> None:
        await self._node.close()
