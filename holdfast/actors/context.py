"""What a session actor needs of its surroundings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.actors.mailbox import Budget
from holdfast.clock import Clock
from holdfast.config import Config
from holdfast.restart import RestartPolicy
from holdfast.waiting import Ack

if TYPE_CHECKING:
    from holdfast.actors.actor import SessionActor

__all__ = ["ActorContext", "Subscriber"]


class Subscriber(Protocol):
    """Somebody to wake when the session has changed."""

    def wake(self) -> None: ...

    def rewound(self, last_seq: int) -> None:
        """The store has lost all events after this one, and gives their numbers to others."""
        ...


class ActorContext(Protocol):
    """What an actor needs of its surroundings; the registry provides it."""

    config: Config
    clock: Clock
    budget: Budget
    restart_policy: RestartPolicy
    new_ack: Callable[[], Ack]
    exclusive: bool
    """Nobody else writes to the store."""
    max_unit_keys: int
    """Keys in one `SessionWrite`, unless one unit alone has more."""

    loads_begun: int
    """So many loads, of any session; each has its number."""

    def schedule(self, actor: SessionActor, /) -> None:
        """Queue it with the writer for a turn."""
        ...

    def spawn(self, task: Callable[[], Coroutine[Any, Any, None]], /) -> None:
        """Run an actor's task."""
        ...

    def load(self, actor: SessionActor) -> Awaitable[None]:
        """Bring the actor to the store's state (`adopt`, or `end` if the session is gone)."""
        ...

    def touched(self, actor: SessionActor) -> None:
        """It has activity that is not stored yet."""
        ...

    def untouched(self, actor: SessionActor) -> None:
        """All its activity is stored."""
        ...

    def resized(self, delta: int) -> None:
        """Its state grew by ``delta`` bytes."""
        ...

    def ring_resized(self, delta: int) -> None:
        """The recent events that it keeps grew by ``delta`` bytes."""
        ...

    def look_for_room(self) -> None:
        """It may have come out of use, otherwise than by the settling of its last unit."""
        ...

    def rewound(self, actor: SessionActor) -> None:
        """The store has lost the events after its ``last_seq``: let go of them, and tell who listens."""
        ...

    def grown(self, actor: SessionActor) -> None:
        """Events were dropped logically: there is something to trim."""
        ...

    def created(self, actor: SessionActor) -> None:
        """Its row is in the store now."""
        ...

    def ended(self, actor: SessionActor) -> None:
        """The session is gone: drop the actor."""
        ...

    def gave_up(self, actor: SessionActor) -> None:
        """It crashed too often: drop it. The session itself is well, and its next user hydrates it."""
        ...

    def lost(self, actor: SessionActor, units: int, error: Exception) -> None:
        """Writes acknowledged on acceptance could not be stored."""
        ...
