"""How tools reach the Holdfast session of the MCP session that calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context
from starlette.requests import Request

from holdfast.actors.unit import StateView, Unit
from holdfast.errors import InvalidInput
from holdfast.integrations.mcp.keys import RESERVED
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.unit_of_work import UnitOfWork
from holdfast.waiting import Ack

if TYPE_CHECKING:
    from starlette.types import Scope

__all__ = ["ToolSession", "current_session", "with_session"]

_SCOPE_KEY: Final = "holdfast.session"


class _ToolUnit(UnitOfWork):
    """A unit whose ``clear`` leaves the adapter's own keys alone: which others there are is seen in its turn."""

    def build(self, durability: Durability, ack: Ack | None) -> Unit:
        unit = super().build(durability, ack)
        if unit.cleared:
            unit.compute = self._clear
        return unit

    def _clear(self, view: StateView, unit: Unit) -> None:
        unit.removes = set(filter(_is_own, view.keys())) - self._sets.keys()
        unit.sets = self._sets or None


class ToolSession(Session):
    """A session as tools see it: without the adapter's own keys, which begin with "mcp:"."""

    __slots__ = ()

    _unit_of_work = _ToolUnit

    async def keys(self, *, deadline_s: float | None = None) -> list[str]:
        return [key for key in await super().keys(deadline_s=deadline_s) if _is_own(key)]

    async def state(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        state = await super().state(deadline_s=deadline_s)
        return {key: value for key, value in state.items() if _is_own(key)}

    async def clear(self, *, durability: Durability | None = None, deadline_s: float | None = None) -> int:
        def compute(view: StateView, unit: Unit) -> None:
            unit.removes = set(filter(_is_own, view.keys()))
            unit.result = len(unit.removes)

        return int(await self._compute("", compute, durability, deadline_s))


def _is_own(key: str) -> bool:
    return not key.startswith(RESERVED)


def with_session(scope: Scope, session: Session) -> Scope:
    """A copy of an ASGI scope that carries the session to the handlers of its request."""
    inner = ToolSession(session._engine, session._checks, session.id, session.incarnation)  # noqa: SLF001
    return {**scope, _SCOPE_KEY: inner}


def current_session(ctx: Context[Any, Any] | ServerRequestContext[Any, Any]) -> ToolSession:
    """The session of the request that ``ctx`` belongs to: its state and events are the tool's to use.

    Raises: `InvalidInput` if the request has none: it came over another transport, from a client of
    a protocol version without sessions (2026-07-28), or through another session manager.
    """
    request = (ctx.request_context if isinstance(ctx, Context) else ctx).request
    session: object = request.scope.get(_SCOPE_KEY) if isinstance(request, Request) else None
    if not isinstance(session, ToolSession):
        raise InvalidInput("this MCP request has no Holdfast session: is it served by a HoldfastSessionManager?")
    return session
