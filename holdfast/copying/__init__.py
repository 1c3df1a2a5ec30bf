"""Copying all sessions of one store into another, over two open backends.

No engine runs. A session keeps its id and its incarnation, so the event ids and cursors that clients hold stay
valid; its state keeps its versions. How far a session has been copied is read off the target's row, so a copy that
was killed goes on where it stopped: the row becomes equal to the source's with the session's last write, not before.
"""

from __future__ import annotations

from holdfast.copying.copier import Copier
from holdfast.copying.report import Phase, Problem, ProblemKind, Report

__all__ = ["Copier", "Phase", "Problem", "ProblemKind", "Report"]
