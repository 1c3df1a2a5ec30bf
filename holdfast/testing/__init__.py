"""Tools to test with: a manual clock, a backend that fails on command, a check for leaks.

The contract kit for backends is `holdfast.testing.contract`; it needs pytest.
"""

from __future__ import annotations

from holdfast.testing.clock import ManualClock
from holdfast.testing.faults import Fault, FaultKind, FaultyBackend, InjectedCrash, touches
from holdfast.testing.leaks import Leaks, assert_no_leaks

__all__ = ["Fault", "FaultKind", "FaultyBackend", "InjectedCrash", "Leaks", "ManualClock", "assert_no_leaks", "touches"]
