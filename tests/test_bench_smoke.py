"""The bench suite runs, at sizes that measure nothing; its arithmetic and its checks are right."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from bench import append, live, servers
from bench.cli import main
from bench.competitors.base import Place, Workload, check_stored
from bench.competitors.sqlite import layout
from bench.competitors.sqlite.each import AiosqliteEach
from bench.figures import Bar, Figure, paired, percentile
from bench.fleet import meet, together
from bench.runner import LOOPS, Loop, Settings, Void, isolated, run_on
from bench.servers import NoServer
from bench.stores import STORES, StoreName
from tests.servers.processes import cannot_start
from tests.servers.valkey import raw_command

WORKLOAD = Workload(sessions=3, events_each=4)
SECOND = f"incarnation = {layout.incarnation(1)}"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", STORES["sqlite"].competitors)
def test_every_competitor_stores_what_it_acknowledges(name: str, loop: Loop, tmp_path: Path) -> None:
    timing = append.measure("sqlite", name, loop, WORKLOAD, tmp_path)
    assert timing.events_per_s > 0
    assert timing.latencies_us == []


@pytest.mark.parametrize("name", ["holdfast", "each", "inline", "mcp-persist"])
def test_a_session_alone_is_timed_append_by_append(name: str, tmp_path: Path) -> None:
    timing = append.measure("sqlite", name, "asyncio", Workload(1, 5), tmp_path)
    assert len(timing.latencies_us) == 5


def _stored_rows(tmp_path: Path, *statements: str) -> Sequence[int]:
    append.measure("sqlite", "each", "asyncio", WORKLOAD, tmp_path)
    place = Place(tmp_path, "", "", "disk")
    with sqlite3.connect(tmp_path / layout.DATABASE) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount == 1
    connection.close()
    check_stored(AiosqliteEach(place, WORKLOAD), WORKLOAD)
    return layout.stored(place)


def test_the_check_passes_what_is_whole(tmp_path: Path) -> None:
    assert _stored_rows(tmp_path) == [4, 4, 4]


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param([f"DELETE FROM events WHERE {SECOND} AND seq = 2"], id="an event is missing"),
        pytest.param([f"DELETE FROM events WHERE {SECOND} AND seq = 4"], id="the last event is missing"),
        pytest.param([f"UPDATE sessions SET last_seq = 9 WHERE {SECOND}"], id="the head is off"),
        pytest.param([f"UPDATE events SET seq = 7 WHERE {SECOND} AND seq = 4"], id="a number is skipped"),
        pytest.param(
            [
                f"DELETE FROM events WHERE {SECOND} AND seq = 4",
                f"UPDATE sessions SET last_seq = 3 WHERE {SECOND}",
            ],
            id="an event never was",
        ),
    ],
)
def test_a_store_that_lost_something_voids_the_run(statements: list[str], tmp_path: Path) -> None:
    with pytest.raises(Void):
        _stored_rows(tmp_path, *statements)


def test_a_measurement_has_a_process_and_a_folder_of_its_own(tmp_path: Path) -> None:
    process, entries = isolated(Settings(folder=tmp_path), _look_around)
    assert process != os.getpid()
    assert entries == []
    assert list(tmp_path.iterdir()) == []


def _look_around(folder: Path) -> tuple[int, list[str]]:
    return os.getpid(), os.listdir(folder)


def test_ratios_are_taken_round_by_round() -> None:
    ours = Figure(name="ours", unit="events/s", values=[10.0, 20.0, 90.0])
    other = Figure(name="other", unit="events/s", values=[20.0, 10.0, 30.0])
    ratio = paired("ratio", ours, other, Bar(at_least=2.0))
    assert ratio.values == [0.5, 2.0, 3.0]
    assert (ratio.median, ratio.low, ratio.high, ratio.met) == (2.0, 0.5, 3.0, True)


def test_bars_have_a_side() -> None:
    assert Bar(at_most=1.5).met_by(1.5)
    assert not Bar(at_most=1.5).met_by(1.6)
    assert not Bar(at_least=5.0).met_by(4.9)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.50) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_whole_suite_runs_and_reports_json(loop: Loop, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["all", "--quick", "--json", "--loop", loop, "--folder", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(outcome.stdout)
    assert report["quick"] is True
    assert report["machine"]["fsync_p50_us"] > 0
    titles = " ".join(section["title"] for section in report["sections"])
    for benchmark in ("append", "get", "memory", "replay"):
        assert benchmark in titles
    for section in report["sections"]:
        assert all(len(figure["values"]) == 1 for figure in section["figures"])
    assert list(tmp_path.iterdir()) == []


def _quick_report(folder: Path, *arguments: str) -> Any:
    """Of a tiny run. Skips the test where the server cannot be started."""
    outcome = CliRunner().invoke(main, [*arguments, "--quick", "--json", "--folder", str(folder)])
    if outcome.exit_code == NoServer.exit_code:
        cannot_start(outcome.stderr)
    assert outcome.exit_code == 0, outcome.output
    assert list(folder.iterdir()) == []
    return json.loads(outcome.stdout)["sections"]


def _names(section: Any) -> list[str]:
    return [figure["name"] for figure in section["figures"]]


@pytest.mark.parametrize(
    ("store", "loop", "sessions"), [("postgres", "trio", 2), ("valkey", "asyncio", 1), ("dynamodb", "asyncio", 1)]
)
def test_servers_are_started_for_each_run(store: StoreName, loop: Loop, sessions: int, tmp_path: Path) -> None:
    which = ["--store", store, "--loop", loop, "--sessions", str(sessions), "--connections", "3"]
    which += ["--burst", "3"] if STORES[store].bursts else []
    sections = _quick_report(tmp_path, "append", *which)
    assert all(STORES[store].title in section["title"] for section in sections)
    ratios = [f"holdfast / {peer.ratio}" for peer in STORES[store].peers]
    assert len(_names(sections[0])) == len(STORES[store].competitors) + len(ratios)
    assert _names(sections[0])[-len(ratios) :] == ratios


def test_everybody_is_held_to_the_same_durability(tmp_path: Path) -> None:
    sections = _quick_report(tmp_path, "append", "--store", "valkey", "--durability", "process", "--sessions", "2")
    assert all("Valkey at process" in section["title"] for section in sections)


def test_a_durability_that_a_store_does_not_have_is_refused() -> None:
    outcome = CliRunner().invoke(main, ["append", "--store", "postgres", "--durability", "process"])
    assert outcome.exit_code == 2
    assert "measured at disk" in outcome.stderr


def test_a_server_that_is_named_is_left_as_it_was(tmp_path: Path) -> None:
    with _server("valkey", tmp_path) as place:
        (tmp_path / "run").mkdir()
        for name in STORES["valkey"].competitors:
            append.measure("valkey", name, "asyncio", WORKLOAD, tmp_path / "run", url=place.url)
        assert raw_command(urlsplit(place.url).port or 0, "DBSIZE") == b":0\r\n"


@contextmanager
def _server(store: StoreName, folder: Path) -> Generator[Place]:
    with ExitStack() as stack:
        try:
            found = stack.enter_context(servers.place(store, folder))
        except NoServer as exc:
            cannot_start(exc.message)
        yield found


def test_live_delivery_between_two_processes(tmp_path: Path) -> None:
    (section,) = _quick_report(tmp_path, "live", "--store", "valkey")
    call, ack = (figure["median"] for figure in section["figures"] if figure["name"].endswith("p50"))
    assert call > ack
    assert call > 0


def test_an_event_that_does_not_arrive_voids_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = live.Seen({(0, 1): 1.0}, {(0, 1): 2.0}, {})
    monkeypatch.setattr(live, "together", lambda _members: [seen, live.Seen({}, {}, {})])
    place = Place(tmp_path, "", "", "disk")
    with pytest.raises(Void, match="0 have arrived"):
        live.measure("sqlite", "asyncio", live.Pace(rate=1, sessions=1, seconds=1, warm_up_s=0), place)


def test_instances_are_measured_together(tmp_path: Path) -> None:
    (section,) = _quick_report(tmp_path, "scaling", "--store", "sqlite")
    assert _names(section)[:3] == ["1 instance", "2 instances", "4 instances"]
    assert "4 instances / 1 instance" in _names(section)


def test_a_process_that_fails_does_not_leave_the_others_waiting() -> None:
    begin = monotonic()
    with pytest.raises(ZeroDivisionError):
        together([_wait, _fail])
    assert monotonic() - begin < 60


def _fail() -> None:
    raise ZeroDivisionError


def _wait() -> None:
    run_on("asyncio", meet)


def test_write_units_of_bursts_and_single_appends(tmp_path: Path) -> None:
    (section,) = _quick_report(tmp_path, "units")
    burst, awaited, pair, transaction, *_ = (figure["median"] for figure in section["figures"])
    assert (pair, transaction) == (2.0, 4.0)
    assert burst < awaited < pair


def test_tables_for_people(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(
        main, ["append", "--quick", "--sessions", "2", "--events", "6", "--folder", str(tmp_path)]
    )
    assert outcome.exit_code == 0, outcome.output
    assert "2 sessions" in outcome.stdout
    assert "holdfast / ceiling" in outcome.stdout
    assert "too small" in outcome.stdout
