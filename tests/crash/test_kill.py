"""CONFORMANCE 45, P1-P4: kill -9 at any moment, with a ledger outside the process.

``HOLDFAST_SOAK_CYCLES`` sets the number of kills (``make soak``: 1,000), ``HOLDFAST_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import anyio
import pytest

from tests.crash.harness import kill_cycle
from tests.crash.ledger import Ledger, create_sessions

KILLS = int(os.environ.get("HOLDFAST_SOAK_CYCLES", "30"))
SEED = int(os.environ.get("HOLDFAST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
PROCESSES = 2
CYCLES_PER_FILE = 15
CYCLES_PER_CHECK = 5


def test_every_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    """Two processes share one file; both are killed, again and again, on every event loop."""
    print(f"HOLDFAST_SEED={SEED}")
    rng = random.Random(SEED)
    kills = 0
    while kills < KILLS:
        path = tmp_path / f"{kills}.db"
        kills += _one_file(path, rng, min(CYCLES_PER_FILE, -(-(KILLS - kills) // PROCESSES)))
        for file in tmp_path.glob(f"{path.name}*"):
            file.unlink()
    assert kills >= KILLS


def _one_file(path: Path, rng: random.Random, cycles: int) -> int:
    ledger = Ledger()
    anyio.run(create_sessions, str(path))
    for cycle in range(cycles):
        kill_cycle(ledger, path, rng, f"w{cycle}", durability=rng.choice(["process", "disk"]), processes=PROCESSES)
        if cycle % CYCLES_PER_CHECK == CYCLES_PER_CHECK - 1 or cycle == cycles - 1:
            faults = anyio.run(ledger.check, str(path))
            assert faults == [], f"HOLDFAST_SEED={SEED}: {faults[:5]}"
    assert ledger.acknowledged > 10 * cycles
    assert any(ledger.seen.values())
    assert any(ledger.sets.values())
    print(f"{cycles * PROCESSES} kills, {ledger.acknowledged:,} events acknowledged")
    return cycles * PROCESSES


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [("acknowledges early", "acknowledged"), ("publishes early", "shown")],
)
def test_broken_variants_are_caught(tmp_path: Path, variant: str, complaint: str) -> None:
    """The same checks, on an engine that breaks P1 or P2, must find it within a few kills."""
    rng = random.Random(SEED)
    for cycle in range(15):
        path = tmp_path / f"{cycle}.db"
        anyio.run(create_sessions, str(path))
        ledger = Ledger()
        kill_cycle(ledger, path, rng, "w", variant=variant, processes=1)
        faults = anyio.run(ledger.check, str(path))
        if any(complaint in fault for fault in faults):
            return
    pytest.fail(f"HOLDFAST_SEED={SEED}: {variant} went unnoticed")


@pytest.mark.parametrize(("variant", "sound"), [("loses connections", True), ("forgets markers", False)])
def test_a_retry_after_an_unknown_outcome(tmp_path: Path, variant: str, sound: bool) -> None:
    """P5: with its marker a retry neither loses nor doubles; without, the checks find the doubled."""
    path = tmp_path / "sessions.db"
    anyio.run(create_sessions, str(path))
    ledger = Ledger()
    kill_cycle(ledger, path, random.Random(SEED), "w", variant=variant, processes=1, lines=200)
    faults = anyio.run(ledger.check, str(path))
    assert ledger.acknowledged > 20
    if sound:
        assert faults == []
    else:
        assert any("doubled" in fault for fault in faults)
