"""The circuit breaker: when a store fails, callers are told at once instead of queueing up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import anyio
import structlog

from holdfast.clock import Clock
from holdfast.config import WriterConfig
from holdfast.errors import HoldfastError, Unavailable

__all__ = ["Breaker", "read"]

_log = structlog.stdlib.get_logger("holdfast.breaker")

_T = TypeVar("_T")


class Breaker:
    """Counts failures in a row. One for all lanes of a backend, one for all its readers.

    closed: all is well. open: work is refused. half-open: the cool-down is over, and whatever comes
    next is the probe; it closes the breaker or opens it anew.
    """

    def __init__(self, config: WriterConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self.failures = 0
        """In a row, up to now; 0: all is well, and `check` need not be asked."""
        self._failing_since = 0.0
        self._last_failure = 0.0
        self._reason = ""
        self.opened = 0
        """How often it has opened."""

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self.failures < self._config.breaker_failures:
            return "closed"
        if self._clock.monotonic() - self._last_failure < self._config.breaker_cooldown_s:
            return "open"
        return "half-open"

    @property
    def failing_since(self) -> float | None:
        """When the current run of failures began (monotonic seconds); None: the last attempt went well."""
        return self._failing_since if self.failures else None

    def check(self) -> None:
        """Raises: `Unavailable` while open. Nothing was stored."""
        if self.failures and self.state == "open":
            raise Unavailable(f"the store has been failing, and is left alone for a moment: {self._reason}")

    def success(self) -> None:
        if self.failures >= self._config.breaker_failures:
            _log.info("breaker.closed", failures=self.failures)
        self.failures = 0

    def failure(self, error: Exception) -> None:
        now = self._clock.monotonic()
        config = self._config
        if now - self._last_failure > config.retry_for_s + config.breaker_cooldown_s + config.backoff_max_s:
            self.failures = 0  # nothing was tried for long: that run of failures is history
        if not self.failures:
            self._failing_since = now
        self.failures += 1
        self._last_failure = now
        self._reason = str(error)
        if self.failures == self._config.breaker_failures:
            self.opened += 1
            _log.warning("breaker.opened", failures=self.failures, error=self._reason)


async def read(function: Callable[[], Awaitable[_T]], breaker: Breaker, timeout_s: float) -> _T:
    """One read of the store, counted by ``breaker``.

    Raises: `Unavailable` while the breaker is open, without an answer in time, or where the backend
    raises what it should not; else what ``function`` raises.
    """
    breaker.check()
    try:
        with anyio.fail_after(timeout_s):
            answer = await function()
    except TimeoutError as exc:
        error = Unavailable(f"the store did not answer within {timeout_s:g} s")
        breaker.failure(error)
        raise error from exc
    except Exception as exc:
        breaker.failure(exc)
        if isinstance(exc, HoldfastError):
            raise
        raise Unavailable(f"the read failed: {exc!r}") from exc
    breaker.success()
    return answer
