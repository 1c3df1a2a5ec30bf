"""The demo tells the truth: it passes as it is, and its checks see every kind of fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from holdfast.demo.ledger import Entry, Received, compare, entry, read_ledger


def event(seq: int, stream: str = "1", data: Any = None) -> str:
    return f"abc.{seq}.{stream}"


def test_the_demo_runs_and_finds_nothing_wrong() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "holdfast.demo", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads(finished.stdout)
    assert result["ok"] is True
    assert (result["missing"], result["duplicated"], result["changed"], result["disordered"]) == (0, 0, 0, 0)
    assert result["kills"] == result["errors"] == 2
    assert result["acknowledged"] > 40
    assert result["replayed"] > 2
    assert result["state_intact"] is True
    assert result["seconds"] < 30


ACKNOWLEDGED = [Entry(event(seq), {"n": seq}) for seq in (1, 2, 3)]
RECEIVED = [Received(note.id, note.data, replayed=False) for note in ACKNOWLEDGED]


def test_a_faultless_run_compares_clean() -> None:
    assert compare(ACKNOWLEDGED, RECEIVED).clean
    unacknowledged = [*RECEIVED, Received(event(4), {}, replayed=True)]
    assert compare(ACKNOWLEDGED, unacknowledged).clean


def test_a_missing_event_is_seen() -> None:
    assert compare(ACKNOWLEDGED, RECEIVED[:2]).missing == [event(3)]


def test_a_doubled_event_is_seen() -> None:
    found = compare(ACKNOWLEDGED, [*RECEIVED, RECEIVED[1]])
    assert found.duplicated == [event(2)]
    assert not found.clean


def test_a_changed_event_is_seen() -> None:
    changed = [*RECEIVED[:2], Received(event(3), {"n": 30}, replayed=True)]
    assert compare(ACKNOWLEDGED, changed).changed == [event(3)]


def test_a_disordered_event_is_seen_within_its_stream_alone() -> None:
    assert compare(ACKNOWLEDGED, RECEIVED[::-1]).disordered == [event(2), event(1)]
    other = [Received(event(9, "2"), {}, replayed=False), *RECEIVED]
    assert compare(ACKNOWLEDGED, other).disordered == []


def test_a_line_that_the_kill_cut_off_is_no_entry(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_bytes(entry(event(1), {"a": "\n"}) + entry(event(2), None)[:-3])
    assert read_ledger(ledger) == [Entry(event(1), {"a": "\n"})]
