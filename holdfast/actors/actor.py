"""The session actor: sole owner of one hot session in this process.

Callers put units in its mailbox. A writer lane runs its turns: `take` merges units into one
`SessionWrite`, `settle` takes the commit's outcome, acknowledges the callers and wakes the
subscribers. Both are plain functions, so a lone event costs no task switch of the actor's own. What
must wait, loading the state anew or restarting after a crash, is done by the actor's task (`Recovery`).

What a caller can see here (`state`, `last_seq`, `ring`) is committed, always: it changes only in
`settle` and `adopt`.
"""

from __future__ import annotations

import msgspec
import structlog

from holdfast.actors.context import ActorContext, Subscriber
from holdfast.actors.mailbox import Mailbox
from holdfast.actors.merge import Turn, acknowledge, append_events, apply_state, seal, state_bytes
from holdfast.actors.recovery import Recovery
from holdfast.actors.ring import Ring
from holdfast.actors.row import Row
from holdfast.actors.unit import Unit
from holdfast.backends.base import Head, Outcome, SessionWrite, Snapshot, StateValue, Status
from holdfast.errors import (
    ActorCrashed,
    OutcomeUnknown,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    copy_for_caller,
)
from holdfast.model import Durability

__all__ = ["SessionActor"]

_log = structlog.stdlib.get_logger("holdfast.actor")

_COMMITTED = Status.COMMITTED


class SessionActor(Row):
    """One hot session. Not for use from outside the event loop it runs on."""

    __slots__ = (
        "__weakref__", "_cautious", "_context", "_lone", "_recovery", "_schedule", "_taken", "_write", "barriers",
        "creating", "ended", "exact", "head_exact", "mailbox", "news", "read_by", "restarting", "ring", "scheduled",
        "state", "state_bytes", "subscribers", "used",
    )  # fmt: skip

    def __init__(
        self, context: ActorContext, head: Head, state: dict[str, StateValue], *, create: bool = False
    ) -> None:
        super().__init__(head, exclusive=context.exclusive)
        self._context = context
        self._schedule = context.schedule
        self.state = state
        self.state_bytes = state_bytes(state)
        self.exact = True
        """``state`` is the state at ``version``, not older."""
        self.head_exact = True
        """The rest of the row is as at ``version``, too."""
        self.read_by = 0
        """Number of the last load that ``state`` is not older than."""
        self.creating = create
        """Its row is not in the store yet: the first write inserts it."""
        self.mailbox = Mailbox()
        self.scheduled = False
        """In a lane's queue, or held by a flush."""
        self.ended = False
        """The session is gone, or this actor passive: another one may be its owner."""
        self.restarting = False
        self.used = True
        """Since the registry's last look (for second-chance replacement)."""
        self.subscribers: set[Subscriber] | None = None
        self.ring: Ring | None = None
        """Kept only while there are subscribers."""
        self.news = 0
        """How often a load has brought what others did."""
        self.barriers = 0
        """Writes acknowledged on acceptance that are not stored yet."""
        self._write: SessionWrite | None = None
        self._taken: list[Unit] = []
        self._lone: Unit | None = None
        """All that is taken, if that is one unit that only appends: most are, and have a path of their own."""
        self._cautious = 0
        """So many units to commit one by one: one of them was rejected in company."""
        self._recovery: Recovery | None = None

    def __repr__(self) -> str:
        return f"<SessionActor {self.id!r} v{self.version} seq {self.last_seq}>"

    @property
    def busy(self) -> bool:
        """It must stay hot: something is under way or somebody listens."""
        return bool(
            self.scheduled or self.mailbox.dirty_units or self.subscribers or self.touched_us or self.restarting
        )

    def touch(self, now_us: int) -> None:
        """Note activity, to be stored with the next write or by the keeper."""
        if now_us <= self.active_us or self._head.ttl_us is None:
            return
        if not self.touched_us:
            self.touched_since_us = now_us
            self._context.touched(self)
        self.touched_us = max(self.touched_us, now_us)

    # The mailbox

    def post(self, unit: Unit) -> None:
        """Accept a unit that the budget has admitted. Units are applied in the order of posts."""
        self.used = True
        mailbox = self.mailbox
        mailbox.queue.append(unit)
        self._context.budget.accept(mailbox, unit.size)
        if unit.ack is None and not unit.touch_only:
            self.barriers += 1
        if not self.scheduled and not self.restarting:
            self.scheduled = True
            self._schedule(self)

    # Turns: called by the writer lane

    def take(self, max_units: int, max_bytes: int) -> tuple[SessionWrite, Durability, int] | None:
        """Merge what waits into one write; with it the level it needs, and its size in bytes.

        None: nothing can go now, and the actor sees to itself.
        """
        queue = self.mailbox.queue
        if len(queue) == 1:
            unit = queue[0]
            if unit.only_events and not (unit.withdrawn or self.creating or self._cautious or self.touched_us):
                return self._take_lone(queue.pop())
        if self._cautious:
            self._cautious -= 1
            max_units = 1
        return self._take_many(max_units, max_bytes)

    def _take_many(self, max_units: int, max_bytes: int) -> tuple[SessionWrite, Durability, int] | None:
        write = SessionWrite(
            id=self.id,
            incarnation=self.incarnation,
            accepted_us=0,
            active_us=0,
            version=self.version,
            base_seq=self.last_seq,
            base_first_seq=self.first_seq,
            create=self._head if self.creating else None,
        )
        queue, taken, context = self.mailbox.queue, self._taken, self._context
        size = keys = seen = 0
        turn: Turn | None = None
        try:
            for unit in queue:
                if len(taken) == max_units or write.close or write.delete:
                    break
                if taken and (size + unit.size > max_bytes or keys + unit.keys > context.max_unit_keys):
                    break
                if not self.exact and (unit.compute is not None or unit.doubted):
                    break
                if unit.withdrawn:
                    self._forget(unit)
                elif unit.only_events:
                    write.units += 1
                    append_events(write, unit.events or ())
                    taken.append(unit)
                else:
                    turn = turn or Turn(write, self.state, self.state_bytes, context.config.limits)
                    if not self._merged(turn, unit):
                        break
                seen += 1
                size += unit.size
                keys += unit.keys
                if unit.compute is not None and unit.sets:
                    size += sum(map(len, unit.sets.values()))
        finally:
            del queue[:seen]
        if not taken:
            self._nothing_taken()
            return None
        level = seal(write, taken)
        if self.touched_us:
            self._store_touches_with(write)
        self._write = write
        return write, level, size

    def _take_lone(self, unit: Unit) -> tuple[SessionWrite, Durability, int]:
        unit.taken, self._lone, accepted_us = True, unit, unit.accepted_us
        write = self._write = SessionWrite(
            id=self.id,
            incarnation=self.incarnation,
            accepted_us=accepted_us,
            active_us=accepted_us,
            version=self.version,
            base_seq=self.last_seq,
            base_first_seq=self.first_seq,
            units=1,
            events=unit.events or (),
        )
        return write, unit.durability, unit.size

    def _join_lone(self) -> None:
        """Have it on the list of what is taken, as any other unit."""
        if self._lone is not None:
            self._taken.append(self._lone)
            self._lone = None

    def _store_touches_with(self, write: SessionWrite) -> None:
        if not self.expired(write.accepted_us):  # alive then, by activity that is stored with this
            write.accepted_us = min(write.accepted_us, self.touched_since_us)
        write.active_us = max(write.active_us, self.touched_us)

    def _merged(self, turn: Turn, unit: Unit) -> bool:
        """Take the unit, or refuse it. False: leave it where it is, and look at the store first.

        A unit that fails on what this process knows may fail on old news where others write too.
        """
        try:
            turn.add(unit)
        except Exception as exc:  # a user's function, or a limit: it fails this unit alone
            if self._taken:  # on what they would make of the state; decide when they are stored
                return False
            if not self.exclusive and (not unit.doubted or self.read_by < unit.doubted):
                unit.doubted = unit.doubted or self._context.loads_begun + 1
                self.exact = False
                return False
            self._refuse(unit, self._graver(unit, exc))
        except BaseException as exc:  # not the engine's to pass on: it would stop everybody
            self._refuse(unit, RuntimeError(f"the function raised {exc!r}"))
        else:
            self._taken.append(unit)
        return True

    def _graver(self, unit: Unit, error: Exception) -> Exception:
        """That the session is gone or closed matters more than what else is wrong."""
        if self.expired(unit.accepted_us):
            return SessionNotFound(self.id)
        return SessionClosed(self.id) if self.closed else error

    def _nothing_taken(self) -> None:
        self.scheduled = False
        if self.mailbox.queue:  # a unit that computes needs the exact state first
            self._recover()
        else:
            self._context.look_for_room()

    def settle(self, outcome: Outcome) -> None:
        """The commit's outcome for the write of the last `take`."""
        status = outcome.status
        if status is _COMMITTED:
            unit, write = self._lone, self._write
            if write is not None and outcome.base_version < write.version:
                self._rewind(outcome.base_version, outcome.base_seq, outcome.base_first_seq)
            if unit is not None and not self.subscribers:
                self._lone_committed(unit, outcome)
            else:
                self._committed(outcome)
            if not self.mailbox.queue:
                self.scheduled = False
                return
        elif status is Status.CONFLICT and not self.ended:
            self._untake()
            self.exact = False
            self.scheduled = False
            self._recover()
            return
        elif status is Status.CLOSED:
            self.exact = False
            self.reject(SessionClosed(self.id))  # not every unit need be to blame
            return
        else:
            self._fail_taken(SessionExists(self.id) if status is Status.EXISTS else SessionNotFound(self.id))
            self.end()
        self.next_turn()

    def _lone_committed(self, unit: Unit, outcome: Outcome) -> None:
        """As `_committed`, without what one appending unit has no part in."""
        base_version, base_seq, first_seq = outcome.base_version, outcome.base_seq, outcome.first_seq
        if self.version <= base_version:  # else a load has seen this write already
            if self.version != base_version:  # others wrote in between
                self.exact = self.head_exact = False
            self.version = base_version + 1
            self.last_seq = base_seq + len(unit.events or ())
        if self.first_seq < first_seq or outcome.base_first_seq < first_seq:
            self._first_raised(outcome)
        active_us = unit.accepted_us
        if self.active_us < active_us:  # noqa: PLR1730 - a call costs more than the rest of this
            self.active_us = active_us
        if self.touched_us:
            self._touches_stored(active_us)
        self._lone = self._write = None
        unit.version = base_version + 1
        unit.first_seq = base_seq + 1
        ack = unit.ack
        if ack is None:
            self.barriers -= 1
        elif not ack.done():
            ack.set_result(None)
        self._context.budget.release(self.mailbox, 1, unit.size)

    def _committed(self, outcome: Outcome) -> None:
        self._join_lone()
        write = self._write
        assert write is not None
        self._advance(write, outcome)
        self._acknowledge(outcome)
        self._taken.clear()
        self._write = None
        if self.creating:
            self.creating = False
            self._context.created(self)
        if write.delete:
            self.end()
        elif self.subscribers:
            self.wake_subscribers()

    def _advance(self, write: SessionWrite, outcome: Outcome) -> None:
        """Bring head, state and ring to what the commit made."""
        base_version, base_seq = outcome.base_version, outcome.base_seq
        new_version = base_version + write.units
        if self.version < new_version:  # else a load has seen this write already
            if self.version != base_version:  # others wrote in between
                self.exact = self.head_exact = False
            if write.sets or write.removes or write.cleared:
                self._resize(apply_state(self.state, write, base_version))
            if write.close:
                self._head = msgspec.structs.replace(self._head, status="closed")
            if write.metadata is not None:
                self._head = msgspec.structs.replace(self._head, metadata=write.metadata)
            self.version = new_version
        if self.subscribers and write.events and not self.ended:
            self.ring = self.ring or Ring(self._context.config.actors.ring_events)
            self._context.ring_resized(self.ring.extend(write, base_seq))
        self.last_seq = max(self.last_seq, base_seq + len(write.events))
        self._first_raised(outcome)
        self.active_us = max(self.active_us, write.active_us)
        if self.touched_us:
            self._touches_stored(write.active_us)

    def _rewind(self, version: int, last_seq: int, first_seq: int) -> None:
        """The store has lost what it had stored (a failover to a copy that was behind); it is right all the same."""
        _log.error("session.rewound", session_id=self.id, known_version=self.version, stored_version=version)
        self.version, self.last_seq, self.first_seq, self.shown_seq = version, last_seq, first_seq, 0
        self.exact = self.head_exact = False
        self.news += 1
        self._context.rewound(self)

    def _first_raised(self, outcome: Outcome) -> None:
        self.first_seq = max(self.first_seq, outcome.first_seq)
        if outcome.base_first_seq < outcome.first_seq:
            self._context.grown(self)

    def _touches_stored(self, active_us: int) -> None:
        if self.touched_us <= active_us:
            self.touched_us = self.touched_since_us = 0
            self._context.untouched(self)
        else:  # active again since the write was taken; alive by what it has stored
            self.touched_since_us = max(self.touched_since_us, active_us)

    def _resize(self, delta: int) -> None:
        self.state_bytes += delta
        if not self.ended:
            self._context.resized(delta)

    def _acknowledge(self, outcome: Outcome) -> None:
        size, barriers = acknowledge(self._taken, outcome)
        self.barriers -= barriers
        self._context.budget.release(self.mailbox, len(self._taken), size)

    def next_turn(self) -> None:
        """A turn is over; queue for the next, if something waits."""
        self.scheduled = False
        if self.mailbox.queue and not self.restarting:
            self.scheduled = True
            self._schedule(self)

    def fail(self, error: Exception) -> None:
        """The write of the last `take` failed with ``error``; whether it is stored, the error says."""
        self._fail_taken(error)
        if isinstance(error, OutcomeUnknown):
            self.exact = False
            self._recover()
        self.next_turn()

    def reject(self, error: Exception) -> None:
        """The store refuses the write for good: find out which of its units is to blame."""
        self._join_lone()
        if self.ended:
            self._fail_taken(SessionNotFound(self.id))
        elif len(self._taken) > 1:
            self._cautious = max(self._cautious, len(self._taken))
            self._untake()
        else:
            self._fail_taken(error)
        self.next_turn()

    def fail_waiting(self, error: Exception) -> None:
        """Fail what no flush has taken: none of it is stored."""
        queue = self.mailbox.queue
        waiting = queue[:]
        queue.clear()
        for unit in waiting:
            self._refuse(unit, error)

    def crashed(self, error: Exception) -> None:
        """A turn raised what it never should: fail what is here and start over from the store."""
        _log.error("actor.crashed", session_id=self.id, exc_info=error)
        self._fail_taken(ActorCrashed(self.id))
        self.fail_waiting(ActorCrashed(self.id))
        self.exact = False
        self.scheduled = False
        self.restarting = True
        self._recover(error)

    def _untake(self) -> None:
        self._join_lone()
        self.mailbox.put_back(self._taken)
        self._taken, self._write = [], None

    def _fail_taken(self, error: Exception) -> None:
        self._join_lone()
        units, self._taken, self._write = self._taken, [], None
        for unit in units:
            self._refuse(unit, error)

    def _refuse(self, unit: Unit, error: Exception) -> None:
        if unit.ack is None:
            if not unit.touch_only:
                self._context.lost(self, 1, error)
        elif not unit.ack.done():
            unit.ack.set_exception(copy_for_caller(error))
        self._forget(unit)
        # The error's traceback leads back to the unit, which the garbage collector does not look into.
        unit.ack = unit.compute = None

    def _forget(self, unit: Unit) -> None:
        """Take a unit off the books without a commit."""
        if unit.ack is None:
            self.barriers -= not unit.touch_only
        if unit.withdrawn:  # its caller knows
            self._context.budget.release(self.mailbox, 1, unit.size)
        else:
            self._context.budget.drop(self.mailbox, unit.size)

    # What others did: loads and hints

    def adopt(self, snapshot: Snapshot, number: int, asked_at: int | None) -> None:
        """Take over what that load read, unless this process, at version ``asked_at`` then, knows better by now."""
        head, state = snapshot.head, snapshot.state
        if head.version < self.version:
            if self.version != asked_at:  # else all of that was stored before the read
                return
            self._rewind(head.version, head.last_seq, head.first_seq)
        if state is not None:
            self.state = state
            self._resize(state_bytes(state) - self.state_bytes)
            self.exact = True
        elif head.version > self.version:
            self.exact = False
        if self.exact:
            self.read_by = max(self.read_by, number)
        self.news += head.version > self.version
        news = head.last_seq > self.last_seq or head.status != self._head.status
        self._head = head
        self.head_exact = True
        self.version = head.version
        self.last_seq = max(self.last_seq, head.last_seq)
        # Touches and trims make no version: keep what was learnt of them since the read.
        self.first_seq = max(self.first_seq, head.first_seq)
        self.active_us = max(self.active_us, head.active_us)
        if self.touched_us:
            self._touches_stored(head.active_us)
        if news:
            self.wake_subscribers()

    def end(self) -> None:
        """The session is gone: nothing more can be done here."""
        if self.ended:
            return
        self.ended = True
        self.fail_waiting(SessionNotFound(self.id))
        self.touched_us = self.touched_since_us = 0
        self._context.ended(self)
        self.wake_subscribers()

    def wake_subscribers(self) -> None:
        """Let all who listen look again."""
        for subscriber in list(self.subscribers or ()):
            subscriber.wake()

    @property
    def waits_for_state(self) -> bool:
        """The state is not exact, and a unit that computes is next, or somebody listens."""
        return bool(not self.exact and not self.scheduled and (self.mailbox.queue or self.subscribers))

    def _recover(self, crash: Exception | None = None) -> None:
        if self._recovery is None:
            self._recovery = Recovery(self, self._context)
        self._recovery.start(crash)
