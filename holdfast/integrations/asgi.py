"""A store that lives as long as an ASGI application.

Starlette and FastAPI take `lifespan`; `StoreMiddleware` wraps an application of any framework. Both
open the store before the application starts, and report the application's shutdown as complete only
when the store has been drained and closed. Requests find the store in ``scope["state"]["holdfast"]``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from holdfast.errors import HoldfastError
from holdfast.supervisor.supervisor import Supervisor

__all__ = ["STATE_KEY", "StoreMiddleware", "lifespan"]

STATE_KEY: Final = "holdfast"

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_Application = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]


def lifespan(store: Supervisor) -> Callable[[object], AbstractAsyncContextManager[dict[str, Supervisor]]]:
    """For ``Starlette(lifespan=lifespan(store))``: handlers find it as ``request.state.holdfast``."""

    @asynccontextmanager
    async def hold(_application: object) -> AsyncGenerator[dict[str, Supervisor]]:
        async with store:
            yield {STATE_KEY: store}

    return hold


class StoreMiddleware:
    """An ASGI application around ``application`` that opens and closes ``store`` with it.

    A store that cannot be opened fails the startup, with its error as the message. Servers that send
    no lifespan events never open the store.
    """

    def __init__(self, application: _Application, store: Supervisor) -> None:
        self._application = application
        self._store = store

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        scope.setdefault("state", {})[STATE_KEY] = self._store
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    async def _live(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        last_words: list[_Message] = []
        try:
            await self._store.__aenter__()
        except HoldfastError as exc:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return
        try:
            await _run(self._application, scope, receive, send, last_words)
        finally:
            await self._store.__aexit__(None, None, None)
        for message in last_words:
            await send(message)


async def _run(
    application: _Application,
    scope: MutableMapping[str, Any],
    receive: _Receive,
    send: _Send,
    last_words: list[_Message],
) -> None:
    """Run the application's own lifespan, or stand in for one; its last message is held back."""
    asked = False

    async def ask() -> _Message:
        nonlocal asked
        asked = True
        return await receive()

    async def say(message: _Message) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            last_words.append(message)
        else:
            await send(message)

    try:
        await application(scope, ask, say)
    except Exception:
        if asked:
            raise
        # It knows no lifespan events, and has not taken one: answer them in its place.
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        last_words.append({"type": "lifespan.shutdown.complete"})
