"""P3, P4, P6, P7: several processes on one store, some killed; all that they saw must fit one order.

`certificate` says what is proved. ``HOLDFAST_SOAK_SECONDS`` sets how long it goes on for each store (``make soak``),
``HOLDFAST_SEED`` repeats a run's choices (not its timing). A failure leaves the histories in the test's folder.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.crash.stores import SERVERS, STORES, Server, Store
from tests.histories.driver import Plan, faults_of, run_histories
from tests.histories.history import ENDS, WRITES, Operation

SOAK_S = float(os.environ.get("HOLDFAST_SOAK_SECONDS", "0"))
ROUNDS_S = (3.0, 2.0)
SOAK_ROUND_S = 15.0
"""A run is several rounds, each on new sessions of a new store."""
FEW_EVENTS = 30
"""``max_events`` of each second round."""
SEED = int(os.environ.get("HOLDFAST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
COMMON = (WRITES - ENDS - {"clear"}) | {"get", "get_versioned", "state", "info", "events", "last_events", "tail"}


def work_done(operations: list[Operation]) -> str:
    """For the report."""
    writes = sum(op.is_write and op.happened == "yes" for op in operations)
    reads = sum(not op.is_write and op.happened == "yes" for op in operations)
    shown = sum(len(op.seen) for op in operations)
    return f"{writes:,} writes, {reads:,} reads, {shown:,} events shown; {dict(Counter(map(_told, operations)))}"


def _told(operation: Operation) -> str:
    return operation.error or operation.happened


def _opened(name: str, number: int, folder: Path, stack: ExitStack) -> tuple[Store, Server | None]:
    """In every second round, a server of the run's own, if there is one that keeps its data: it is killed, too."""
    if number % 2 and name in SERVERS:
        return stack.enter_context(SERVERS[name](folder))
    return stack.enter_context(STORES[name](folder)), None


@pytest.mark.parametrize("name", STORES)
def test_histories_fit_one_order(name: str, tmp_path: Path) -> None:
    """Three processes, on every event loop, one killed each second or so, one behind a connection that breaks."""
    print(f"HOLDFAST_SEED={SEED}")
    rng = random.Random(SEED)
    rounds_s = [SOAK_ROUND_S] * round(SOAK_S / SOAK_ROUND_S) or ROUNDS_S
    done, shown = Counter[str](), 0
    for number, seconds in enumerate(rounds_s):
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        with ExitStack() as stack:
            store, server = _opened(name, number, folder, stack)
            plan = Plan(
                seconds=seconds,
                workers=rng.choice([2, 3, 4]) if SOAK_S else 3,
                sessions=rng.choice([1, 2, 3, 4]) if SOAK_S else 3,
                max_events=FEW_EVENTS if number % 2 else None,
                variants=("sound", "sound", "loses connections"),
                pause_s=rng.choice([0.0, 0.01, 0.05]) if SOAK_S else 0.01,
            )
            operations, complaints = run_histories(store.url, folder, plan, rng, server)
        assert complaints == []
        faults = faults_of(operations)
        assert faults == [], f"HOLDFAST_SEED={SEED}, {plan}: {len(faults)} faults, the first: {faults[:3]}"
        print(work_done(operations))
        done.update(op.kind for op in operations if op.happened == "yes")
        shown += sum(len(op.seen) for op in operations)
    assert done.keys() >= COMMON  # else it was not worth much
    assert min(done.total(), shown) > 100


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        ("acknowledges early", "linearizability"),
        ("forgets markers", "nobody's"),
        ("forgets fences", "linearizability"),
        ("reads stale", "shows this"),
        ("numbers outside the lock", "not there then, or lost"),
        ("tears units", "shows this"),
        ("keeps everything", "shows this"),
    ],
)
def test_broken_stores_are_caught(variant: str, complaint: str, tmp_path: Path) -> None:
    """The same run on a store that breaks a promise must not pass; one of two processes is enough."""
    rng = random.Random(SEED)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with STORES["sqlite"](folder) as store:
            plan = Plan(
                seconds=0.7, workers=2, sessions=1, variants=(variant, "sound"), kill_every_s=None, finish_s=0.0,
                catch_up_s=0.3, end_s=10, max_events=FEW_EVENTS if variant == "keeps everything" else None,
            )  # fmt: skip
            operations, _ = run_histories(store.url, folder, plan, rng)
        if any(complaint in fault for fault in faults_of(operations)):
            print(f"caught in run {attempt + 1}")
            return
    pytest.fail(f"HOLDFAST_SEED={SEED}: {variant} went unnoticed")
