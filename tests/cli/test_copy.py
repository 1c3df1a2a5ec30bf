"""`holdfast copy`."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import holdfast
from tests.cli.conftest import ROOT, Call, documents, running

TARGET = "sqlite:///target.db"
KILLS = 8


def shown(call: Call, url: str) -> list[Any]:
    """All sessions of a store, with state and events, as the command prints them."""
    sessions = documents(call("ls", url, "--json"))
    return [documents(call("show", found["id"], url, "--json", "--events", "10000")) for found in sessions]


def query(path: str, statement: str) -> Any:
    with sqlite3.connect(path) as connection:
        row = connection.execute(statement).fetchone()
    connection.close()
    return row


def test_copy_copies_and_verifies(call: Call, url: str) -> None:
    result = call("copy", url, TARGET)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "copied 2 sessions, 21 events",
        "verified 2 sessions, 21 events: the same in both stores",
    ]
    assert shown(call, TARGET) == shown(call, url) != []
    result = call("copy", url, TARGET)
    assert result.stdout.splitlines()[0] == "copied 0 sessions, 0 events; 2 were there already"


def test_copy_prints_one_json_document(call: Call, url: str) -> None:
    assert documents(call("copy", url, TARGET, "--json")) == [
        {
            "source": url,
            "target": TARGET,
            "complete": True,
            "copied": 2,
            "caught_up": 0,
            "already_there": 0,
            "events": 21,
            "verified": 2,
            "verified_events": 21,
            "problems": [],
        }
    ]
    [document] = documents(call("copy", url, TARGET, "--json", "--no-verify"))
    assert (document["already_there"], document["verified"]) == (2, None)


def test_copy_reaches_the_disk(call: Call, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.backends.base import Batch, Outcome
    from holdfast.backends.sqlite import SQLiteBackend

    levels = set[str]()
    commit = SQLiteBackend.commit

    async def watched(self: SQLiteBackend, batch: Batch) -> list[Outcome]:
        levels.add(batch.durability.value)
        return await commit(self, batch)

    monkeypatch.setattr(SQLiteBackend, "commit", watched)
    assert call("copy", url, TARGET).exit_code == 0
    assert levels == {"disk"}


def test_a_conflict_is_reported_and_exit_code_1(call: Call, url: str) -> None:
    async def occupy() -> None:
        async with holdfast.open(TARGET) as store:
            await (await store.create("cart")).set("mine", "kept")

    anyio.run(occupy)
    result = call("copy", url, TARGET)
    assert (result.exit_code, result.stderr) == (
        1,
        "conflict: session 'cart': the target has another session of this id\n",
    )
    assert result.stdout.splitlines() == [
        "copied 1 sessions, 1 events",
        "verified 1 sessions, 1 events: the same in both stores",
        "1 sessions are not, or not exactly, at the target",
    ]
    [document] = documents(call("show", "cart", TARGET, "--json"))
    assert document["state"]["mine"]["value"] == "kept"
    result = call("copy", url, TARGET, "--json")
    assert result.exit_code == 1
    assert '"problems":[{"session_id":"cart","kind":"conflict","detail":"the target has' in result.stdout
    assert '"complete":false' in result.stdout


def test_a_byte_that_differs_is_found(call: Call, url: str) -> None:
    assert call("copy", url, TARGET).exit_code == 0
    with sqlite3.connect("target.db") as connection:
        assert connection.execute("UPDATE events SET data = '{\"n\":8}' WHERE data = '{\"n\":7}'").rowcount == 1
    connection.close()
    result = call("copy", url, TARGET)
    assert result.exit_code == 1
    assert result.stderr.startswith("different: session 'cart': event ")
    assert result.stderr.endswith(".7. is not the same\n")
    assert call("copy", url, TARGET, "--no-verify").exit_code == 0


@pytest.mark.parametrize(
    ("source", "target", "code", "message"),
    [
        ("sqlite:///sessions.db", "memory://", 2, "lives inside its own process"),
        ("memory://", TARGET, 2, "lives inside its own process"),
        ("sqlite:///nowhere.db", TARGET, 3, "nowhere.db does not exist"),
        ("sqlite:///sessions.db", "sqlite:///no/folder.db", 3, "cannot be opened"),
        ("sqlite:///sessions.db", "sqlite:///./sessions.db", 2, "the source and the target are the same store"),
        ("sqlite:///sessions.db", "sqlite:///link.db", 2, "the source and the target are the same store"),
        ("sqlite:///sessions.db", "nosuch://me:secret@host/", 2, "no backend for nosuch://"),
        ("postgresql://me:secret@host:port/", TARGET, 2, "malformed"),
        ("sqlite:///sessions.db", "sqlite:///target.db?writer.lane=1", 2, "did you mean 'writer.lanes'?"),
        ("sqlite:///sessions.db", "sqlite:///text.db", 3, "is not an SQLite database"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    call: Call, url: str, source: str, target: str, code: int, message: str
) -> None:
    Path("text.db").write_text("no database, but long enough to have a header " * 20)
    Path("link.db").symlink_to("sessions.db")
    before = shown(call, url)
    result = call("copy", source, target)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr
    assert not Path("target.db").exists(), "a mistake must not make a store"
    assert shown(call, url) == before


def test_both_stores_must_be_named(call: Call, url: str) -> None:
    assert call("copy", url).exit_code == 2
    assert call("copy", url, env={"HOLDFAST_URL": TARGET}).exit_code == 2


def test_text_from_the_store_does_not_drive_the_terminal(call: Call, url: str) -> None:
    assert call("copy", url, TARGET).exit_code == 0
    with sqlite3.connect("target.db") as connection:
        connection.execute("UPDATE state SET key = 'x' || char(27) || '[31m' WHERE key = 'note'")
    connection.close()
    result = call("copy", url, TARGET)
    assert result.exit_code == 1
    assert "\x1b" not in result.stderr + result.stdout


# --- killed ----------------------------------------------------------------------


@pytest.fixture
def large(url: str) -> str:
    """The store of ``url`` with many sessions more, one of them far too large for a commit."""

    async def fill() -> None:
        async with holdfast.open(url, retention={"max_events": None}) as store:
            async with anyio.create_task_group() as tasks:
                for number in range(300):
                    tasks.start_soon(one, store, number)
            session = await store.create("large", ttl_s=None)
            await session.set_many({f"key {number}": "\0" * number for number in range(300)})
            await session.append_many([f"large {number}" for number in range(10_000)])
            await session.close()

    async def one(store: holdfast.Supervisor, number: int) -> None:
        session = await store.create(f"s{number}", ttl_s=None)
        await session.set_many({"n": number, "big": 2**80 + number})
        await session.append_many([f"{number}: {event}" for event in range(number % 20)])
        if number % 10 == 0:
            await session.close()

    anyio.run(fill)
    return url


SLOWLY = f"{TARGET}?writer.max_batch_sessions=4&writer.max_session_units=40"
"""Small commits, so that there are many moments to stop at."""


def rows() -> int:
    try:
        count: int = query("target.db", "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM state)")[0]
    except sqlite3.OperationalError:  # no file yet, or no tables
        return 0
    return count


def wait_for_rows(process: subprocess.Popen[str], more_than: int) -> None:
    deadline = time.monotonic() + 30
    while rows() <= more_than:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_copy_that_is_killed_goes_on(call: Call, large: str) -> None:
    """kill -9, again and again, each time while rows are being written."""
    seed = random.SystemRandom().randrange(1, 2**32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    reached = [0]
    for _ in range(KILLS):
        with running("copy", large, SLOWLY) as process:
            wait_for_rows(process, reached[-1])
            time.sleep(rng.random() * 0.02)
            process.kill()
            assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        reached.append(rows())
    assert reached == sorted(set(reached)), "each run goes on where the one before was killed"
    total = query("sessions.db", "SELECT count(*) FROM events")[0]
    assert reached[-1] < total + query("sessions.db", "SELECT count(*) FROM state")[0]

    done = query("target.db", "SELECT count(*) FROM events")[0]
    [document] = documents(call("copy", large, SLOWLY, "--json"))
    assert document["complete"]
    assert document["events"] == total - done, "no event is written twice"
    assert document["verified"] == 303
    assert query("target.db", "SELECT count(*) FROM events")[0] == total
    assert shown(call, TARGET) == shown(call, large)
    # Killed processes leave their last marker; a server forgets it after a day.
    assert query("target.db", "SELECT count(*) FROM markers")[0] <= 2 * KILLS


def test_a_copy_is_interrupted_quietly(call: Call, large: str) -> None:
    with running("copy", large, SLOWLY) as process:
        wait_for_rows(process, 100)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, "", "")
    assert documents(call("copy", large, TARGET, "--json"))[0]["complete"]


def test_a_terminal_gets_a_progress_bar(large: str) -> None:
    command = [sys.executable, "-m", "holdfast.cli", "copy", large, TARGET]
    main_end, other_end = os.openpty()
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=other_end,
        text=True,
    ) as process:
        os.close(other_end)
        drawn = b""
        while True:
            try:
                piece = os.read(main_end, 4096)
            except OSError:  # the other end is closed
                break
            drawn += piece
        stdout, _ = process.communicate(timeout=30)
    os.close(main_end)
    assert process.returncode == 0
    text = drawn.decode()
    for part in ("copying", "catching up", "verifying", "303/303", "events"):
        assert part in text
    assert stdout.startswith("copied 303 sessions")
