"""Run in a mount namespace of its own: fills a small tmpfs, makes room again, and prints what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio

from holdfast.config import WriterConfig
from holdfast.errors import StoreError
from holdfast.supervisor.session import Session
from tests.crash.ledger import Ledger, create_sessions
from tests.crash.opening import open_store, sqlite_url

FOLDER_BYTES = 6 << 20
BALLAST_BYTES = 2 << 20


async def append(session: Session, number: int) -> None:
    async with session.unit() as unit:
        unit.set("last", ["w", number])
        unit.set("padding", "x" * 20_000)
        unit.append(["w", number])
    ledger.record(["acked", session.id, unit.events[0].id, ["w", number]])


async def fill(session: Session, start: int) -> tuple[int, str]:
    """Write until the store refuses; the number that it refused, and what it said."""
    number = start
    while True:
        try:
            await append(session, number)
        except StoreError as exc:
            return number, f"{type(exc).__name__}: {exc}"
        number += 1


async def recovered(sessions: list[Session]) -> list[int]:
    """How many events each session has, as soon as the store serves again by itself."""
    with anyio.fail_after(10):
        while True:
            try:
                return [len(await session.events()) for session in sessions]
            except StoreError:
                await anyio.sleep(0.01)


async def append_as_soon_as_possible(session: Session, number: int) -> None:
    """The breaker of writes lets one attempt through after its cool-down."""
    with anyio.fail_after(10):
        while True:
            try:
                await append(session, number)
            except StoreError:
                await anyio.sleep(0.01)
            else:
                return


async def main(folder: Path) -> dict[str, Any]:
    url, ballast = sqlite_url(folder / "sessions.db"), folder / "ballast"
    ballast.write_bytes(b"x" * BALLAST_BYTES)
    await create_sessions(url)
    async with open_store(url, writer=WriterConfig(retry_for_s=0.3)) as store:
        sessions = [await store.require(name) for name in ("s00", "s01", "s02")]
        errors = list[str]()
        number = 1
        for session in sessions:
            refused, error = await fill(session, number)
            errors.append(error)
            number = refused + 1
        ballast.unlink()
        reads = await recovered(sessions)
        for session in sessions:
            number += 1
            await append_as_soon_as_possible(session, number)
        after = [len(await session.events()) for session in sessions]
    faults = await ledger.check(url)
    return {"errors": errors, "reads": reads, "after": after, "faults": faults, "acked": ledger.acknowledged}


ledger = Ledger()

if __name__ == "__main__":
    target = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FOLDER_BYTES}", "tmpfs", str(target)], check=True)
    print(json.dumps(anyio.run(main, target)))
