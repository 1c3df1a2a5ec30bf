"""One wait for the acknowledgements of many units."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from holdfast.errors import SessionNotFound
from holdfast.waiting import Ack

__all__ = ["FanIn"]


class FanIn:
    """The ack of each of ``count`` units, at least one; awaited once, by who posts them all.

    Raises when awaited, after the last of them: the first error, but for sessions that are gone.
    """

    def __init__(self, count: int, new_ack: Callable[[], Ack]) -> None:
        self._left = count
        self._ack = new_ack()
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return self._ack.done()

    def set_result(self, result: None, /) -> None:
        self._left -= 1
        if self._left:
            return
        error, self._error = self._error, None  # no cycle through its traceback
        if error is None:
            self._ack.set_result(None)
        else:
            self._ack.set_exception(error)

    def set_exception(self, exception: BaseException, /) -> None:
        if self._error is None and not isinstance(exception, SessionNotFound):
            self._error = exception
        self.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        return self._ack.__await__()
