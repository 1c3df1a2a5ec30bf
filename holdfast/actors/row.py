"""A session's row as this process knows it, and what it says of the session's life."""

from __future__ import annotations

import msgspec

from holdfast.backends.base import Head, expiry_us

__all__ = ["Row"]


class Row:
    """The head of a hot session: as committed, and with the activity that is not stored yet."""

    __slots__ = (
        "_head", "active_us", "deadline_us", "exclusive", "first_seq", "id", "incarnation", "last_seq", "shown_seq",
        "touched_since_us", "touched_us", "version",
    )  # fmt: skip

    def __init__(self, head: Head, *, exclusive: bool) -> None:
        self.exclusive = exclusive
        """Nobody else can change the row."""
        self.id = head.id
        self.incarnation = head.incarnation
        self._head: Head = head
        """What is not below: every write changes some of those."""
        self.version = head.version
        self.last_seq = head.last_seq
        self.first_seq = head.first_seq
        self.shown_seq = 0
        """The newest event that a read has handed out: it may be stored, and its flush not settled yet."""
        self.active_us = head.active_us
        self.deadline_us = head.deadline_us
        """End of the absolute lifetime, which never changes."""
        self.touched_us = 0
        """Latest activity that is not stored yet; 0: none."""
        self.touched_since_us = 0
        """The first such: the session was alive then."""

    @property
    def head(self) -> Head:
        """The row as committed, as far as this process knows."""
        return msgspec.structs.replace(
            self._head,
            version=self.version,
            last_seq=self.last_seq,
            first_seq=self.first_seq,
            active_us=self.active_us,
        )

    @property
    def owner(self) -> str | None:
        return self._head.owner

    @property
    def ttl_us(self) -> int | None:
        return self._head.ttl_us

    @property
    def closed(self) -> bool:
        return self._head.status == "closed"

    def expired(self, now_us: int) -> bool:
        """Whether it is unreadable at ``now_us``, counting activity that is not stored yet."""
        head = self._head
        expires_us = expiry_us(max(self.active_us, self.touched_us), head.ttl_us, head.deadline_us)
        return expires_us is not None and expires_us <= now_us

    def ended_for_certain(self, at_us: int) -> bool:
        """Whether it has expired, and nobody can have prolonged it without this process's knowledge."""
        if self.deadline_us is not None and self.deadline_us <= at_us:
            return True
        return self.exclusive and self.expired(at_us)

    def lapses_by(self, at_us: int) -> bool:
        """Whether its life as stored ends by then, activity that is not stored yet left aside."""
        ttl_us = self._head.ttl_us
        return ttl_us is not None and self.active_us + ttl_us <= at_us
