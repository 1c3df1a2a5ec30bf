"""Messages of the client's that reach an instance which has no use for them, handed to the one that has.

Behind a load balancer, the answer to a question (sampling, elicitation, roots) seldom arrives where it
was asked, and a cancellation seldom where the request runs. So a question leaves a record under a
reserved state key, in the same unit as its event, as a running request does: with the lease of the
process that waits. An instance that gets a message for another one's record appends it to a
reserved stream of the session. The process that waits subscribes to that stream: from the question
on, or, for cancellations, once a request has run for a while.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import TaskGroup
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCResponse, jsonrpc_message_adapter
from pydantic import ValidationError

from holdfast.errors import EventGap, HoldfastError, InvalidCursor, SessionError, StoreError
from holdfast.integrations.mcp.keys import INBOX, MESSAGE, QUESTION_KEY, REQUEST_KEY
from holdfast.integrations.mcp.requests import RequestLog
from holdfast.model import LATEST, Cursor, Event, Latest

if TYPE_CHECKING:
    from holdfast.supervisor.session import Session

__all__ = ["RELAYED", "Inbox"]

_log = structlog.stdlib.get_logger("holdfast.integrations.mcp")

RELAYED: Final = frozenset({"notifications/cancelled", "notifications/progress"})
"""Notifications that mean one request, wherever that runs or was asked."""


class Inbox:
    """One session's questions of this process, and what comes in for it at other instances."""

    def __init__(self, session: Session, requests: RequestLog) -> None:
        self._session = session
        self._requests = requests
        self._asked: dict[str, str] = {}
        self._recorded: set[str] = set()
        self._tasks: TaskGroup | None = None
        self._deliver: Callable[[JSONRPCMessage], Awaitable[None]]
        self._reading: anyio.CancelScope | None = None

    def connect(self, tasks: TaskGroup, deliver: Callable[[JSONRPCMessage], Awaitable[None]]) -> None:
        """Read in ``tasks`` what other instances leave here, and ``deliver`` it. Without this, nothing is read."""
        self._tasks = tasks
        self._deliver = deliver

    # Where the question is asked

    def asks(self, question: str, stream: str) -> None:
        """The client is about to get a question, in ``stream``."""
        self._asked[question] = stream

    def asked(self, question: str, event: Event) -> None:
        """It is stored, with a record: from there on, its answer may come in at any instance."""
        self._recorded.add(question)
        self.read(event.seq)

    @property
    def records(self) -> list[str]:
        """The keys of the records of what waits for its answer."""
        return [QUESTION_KEY + question for question in self._recorded & self._asked.keys()]

    def awaits(self, question: str) -> bool:
        """Whether this process asked it, and waits for the answer."""
        return question in self._asked

    def settled(self, question: str) -> None:
        """It was answered, or given up."""
        self._asked.pop(question, None)
        self.rest()

    def stream_ended(self, stream: str) -> None:
        """The request of the stream has ended, and nobody waits for what it asked."""
        for question in [question for question, asked_in in self._asked.items() if asked_in == stream]:
            del self._asked[question]
        self.rest()

    def read(self, after_seq: int) -> None:
        """Read what comes in after this place in the log, for as long as there is something to wait for."""
        if self._tasks is None or self._reading is not None:
            return
        self._reading = anyio.CancelScope()
        self._tasks.start_soon(self._read, self._reading, after_seq)

    def rest(self) -> None:
        """Stop reading if nothing is waited for: a subscription keeps its session alive."""
        if not self._asked and not self._requests.running:
            self._stop()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._asked.clear()
        self._stop()

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def _read(self, scope: anyio.CancelScope, seq: int) -> None:
        with scope:
            await self._read_on(seq)
        if self._reading is scope:
            self._reading = None
        await self.remove_records()

    async def _read_on(self, seq: int) -> None:
        after: str | Latest = str(Cursor(self._session.incarnation, seq, INBOX))
        while True:
            try:
                async with self._session.subscribe(after=after, stream=INBOX) as events:
                    async for event in events:
                        after = event.id
                        await self._take(event)
                return
            except EventGap as exc:
                _log.warning("mcp.inbox_trimmed", session=self._session.id)
                if exc.first_id is not None:
                    first = Cursor.parse(exc.first_id)
                    after = str(first._replace(seq=first.seq - 1, stream=INBOX))
            except InvalidCursor:
                _log.warning("mcp.inbox_lost", session=self._session.id)
                after = LATEST  # the store has lost what was read of it
            except (SessionError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # nobody is left to deliver to
            except StoreError as exc:
                _log.warning("mcp.inbox_not_read", session=self._session.id, error=repr(exc))
            await self._requests.pause()

    async def _take(self, event: Event) -> None:
        try:
            message = jsonrpc_message_adapter.validate_json(event.raw, by_name=False)
        except ValidationError:  # a tool's own, in a stream that it should leave alone
            _log.warning("mcp.inbox_event_unreadable", session=self._session.id, seq=event.seq)
            return
        prefix, name = _subject(message)
        if self.awaits(name) if prefix == QUESTION_KEY else self._requests.runs(name):
            await self._deliver(message)
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                self.settled(name)

    async def remove_records(self) -> None:
        """Of the questions that nobody waits for an answer to any more."""
        done = self._recorded - self._asked.keys()
        self._recorded -= done
        if not done:
            return
        try:
            async with self._session.unit() as unit:
                for question in done:
                    unit.remove(QUESTION_KEY + question)
        except HoldfastError as exc:  # a record whose process is not waiting any more does no harm
            _log.info("mcp.question_not_removed", session=self._session.id, error=repr(exc))

    # Where the message arrives

    async def forward(self, message: JSONRPCMessage) -> bool:
        """Hand it to the process that waits for it. False: none of the others does.

        Raises: `StoreError`, `SessionError`, `LimitExceeded` if it is larger than the store takes.
        """
        prefix, name = _subject(message)
        if not name or not await self._requests.waits_elsewhere(prefix + name):
            return False
        data = message.model_dump(by_alias=True, mode="json", exclude_unset=True)
        await self._session.append(data, type=MESSAGE, stream=INBOX)
        return True


def _subject(message: JSONRPCMessage) -> tuple[str, str]:
    """The question or request that it is about, as the prefix of a record's key and the id ("": about nothing)."""
    match message:
        case JSONRPCResponse(id=name) | JSONRPCError(id=int() | str() as name):
            return QUESTION_KEY, str(name)
        case JSONRPCNotification(method="notifications/progress", params={"progressToken": int() | str() as name}):
            return QUESTION_KEY, str(name)
        case JSONRPCNotification(method="notifications/cancelled", params={"requestId": int() | str() as name}):
            return REQUEST_KEY, str(name)
        case _:
            return REQUEST_KEY, ""
