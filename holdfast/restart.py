"""Restart policy: a pure decision, after the restart intensity of Erlang/OTP supervisors."""

from __future__ import annotations

from typing import NamedTuple

from holdfast.config import RestartConfig

__all__ = ["Decision", "RestartPolicy"]


class Decision(NamedTuple):
    history: list[float]
    """Times of the crashes that still count, this one included."""
    delay_s: float | None
    """Wait so long, then restart; None: give up."""


class RestartPolicy:
    """Restart with growing delays, until more than ``max_restarts`` crashes fall within ``within_s``."""

    def __init__(self, config: RestartConfig) -> None:
        self._config = config

    def decide(self, history: list[float], now: float) -> Decision:
        """What to do about a crash at ``now`` (monotonic seconds), given the times of earlier ones."""
        config = self._config
        recent = [at for at in history if now - at < config.within_s] + [now]
        if len(recent) > config.max_restarts:
            return Decision(recent, None)
        delay_s = min(config.backoff_initial_s * 2 ** (len(recent) - 1), config.backoff_max_s)
        return Decision(recent, delay_s)
