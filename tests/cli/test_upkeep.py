"""`holdfast stats`, `gc`, `doctor` and `demo`."""

from __future__ import annotations

import sqlite3
import sys
import types
from pathlib import Path

import anyio
import pytest

import holdfast
from tests.cli.conftest import Call, documents


def test_stats_counts_the_sessions(call: Call, url: str) -> None:
    [document] = documents(call("stats", url, "--json"))
    assert document["url"] == url
    assert document["sessions"] == {"live": 2, "active": 1, "closed": 1}
    assert document["capabilities"]["durability"] == "disk"
    assert document["backend"]["sqlite_version"] == sqlite3.sqlite_version
    assert ["sessions", "2", "(1", "active,", "1", "closed)"] in [
        line.split() for line in call("stats", url).stdout.splitlines()
    ]


def test_gc_removes_what_has_expired_and_what_is_trimmed(call: Call, url: str) -> None:
    async def leave_some() -> None:
        async with holdfast.open(url, background=False) as store:
            await store.create("short", ttl_s=0.001)
            cart = await store.require("cart")
            await cart.delete_events_before((await cart.events())[4].id)
        await anyio.sleep(0.01)  # the command has the machine's clock, so the TTL must really pass

    anyio.run(leave_some)
    assert documents(call("gc", url, "--json")) == [{"expired": ["short"], "events_deleted": 4}]
    assert documents(call("gc", url, "--json")) == [{"expired": [], "events_deleted": 0}]
    assert call("gc", url).stdout == "0 expired sessions removed, 0 trimmed events deleted\n"
    assert len(documents(call("ls", url, "--json"))) == 2


# --- doctor ------------------------------------------------------------------


def statuses(call: Call, *args: str) -> dict[str, str]:
    import json

    document = json.loads(call("doctor", "--json", *args).stdout)
    assert document["ok"] == all(check["status"] != "fail" for check in document["checks"])
    return {check["name"]: check["status"] for check in document["checks"]}


def test_doctor_passes_a_sound_store(call: Call, url: str) -> None:
    result = call("doctor", url)
    assert result.exit_code == 0
    assert "disk: an acknowledged write survives kill -9 and a power loss" in result.stdout
    found = statuses(call, url)
    assert set(found) == {"runtime", "store", "config", "sqlite", "schema", "durability", "sharing", "read"}
    assert found.pop("sqlite") in ("ok", "warn")  # as old as this machine's is
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(
    ("version", "exclusive", "status"),
    [((3, 51, 2), False, "warn"), ((3, 51, 3), False, "ok"), ((3, 51, 2), True, "ok")],
)
def test_doctor_warns_of_an_sqlite_with_the_wal_reset_bug(
    call: Call, url: str, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], exclusive: bool, status: str
) -> None:
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)
    assert statuses(call, f"{url}?exclusive={exclusive}")["sqlite"] == status


def test_doctor_tells_the_settings_that_differ(call: Call, url: str) -> None:
    result = call("doctor", f"{url}?writer.lanes=2&durability=process")
    assert "durability=process, writer.lanes=2" in result.stdout
    assert "process: an acknowledged write survives kill -9, not a power loss" in result.stdout


def test_doctor_fails_what_a_server_would_refuse(call: Call, url: str) -> None:
    assert statuses(call, f"{url}?durability=replicated")["durability"] == "fail"
    assert statuses(call, f"{url}?writer.lane=2") == {"runtime": "ok", "config": "fail"}
    assert statuses(call, f"{url}?busy=2") == {"runtime": "ok", "config": "fail"}
    assert call("doctor", f"{url}?durability=replicated").exit_code == 1


def test_doctor_fails_a_missing_or_foreign_file(call: Call, url: str) -> None:
    assert statuses(call, "sqlite:///nowhere.db")["open"] == "fail"
    assert not Path("nowhere.db").exists()
    Path("text.db").write_text("no database, but long enough to have a header " * 20)
    assert statuses(call, "sqlite:///text.db")["schema"] == "fail"
    with sqlite3.connect("newer.db") as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    assert statuses(call, "sqlite:///newer.db")["schema"] == "fail"


def test_doctor_looks_at_a_store_in_memory_too(call: Call) -> None:
    assert statuses(call, "memory://")["durability"] == "warn"


# --- demo --------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1])
def test_demo_runs_the_demo(call: Call, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    asked: list[object] = []

    def fake_main(url: str | None, *, instances: int | None, postgres: bool, json: bool) -> int:
        asked.append((url, instances, postgres, json))
        return code

    module = types.ModuleType("holdfast.demo.run")
    module.main = fake_main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "holdfast.demo.run", module)
    assert call("demo", "--json").exit_code == code
    assert call("demo").exit_code == code
    assert call("demo", "--store", "sqlite:///a.db", "--instances", "3").exit_code == code
    assert call("demo", "--postgres").exit_code == code
    assert asked == [
        (None, None, False, True),
        (None, None, False, False),
        ("sqlite:///a.db", 3, False, False),
        (None, None, True, False),
    ]


def test_demo_names_the_extra_that_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name
        for name in sys.modules
        if name == "mcp" or name.startswith(("mcp.", "holdfast.demo", "holdfast.integrations"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    result = call("demo")
    assert (result.exit_code, result.stderr) == (2, "Error: demo: needs mcp: pip install 'holdfast[mcp]'\n")
