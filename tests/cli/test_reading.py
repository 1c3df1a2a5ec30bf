"""`holdfast ls`, `show` and `tail`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import anyio
import pytest

import holdfast
from tests.cli.conftest import ROOT, Call, documents, running

# --- ls ----------------------------------------------------------------------


def test_ls_lists_sessions_in_order_of_creation(call: Call, url: str) -> None:
    result = call("ls", url)
    assert result.exit_code == 0
    title, cart, done = result.stdout.splitlines()
    assert title.split() == ["ID", "STATUS", "EXPIRES", "ACTIVE", "EVENTS", "OWNER", "CREATED"]
    assert cart.split()[:2] == ["cart", "active"]
    assert "ann" in cart.split()
    assert done.split()[:3] == ["done", "closed", "never"]


def test_ls_prints_one_json_document_a_line(call: Call, url: str) -> None:
    cart, done = documents(call("ls", url, "--json"))
    assert (cart["id"], cart["owner"], cart["status"], cart["ttl_s"]) == ("cart", "ann", "active", 3600)
    assert (cart["first_seq"], cart["last_seq"], cart["metadata"]) == (1, 20, {"agent": "curl"})
    assert (done["id"], done["owner"], done["status"], done["expires"]) == ("done", None, "closed", None)


def test_ls_filters(call: Call, url: str) -> None:
    assert [found["id"] for found in documents(call("ls", url, "--json", "--owner", "ann"))] == ["cart"]
    assert [found["id"] for found in documents(call("ls", url, "--json", "--status", "closed"))] == ["done"]
    assert [found["id"] for found in documents(call("ls", url, "--json", "--limit", "1"))] == ["cart"]


def test_ls_says_that_there_is_more(call: Call, url: str) -> None:
    assert call("ls", url, "--limit", "1").stderr == "1 of 2 sessions; --limit N shows more\n"
    assert call("ls", url).stderr == ""
    assert call("ls", url, "--owner", "nobody").stderr == "no sessions\n"


def test_ls_goes_on_past_a_page(call: Call, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr("holdfast.cli.reading._PAGE", 1)
    assert [found["id"] for found in documents(call("ls", url, "--json"))] == ["cart", "done"]


# --- show --------------------------------------------------------------------


def test_show_prints_one_json_document(call: Call, url: str) -> None:
    [document] = documents(call("show", "cart", url, "--json", "--events", "2"))
    assert document["session"]["id"] == "cart"
    assert document["state"]["items"]["value"] == [1, 2]
    assert 0 < document["state"]["items"]["version"] < document["session"]["version"]
    assert [(event["seq"], event["stream"], event["type"], event["data"]) for event in document["events"]] == [
        (19, "", "tick", {"n": 19}),
        (20, "even", "tick", {"n": 20}),
    ]


def test_show_is_for_people(call: Call, url: str) -> None:
    result = call("show", "cart", url)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["id", "cart"]
    assert ["owner", "ann"] in [line.split() for line in lines]
    assert any(re.fullmatch(r"items +\d+  \[1,2\]", line) for line in lines)
    assert lines[-1].endswith('{"n":20}')


def test_text_from_the_store_cannot_drive_the_terminal(call: Call, url: str) -> None:
    result = call("show", "cart", url)
    assert "[bold]" in result.stdout
    assert "\x1b" not in result.stdout
    assert call("show", "x\x1b[31m", url).stderr == "Error: no session 'x\\x1b[31m'\n"


def test_looking_does_not_extend_a_session(call: Call, url: str) -> None:
    [before, *_] = documents(call("ls", url, "--json"))
    for command in (["show", "cart"], ["tail", "cart"], ["ls"], ["stats"], ["doctor"]):
        assert call(*command, url).exit_code == 0
    assert documents(call("ls", url, "--json"))[0] == before


def test_an_expired_session_is_not_shown(call: Call, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from holdfast.cli import reading, store

    later = store.now_us() + 3_601_000_000
    for module in (reading, store):
        monkeypatch.setattr(module, "now_us", lambda: later)
    assert call("show", "cart", url).exit_code == 1
    assert [found["id"] for found in documents(call("ls", url, "--json"))] == ["done"]


# --- tail --------------------------------------------------------------------


def seqs(result: Any) -> list[int]:
    return [event["seq"] for event in documents(result)]


def test_tail_prints_the_last_events(call: Call, url: str) -> None:
    assert seqs(call("tail", "cart", url, "--json")) == list(range(11, 21))
    assert seqs(call("tail", "cart", url, "--json", "-n", "2")) == [19, 20]
    assert seqs(call("tail", "cart", url, "--json", "-n", "0")) == []
    assert seqs(call("tail", "cart", url, "--json", "-n", "2", "--stream", "even")) == [18, 20]
    assert call("tail", "cart", url, "-n", "1").stdout.endswith('     20  even/tick  {"n":20}\n')


def test_tail_goes_on_after_an_event(call: Call, url: str) -> None:
    *_, third_last, _, _ = documents(call("tail", "cart", url, "--json"))
    assert seqs(call("tail", "cart", url, "--json", "--after", third_last["id"])) == [19, 20]


def test_tail_refuses_a_wrong_cursor(call: Call, url: str) -> None:
    [foreign] = documents(call("tail", "done", url, "--json"))
    for cursor, reason in (("x", "is not an event id"), (foreign["id"], "belongs to another session")):
        result = call("tail", "cart", url, "--after", cursor)
        assert (result.exit_code, result.stdout) == (2, "")
        assert reason in result.stderr
    [last] = documents(call("tail", "cart", url, "--json", "-n", "1"))
    result = call("tail", "cart", url, "--after", last["id"].replace(".20.", ".21."))
    assert result.exit_code == 2
    assert "is ahead" in result.stderr


def on_store(url: str, work: Callable[[holdfast.Supervisor], Awaitable[None]]) -> None:
    async def run() -> None:
        async with holdfast.open(url) as store:
            await work(store)

    anyio.run(run)


def test_tail_reports_a_gap(call: Call, url: str) -> None:
    first, *_ = documents(call("tail", "cart", url, "--json", "-n", "20"))

    async def trim(store: holdfast.Supervisor) -> None:
        cart = await store.require("cart")
        await cart.delete_events_before((await cart.events())[4].id)

    on_store(url, trim)
    result = call("tail", "cart", url, "--after", first["id"])
    assert result.exit_code == 1
    assert "no longer held" in result.stderr
    assert seqs(call("tail", "cart", url, "--json", "-n", "100")) == list(range(5, 21))


def follow(*args: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return running("tail", "--follow", "--json", *args)


def next_seq(tail: subprocess.Popen[str]) -> int:
    assert tail.stdout is not None
    return int(json.loads(tail.stdout.readline())["seq"])


def test_tail_follows_another_process_until_the_session_is_closed(url: str) -> None:
    async def append_and_close(store: holdfast.Supervisor) -> None:
        cart = await store.require("cart")
        for number in range(21, 24):
            await cart.append({"n": number})
        await cart.close()

    with follow("cart", url, "-n", "1") as tail:
        assert next_seq(tail) == 20
        on_store(url, append_and_close)
        stdout, stderr = tail.communicate(timeout=30)
    assert [json.loads(line)["seq"] for line in stdout.splitlines()] == [21, 22, 23]
    assert (tail.returncode, stderr) == (0, "the session is closed\n")


def test_tail_ends_when_the_session_is_deleted(url: str) -> None:
    async def delete(store: holdfast.Supervisor) -> None:
        assert await store.delete("cart")

    with follow("cart", url, "-n", "1") as tail:
        assert next_seq(tail) == 20
        on_store(url, delete)
        stdout, stderr = tail.communicate(timeout=30)
    assert (tail.returncode, stdout, stderr) == (1, "", "Error: no session 'cart'\n")


def test_tail_is_interrupted_quietly(url: str) -> None:
    with follow("cart", url, "-n", "1") as tail:
        assert next_seq(tail) == 20
        tail.send_signal(signal.SIGINT)
        stdout, stderr = tail.communicate(timeout=30)
    assert (tail.returncode, stdout, stderr) == (130, "", "")


def test_a_reader_that_goes_away_ends_the_command_quietly(url: str) -> None:
    command = f"{sys.executable} -m holdfast.cli ls --json {url} | true"
    ran = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
