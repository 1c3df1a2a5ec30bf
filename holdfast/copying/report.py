"""What a copy has done, and what it could not do."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Phase", "Problem", "ProblemKind", "Report"]

Phase = Literal["copying", "catching up", "verifying"]

ProblemKind = Literal["conflict", "too large", "rejected", "changing", "different"]
"""``conflict``: the target has a session of that id which is not an earlier state of the source's. ``too large``: for
the target; nothing of the session was written. ``rejected``: refused by the target for a reason of its own.
``changing``: it did not keep still for long enough. ``different``: found by the verification."""


class Problem(msgspec.Struct, frozen=True):
    """Why one session is not, or not exactly, at the target."""

    session_id: str
    kind: ProblemKind
    detail: str


class Report(msgspec.Struct, kw_only=True):
    """Counts of one run. Grows with the number of problems, not of sessions."""

    copied: int = 0
    """Sessions that were not, or not completely, at the target."""
    caught_up: int = 0
    """Sessions copied on, because they had changed at the source meanwhile."""
    already_there: int = 0
    events: int = 0
    """Events written to the target."""
    verified: int | None = None
    """Sessions found to be the same in both stores; None: not looked at."""
    verified_events: int = 0
    problems: dict[str, Problem] = msgspec.field(default_factory=dict[str, Problem])
    """By session id; of several the first."""

    @property
    def complete(self) -> bool:
        return not self.problems

    def add(self, session_id: str, kind: ProblemKind, detail: str) -> None:
        self.problems.setdefault(session_id, Problem(session_id, kind, detail))
