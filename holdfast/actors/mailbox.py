"""Mailboxes: bounded queues of units, and the engine-wide bound over all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from holdfast.actors.unit import Unit
from holdfast.config import ActorConfig
from holdfast.errors import Overloaded
from holdfast.waiting import Ack, Signal

__all__ = ["Budget", "Dropped", "Mailbox"]


class Mailbox:
    """The units of one session, in order, until their outcome is known.

    A unit counts against the bounds from acceptance until it is settled, so what a flush holds is
    counted too.
    """

    __slots__ = ("dirty_bytes", "dirty_units", "queue", "waiting")

    def __init__(self) -> None:
        self.queue: list[Unit] = []
        self.dirty_units = 0
        self.dirty_bytes = 0
        self.waiting: deque[Ack] | None = None
        """Callers held back at this mailbox's own bounds."""

    def put_back(self, units: list[Unit]) -> None:
        """Return units that a flush took but did not decide, in front and in order."""
        for unit in units:
            unit.taken = False
        self.queue[:0] = units


class Dropped:
    """Units that were given up, whatever the reason, and from which mailboxes."""

    __slots__ = ("bytes", "mailboxes", "units")

    def __init__(self) -> None:
        self.mailboxes: set[Mailbox] = set()
        self.units = self.bytes = 0


class Budget:
    """Admission: is there room for one more unit, in its mailbox and in the engine as a whole?"""

    def __init__(self, config: ActorConfig, new_ack: Callable[[], Ack]) -> None:
        self._config = config
        self._new_ack = new_ack
        self._waiting: deque[Ack] = deque()
        self.dirty_units = 0
        self.dirty_bytes = 0
        self.refused = 0
        self.dropped: Dropped | None = None
        """Set at the end, to count what is not stored by then."""
        self.emptied: Signal | None = None
        """To be set when a mailbox becomes empty; None: nobody waits for that."""

    def admits(self, mailbox: Mailbox, size: int) -> bool:
        """Whether a unit fits now. Where nothing is dirty, one unit of any size does."""
        if not mailbox.dirty_units and self.dirty_bytes + size <= self._config.max_dirty_bytes:
            return True
        return not self.dirty_units or self._full_bound(mailbox, size) is None

    def _full_bound(self, mailbox: Mailbox, size: int) -> str | None:
        config = self._config
        if mailbox.dirty_units >= config.mailbox_units:
            return "mailbox_units"
        if mailbox.dirty_bytes and mailbox.dirty_bytes + size > config.mailbox_bytes:
            return "mailbox_bytes"
        if self.dirty_bytes and self.dirty_bytes + size > config.max_dirty_bytes:
            return "max_dirty_bytes"
        return None

    async def wait_for_room(self, mailbox: Mailbox, size: int) -> None:
        """Hold the caller until `admits`.

        Raises: `Overloaded`, naming the bound, after ``overload_wait_s``. Nothing was stored.
        """
        with anyio.move_on_after(self._config.overload_wait_s):
            queue: deque[Ack] | None = None
            while (bound := self._full_bound(mailbox, size)) is not None:
                last, queue = queue, self._queue_for(bound, mailbox)
                if last is not None and last is not queue:
                    _wake(last, 1)  # this wake-up was of no use here; another may use it
                ack = self._new_ack()
                queue.append(ack)
                await ack
            return
        self.refused += 1
        bound = self._full_bound(mailbox, size) or "mailbox_units"
        raise Overloaded(bound, limit=getattr(self._config, bound))

    def _queue_for(self, bound: str, mailbox: Mailbox) -> deque[Ack]:
        if bound == "max_dirty_bytes":
            return self._waiting
        if mailbox.waiting is None:
            mailbox.waiting = deque()
        return mailbox.waiting

    def accept(self, mailbox: Mailbox, size: int) -> None:
        self.dirty_units += 1
        mailbox.dirty_units += 1
        mailbox.dirty_bytes += size
        self.dirty_bytes += size

    def release(self, mailbox: Mailbox, units: int, size: int) -> None:
        """So many units of the mailbox are decided: let as many of those who wait look again."""
        self.dirty_units -= units
        mailbox.dirty_units -= units
        mailbox.dirty_bytes -= size
        self.dirty_bytes -= size
        if mailbox.waiting:
            _wake(mailbox.waiting, units if mailbox.dirty_units else None)
        if self._waiting:
            _wake(self._waiting, units if self.dirty_bytes else None)
        if self.emptied is not None and not mailbox.dirty_units:
            self.emptied.set()

    def drop(self, mailbox: Mailbox, size: int) -> None:
        """One unit is decided without having been stored, as far as is known."""
        if self.dropped is not None:
            self.dropped.mailboxes.add(mailbox)
            self.dropped.units += 1
            self.dropped.bytes += size
        self.release(mailbox, 1, size)


def _wake(waiting: deque[Ack], count: int | None) -> None:
    """Wake the first ``count`` (None: all) that have not given up."""
    while waiting and count != 0:
        ack = waiting.popleft()
        if not ack.done():
            ack.set_result(None)
            if count is not None:
                count -= 1
