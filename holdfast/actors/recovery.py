"""The actor's task: what has to wait. Loading the state anew, and restarting after a crash.

It runs only while there is something to wait for. A task parked for each hot session would cost
more memory than the rest of the actor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from holdfast.errors import ActorCrashed, HoldfastError, Unavailable

if TYPE_CHECKING:
    from holdfast.actors.actor import SessionActor
    from holdfast.actors.context import ActorContext

__all__ = ["Recovery"]

_log = structlog.stdlib.get_logger("holdfast.actor")


class Recovery:
    """Brings one actor back to the store's state."""

    __slots__ = ("_actor", "_context", "_crash", "_history", "_running")

    def __init__(self, actor: SessionActor, context: ActorContext) -> None:
        self._actor = actor
        self._context = context
        self._crash: Exception | None = None
        self._history: list[float] = []
        """When it crashed."""
        self._running = False

    def start(self, crash: Exception | None = None) -> None:
        """There is something to wait for: run the task, unless it runs."""
        self._crash = crash or self._crash
        if not self._running and not self._actor.ended:
            self._running = True
            self._context.spawn(self.run)

    async def run(self) -> None:
        """Until there is nothing left to wait for. A cancellation leaves no trace."""
        actor = self._actor
        try:
            while not actor.ended and (self._crash is not None or actor.waits_for_state):
                if self._crash is not None:
                    await self._restart(self._crash)
                elif not await self._reload() and self._crash is None:
                    return
            # Also where nothing was left to wait for: a read may have brought the state meanwhile.
            if not (actor.ended or actor.scheduled or actor.restarting):
                actor.next_turn()
        finally:
            self._running = False

    async def _reload(self) -> bool:
        """False: the store could not be read, and those who waited for it have been told."""
        try:
            await self._context.load(self._actor)
        except Exception as exc:  # a bug of the backend's, too: the other actors' tasks must live
            if not isinstance(exc, HoldfastError):
                _log.error("actor.reload_crashed", session_id=self._actor.id, exc_info=exc)
            self._actor.fail_waiting(Unavailable(f"the session's state could not be read: {exc}"))
            return False
        return True

    async def _restart(self, crash: Exception) -> None:
        context, actor = self._context, self._actor
        self._crash = None
        self._history, delay_s = context.restart_policy.decide(self._history, context.clock.monotonic())
        if delay_s is None:
            _log.error("actor.gave_up", session_id=actor.id, crashes=len(self._history))
            actor.ended = True
            actor.fail_waiting(ActorCrashed(actor.id))
            context.gave_up(actor)
            actor.wake_subscribers()
            return
        await context.clock.sleep(delay_s)
        _log.info("actor.restarted", session_id=actor.id, after=repr(crash)[:200])
        actor.restarting = False
        actor.next_turn()
        context.look_for_room()
