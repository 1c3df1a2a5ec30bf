"""The demo's story, and its verdict."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Final, cast

import anyio
import httpx2
import msgspec
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from holdfast.demo.ledger import Comparison, compare, read_ledger
from holdfast.demo.network import Network
from holdfast.demo.process import ServerProcess
from holdfast.demo.server import PATH, VOLUMES
from holdfast.demo.timeline import Timeline
from holdfast.integrations.mcp import REQUEST_LOST

__all__ = ["DemoResult", "main", "run_demo"]

FACTS: Final = {"owner": "Ada", "title": "The Holdfast Library", "motto": "tiens bon — 持ちこたえろ ⚓"}
_CUT_AT: Final = 8
_KILL_AT: Final = 26
_MISSED: Final = 6
"""Events that the client must get by replay."""
_LIMIT_S: Final = 60.0


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo found. ``ok`` only if all of it is as it must be."""

    ok: bool
    acknowledged: int
    """Events that the server had acknowledged as stored."""
    received: int
    replayed: int
    """Of these, events that came on a resumed connection."""
    missing: int
    duplicated: int
    changed: int
    disordered: int
    errors: int
    """Calls that ended with the honest error, one per kill."""
    state_intact: bool
    kills: int
    seconds: float


class _Story:
    """One run: a server that is killed, a client that goes on."""

    def __init__(self, folder: Path, timeline: Timeline) -> None:
        self.server = ServerProcess(folder)
        self.network = Network()
        self.timeline = timeline
        self.kills = 0
        self.errors = 0
        self._volume = 0
        self._reached = anyio.Event()
        self._until = VOLUMES
        self._ledger = folder / "ledger"

    async def tell(self) -> DemoResult:
        say = self.timeline.say
        async with self.server.running():
            say("server", f"up: process {self.server.pid}, MCP over HTTP on 127.0.0.1:{self.server.port}, SQLite")
            http = httpx2.AsyncClient(transport=self.network, timeout=30)
            url = f"http://127.0.0.1:{self.server.port}{PATH}"
            async with (
                http,
                streamable_http_client(url, http_client=http) as (read, write),
                ClientSession(read, write) as client,
            ):
                await client.initialize()
                for name, value in FACTS.items():
                    await client.call_tool("remember", {"name": name, "value": value})
                say("client", f"connected (the SDK's client); a tool wrote {len(FACTS)} facts")
                await self._lost_connection(client)
                await self._kill_in_mid_stream(client)
                await self._call(client)
                recalled = (await client.call_tool("recall", {})).structured_content
        return self._judge(recalled)

    async def _lost_connection(self, client: ClientSession) -> None:
        """First the network goes, so that the server stores what the client does not get; then the server."""
        say = self.timeline.say
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._call, client)
            await self._reach(_CUT_AT)
            self.network.cut()
            say("kill", f"the connection breaks after volume {self._volume}; the server works on")
            enough = len(self.network.received) + _MISSED
            while len(read_ledger(self._ledger)) < enough:
                await anyio.sleep(0.01)
            await self._kill()
            await self._restart()

    async def _kill_in_mid_stream(self, client: ClientSession) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._call, client)
            await self._reach(_KILL_AT)
            self.network.cut()
            await self._kill()
            await self._restart()

    async def _kill(self) -> None:
        pid = self.server.pid
        await self.server.kill()
        self.kills += 1
        self.timeline.say("kill", f"kill -9 {pid}, in mid-stream")

    async def _restart(self) -> None:
        await self.server.start()
        self.timeline.say("server", f"up again: process {self.server.pid}, same port, same file")
        self.network.restore()

    async def _reach(self, volume: int) -> None:
        self._until, self._reached = volume, anyio.Event()
        await self._reached.wait()

    async def _call(self, client: ClientSession) -> None:
        """One call of the streaming tool, from the request to its end, over however many connections."""
        first, before = self._volume + 1, len(self.network.received)
        try:
            result = await client.call_tool("survey", {}, progress_callback=self._on_progress)
            done: dict[str, Any] = result.structured_content or {}
            outcome = f"the tool went on from its checkpoint at volume {done.get('from')} and finished"
        except MCPError as exc:
            if exc.error.code != REQUEST_LOST:
                raise
            self.errors += 1
            outcome = f"error {exc.error.code}: {exc.error.message.partition('.')[0]}"
        replayed = sum(event.replayed for event in self.network.received[before:])
        if replayed:
            events = "the event" if replayed == 1 else f"the {replayed} events"
            self.timeline.say("client", f"resumed with its last event id; got {events} it had missed")
        self.timeline.progress(f"volumes {first}–{self._volume}", first, self._volume, VOLUMES)
        self.timeline.say("client", outcome)

    async def _on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._volume = int(progress)
        if self._volume >= self._until:
            self._reached.set()

    # The verdict

    def _judge(self, recalled: dict[str, Any] | None) -> DemoResult:
        acknowledged, received = read_ledger(self._ledger), self.network.received
        found = compare(acknowledged, received)
        state_intact = recalled == {"facts": FACTS, "volumes": list(range(1, VOLUMES + 1))}
        result = DemoResult(
            ok=found.clean and state_intact and self.errors == self.kills and bool(acknowledged),
            acknowledged=len(acknowledged),
            received=len(received),
            replayed=sum(event.replayed for event in received),
            missing=len(found.missing),
            duplicated=len(found.duplicated),
            changed=len(found.changed),
            disordered=len(found.disordered),
            errors=self.errors,
            state_intact=state_intact,
            kills=self.kills,
            seconds=round(self.timeline.seconds, 2),
        )
        self._show(result, found)
        return result

    def _show(self, result: DemoResult, found: Comparison) -> None:
        wrong = found.missing + found.duplicated + found.changed + found.disordered
        for event_id in dict.fromkeys(wrong[:10]):
            self.timeline.say("check", f"wrong: {event_id}")
        self.timeline.verdict(
            [
                ("events the server had acknowledged", f"{result.acknowledged}", result.acknowledged > 0),
                ("of these missing at the client", f"{result.missing}", result.missing == 0),
                ("received twice", f"{result.duplicated}", result.duplicated == 0),
                ("changed", f"{result.changed}", result.changed == 0),
                ("out of order", f"{result.disordered}", result.disordered == 0),
                ("replayed after a broken connection", f"{result.replayed}", result.replayed > 0),
                (
                    "calls that died, each ended by an error",
                    f"{result.errors} of {result.kills}",
                    result.errors == result.kills,
                ),
                ("facts, and every volume surveyed once", f"{VOLUMES} volumes", result.state_intact),
                ("time", f"{result.seconds:.1f} s", True),
            ],
            ok=result.ok,
        )


async def run_demo(*, quiet: bool = False) -> DemoResult:
    """Run the demo in a temporary folder; prints its timeline unless ``quiet``.

    Raises: `ServerFailed`, `TimeoutError`.
    """
    timeline = Timeline(quiet=quiet)
    timeline.title("An MCP server dies twice in mid-stream. Its sessions are in Holdfast.")
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as folder, anyio.fail_after(_LIMIT_S):
        return await _Story(Path(folder), timeline).tell()


def main(json: bool) -> int:  # noqa: FBT001 - the command line's flag
    """Run the demo as a command. The exit code is 0 only if nothing was wrong."""
    try:
        result = anyio.run(lambda: run_demo(quiet=json))
    except Exception as exc:
        reason = "; ".join(_reasons(exc))
        if json:
            _print(msgspec.json.encode({"ok": False, "error": reason}).decode())
        else:
            sys.stderr.write(f"The demo failed: {reason}\n")
        return 1
    if json:
        _print(msgspec.json.encode(result).decode())
    return 0 if result.ok else 1


def _reasons(exc: BaseException) -> list[str]:
    if isinstance(exc, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exc)
        return [reason for inner in group.exceptions for reason in _reasons(inner)]
    if isinstance(exc, TimeoutError):
        return [f"not done within {_LIMIT_S:g} s"]
    return [f"{type(exc).__name__}: {exc}"]


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
