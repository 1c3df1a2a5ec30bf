"""CONFORMANCE 45, P1-P4: kill -9 at any moment, with a ledger outside the process.

``HOLDFAST_SOAK_CYCLES`` sets the number of kills (``make soak``: 1,000; of servers a tenth), ``HOLDFAST_SEED``
repeats a run.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import anyio
import pytest

from tests.crash.harness import kill_cycle, kill_server_cycle
from tests.crash.ledger import CROWD, Ledger, create_sessions
from tests.crash.opening import sqlite_url
from tests.crash.stores import SERVERS, STORES, Store
from tests.servers import valkey

SOAK_CYCLES = int(os.environ.get("HOLDFAST_SOAK_CYCLES", "0"))
SEED = int(os.environ.get("HOLDFAST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
PROCESSES = 2
CYCLES_PER_STORE = 15
CYCLES_PER_CHECK = 5


def kills_of(store: str) -> int:
    """How many clients to kill; a file is the quickest to share."""
    return SOAK_CYCLES or (30 if store == "sqlite" else 10)


@pytest.mark.parametrize("name", STORES)
def test_every_acknowledged_write_survives_kill_9(name: str, tmp_path: Path) -> None:
    """Two processes share one store; both are killed, again and again, on every event loop."""
    print(f"HOLDFAST_SEED={SEED}")
    rng = random.Random(SEED)
    kills, wanted = 0, kills_of(name)
    while kills < wanted:
        folder = tmp_path / str(kills)
        folder.mkdir()
        with STORES[name](folder) as store:
            kills += _one_store(store, rng, min(CYCLES_PER_STORE, -(-(wanted - kills) // PROCESSES)))
        shutil.rmtree(folder)


def _one_store(store: Store, rng: random.Random, cycles: int) -> int:
    url, ledger = store.url, Ledger()
    anyio.run(create_sessions, url)
    for cycle in range(cycles):
        kill_cycle(ledger, url, rng, f"w{cycle}", durability=rng.choice(store.durabilities), processes=PROCESSES)
        if cycle % CYCLES_PER_CHECK == CYCLES_PER_CHECK - 1 or cycle == cycles - 1:
            check(ledger, url)
    assert ledger.acknowledged > 10 * cycles
    assert any(ledger.seen.values())
    assert any(ledger.sets.values())
    print(f"{cycles * PROCESSES} kills, {ledger.acknowledged:,} events acknowledged")
    return cycles * PROCESSES


def check(ledger: Ledger, url: str) -> None:
    faults = anyio.run(ledger.check, url)
    assert faults == [], f"HOLDFAST_SEED={SEED}: {faults[:5]}"


def test_flushes_that_wait_behind_another_survive_kill_9(tmp_path: Path) -> None:
    """More sessions than a flush may hold, mostly from one process, whose hints are right then."""
    print(f"HOLDFAST_SEED={SEED}")
    rng = random.Random(SEED)
    url = sqlite_url(tmp_path / "sessions.db") + "?writer.max_batch_sessions=70"
    ledger = Ledger(names=CROWD)
    anyio.run(create_sessions, url, CROWD)
    for kill in range(SOAK_CYCLES // 10 or 6):
        durability, processes = rng.choice(["process", "disk"]), rng.choice([1, 1, 2])
        kill_cycle(ledger, url, rng, f"w{kill}", durability=durability, processes=processes, lines=500, crowd=True)
        check(ledger, url)
    print(f"{ledger.acknowledged:,} events acknowledged")


@pytest.mark.parametrize("name", SERVERS)
def test_every_acknowledged_write_survives_the_server_s_kill(name: str, tmp_path: Path) -> None:
    """At the best level that it has; and every client goes on by itself when the server is back."""
    print(f"HOLDFAST_SEED={SEED}")
    rng = random.Random(SEED)
    ledger = Ledger()
    with SERVERS[name](tmp_path) as (store, server):
        anyio.run(create_sessions, store.url)
        for kill in range(SOAK_CYCLES // 10 or 3):
            kill_server_cycle(ledger, store.url, server, rng, f"w{kill}", durability=store.durabilities[-1])
            check(ledger, store.url)
    print(f"{ledger.acknowledged:,} events acknowledged")


def test_a_server_that_forgets_is_caught() -> None:
    """The counter-check: one that keeps a snapshot only, and is said to keep everything."""
    ledger = Ledger()
    with valkey.own_server() as server:
        url = server.url(server_durability="disk")
        anyio.run(create_sessions, url)
        server.command("SAVE")
        kill_cycle(ledger, url, random.Random(SEED), "w", durability="disk", processes=1, lines=100)
        server.kill()
        server.restart()
        faults = anyio.run(ledger.check, url)
    assert any("acknowledged" in fault for fault in faults)


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [("acknowledges early", "acknowledged"), ("publishes early", "shown")],
)
def test_broken_variants_are_caught(tmp_path: Path, variant: str, complaint: str) -> None:
    """The same checks, on an engine that breaks P1 or P2, must find it within a few kills."""
    rng = random.Random(SEED)
    for cycle in range(15):
        url = sqlite_url(tmp_path / f"{cycle}.db")
        anyio.run(create_sessions, url)
        ledger = Ledger()
        kill_cycle(ledger, url, rng, "w", variant=variant, processes=1)
        faults = anyio.run(ledger.check, url)
        if any(complaint in fault for fault in faults):
            return
    pytest.fail(f"HOLDFAST_SEED={SEED}: {variant} went unnoticed")


@pytest.mark.parametrize(("variant", "sound"), [("loses connections", True), ("forgets markers", False)])
def test_a_retry_after_an_unknown_outcome(tmp_path: Path, variant: str, sound: bool) -> None:
    """P5: with its marker a retry neither loses nor doubles; without, the checks find the doubled."""
    url = sqlite_url(tmp_path / "sessions.db")
    anyio.run(create_sessions, url)
    ledger = Ledger()
    kill_cycle(ledger, url, random.Random(SEED), "w", variant=variant, processes=1, lines=200)
    faults = anyio.run(ledger.check, url)
    assert ledger.acknowledged > 20
    if sound:
        assert faults == []
    else:
        assert any("doubled" in fault for fault in faults)
