"""Where the store comes from, what a mistake looks like, and which exit code it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.cli.output import Column, fit, plain, span
from tests.cli.conftest import Call, documents

EVERY = [["ls"], ["show", "cart"], ["tail", "cart"], ["stats"], ["gc"]]


def test_the_store_may_come_from_the_environment_or_a_file(call: Call, url: str) -> None:
    Path("app.toml").write_text(f'[holdfast]\nurl = "{url}"\n')
    for result in (
        call("ls", "--json", url),
        call("ls", "--json", env={"HOLDFAST_URL": url}),
        call("ls", "--json", "--config", "app.toml"),
        call("ls", "--json", env={"HOLDFAST_CONFIG": "app.toml"}),
    ):
        assert [found["id"] for found in documents(result)] == ["cart", "done"]


@pytest.mark.parametrize("command", EVERY, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("store", "code", "message"),
    [
        ([], 2, "no store is named"),
        (["sessions.db"], 2, "write sqlite:///sessions.db"),
        (["sqlite:///sessions.db?writer.lane=1"], 2, "did you mean 'writer.lanes'?"),
        (["memory://"], 2, "lives inside its own process"),
        (["nosuch://host"], 2, "no backend for nosuch://"),
        (["postgresql://me:secret@host:port/"], 2, "malformed"),
        (["--config", "nowhere.toml"], 2, "cannot read nowhere.toml"),
        (["sqlite:///nowhere.db"], 3, "nowhere.db does not exist"),
        (["sqlite:///folder/nowhere.db"], 3, "folder/nowhere.db does not exist"),
        (["sqlite:////"], 3, "is not a file"),
        (["sqlite:///text.db"], 3, "is not an SQLite database"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    call: Call, command: list[str], store: list[str], code: int, message: str
) -> None:
    Path("text.db").write_text("no database, but long enough to have a header " * 20)
    result = call(*command, *store)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr
    assert [path.name for path in Path().iterdir()] == ["text.db"], "a typo must not make a store"


@pytest.mark.parametrize("command", ["show", "tail"])
def test_an_unknown_session_is_exit_code_1(call: Call, url: str, command: str) -> None:
    result = call(command, "nobody", url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: no session 'nobody'\n")


def test_arguments_in_the_wrong_order_are_explained(call: Call, url: str) -> None:
    result = call("show", url, "cart")
    assert result.exit_code == 2
    assert "a session id goes first, then the store's URL" in result.stderr


def test_a_store_that_is_held_by_another_process_is_exit_code_3(call: Call, url: str) -> None:
    hold = "import sqlite3; c = sqlite3.connect('sessions.db'); c.execute('PRAGMA locking_mode=EXCLUSIVE');"
    hold += "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = call("ls", f"{url}?busy_timeout_s=0.05")
        holder.communicate("\n")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ")


def test_help_says_where_the_store_comes_from_and_what_the_exit_codes_mean(call: Call) -> None:
    help_text = call("--help").stdout
    assert "HOLDFAST_URL" in help_text
    assert "Exit codes: 0 done; 1 no such session" in help_text
    for command, *_ in EVERY:
        assert call(command, "--help").exit_code == 0


# --- what is shown -----------------------------------------------------------

COLUMNS = (Column("ID"), Column("OWNER", rank=2, cut=True), Column("WHEN", rank=1))


@pytest.mark.parametrize(
    ("terminal", "widths"),
    [
        (200, {0: 36, 1: 40, 2: 8}),
        (70, {0: 36, 1: 22, 2: 8}),
        (58, {0: 36, 1: 10, 2: 8}),
        (57, {0: 36, 2: 8}),
        (45, {0: 36}),
        (20, {0: 36}),
    ],
)
def test_columns_fit_the_terminal(terminal: int, widths: dict[int, int]) -> None:
    assert fit(COLUMNS, (36, 40, 8), terminal) == widths


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0.0s"),
        (-5, "0.0s"),
        (1_250_000, "1.2s"),
        (59_000_000, "59s"),
        (61_000_000, "1m 1s"),
        (3_600_000_000, "1h"),
        (90_061_000_000, "1d 1h"),
        (86_400_000_000, "1d"),
    ],
)
def test_spans_have_one_or_two_units(us: int, text: str) -> None:
    assert span(us) == text


def test_plain_text_is_printable() -> None:
    assert plain("für dich") == "für dich"
    assert plain("a\x1b[31m\n\x9b\u202e") == "a\\x1b[31m\\n\\x9b\\u202e"
