"""A session while this process serves it: its transport, its event store, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from mcp.server.connection import Connection
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, InitializeRequestParams
from pydantic import ValidationError

from holdfast.errors import HoldfastError
from holdfast.integrations.mcp._sdk import DurableTransport, ServerHooks
from holdfast.integrations.mcp.events import SessionEventStore
from holdfast.integrations.mcp.keys import HANDSHAKE_KEY

if TYPE_CHECKING:
    from holdfast.supervisor.session import Session

__all__ = ["LiveSession"]

_log = structlog.stdlib.get_logger("holdfast.integrations.mcp")


class LiveSession(ServerHooks):
    """One session served here. ``handshake`` is what an earlier server of it saved; None: a new one."""

    def __init__(
        self,
        session: Session,
        events: SessionEventStore,
        transport: DurableTransport,
        *,
        handshake: dict[str, Any] | None,
        on_end: Callable[[LiveSession], None],
    ) -> None:
        self.session = session
        self.events = events
        self.transport = transport
        self._handshake = handshake
        self._on_end = on_end
        self._connection: Connection | None = None

    def serves(self, session: Session) -> bool:
        """Whether it is this life of the session, and still takes requests."""
        return session.incarnation == self.session.incarnation and self.transport.usable

    def connected(self, connection: Connection) -> None:
        self._connection = connection
        if self._handshake is None:
            return
        try:
            params = InitializeRequestParams.model_validate(self._handshake["params"], by_name=False)
        except ValidationError as exc:  # saved by another version of the SDK: serve it all the same
            _log.warning("mcp.client_params_unreadable", session=self.session.id, errors=exc.error_count())
        else:
            connection.client_params = params
        connection.protocol_version = self._handshake["protocol_version"]
        if self._handshake["initialized"]:
            connection.initialized.set()

    async def catch_up(self) -> None:
        """Note that the client is initialized if it said so to another instance."""
        connection = self._connection
        if connection is None or connection.initialized.is_set():
            return
        handshake = await self.session.get(HANDSHAKE_KEY)
        if handshake is not None and handshake["initialized"]:
            connection.initialized.set()

    def request_begins(self, request_id: int | str, method: str) -> None:
        self.events.requests.dispatched(request_id)

    async def request_done(self, connection: Connection, method: str) -> None:
        """Save the handshake before its response goes out: by then any instance can serve the session."""
        if method != "initialize":
            return
        try:
            await self._save(connection)
        except HoldfastError as exc:
            _log.warning("mcp.handshake_not_saved", session=self.session.id, error=repr(exc))
            raise MCPError(code=INTERNAL_ERROR, message="The session could not be stored") from exc

    async def notification_done(self, connection: Connection, method: str) -> None:
        if method == "notifications/initialized" and connection.initialized.is_set():
            await self._save(connection)

    async def _save(self, connection: Connection) -> None:
        params = connection.client_params
        if params is None:
            return
        handshake = {
            "params": params.model_dump(by_alias=True, mode="json", exclude_unset=True),
            "protocol_version": connection.protocol_version,
            "initialized": connection.initialized.is_set(),
        }
        await self.session.set(HANDSHAKE_KEY, handshake)

    def ended(self) -> None:
        self.events.close()
        self._on_end(self)
