"""The process that is killed: it writes to all sessions as fast as it can, and tells what was acknowledged.

Each line on standard output is an entry of the ledger, written in one system call when the write is
acknowledged: what the parent has read, the store must have.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import anyio

from holdfast.errors import StoreError
from holdfast.model import LATEST, Durability, Latest
from holdfast.supervisor.session import Session
from tests.crash.ledger import CROWD, SESSIONS
from tests.crash.opening import open_store, run_worker
from tests.crash.variants import VARIANTS


def tell(*entry: Any) -> None:
    os.write(1, json.dumps(entry).encode() + b"\n")


async def write(session: Session, writer: str) -> None:
    """Units of state and event, and plain sets, for ever. After an error: the next number."""
    number = 0
    while True:
        number += 1
        try:
            async with session.unit() as unit:
                unit.set("last", [writer, number])
                unit.append([writer, number])
            tell("acked", session.id, unit.events[0].id, [writer, number])
            if number % 5 == 0:
                await session.set(f"set by {writer}", number)
                tell("set", session.id, "", [writer, number])
        except StoreError:
            await anyio.sleep(0.01)


async def append(session: Session, writer: str) -> None:
    """Events alone, for ever. After an error: the next number."""
    number = 0
    while True:
        number += 1
        try:
            event = await session.append([writer, number])
            tell("acked", session.id, event.id, [writer, number])
        except StoreError:
            await anyio.sleep(0.01)


async def follow(session: Session) -> None:
    """Show what comes; after an error, from where it stopped."""
    last: str | Latest = LATEST
    while True:
        try:
            async for event in session.subscribe(after=last):
                tell("seen", session.id, event.id, event.data)
                last = event.id
        except StoreError:
            await anyio.sleep(0.01)


async def work(options: argparse.Namespace) -> None:
    settings = {"durability": Durability(options.durability)}
    async with open_store(options.url, variant=VARIANTS[options.variant], **settings) as store:
        sessions = [await store.require(name) for name in (CROWD if options.crowd else SESSIONS)]
        async with anyio.create_task_group() as tasks:
            for number, session in enumerate(sessions):
                if number % 3 == 0:
                    tasks.start_soon(follow, session)
                tasks.start_soon(append if options.crowd else write, session, options.writer)
            if options.seconds:
                await anyio.sleep(options.seconds)
                tasks.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--writer", required=True)
    parser.add_argument("--durability", default="process")
    parser.add_argument("--variant", default="sound")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--crowd", action="store_true", help="append to many sessions")
    parser.add_argument("--seconds", type=float, default=0, help="end by itself after so long")
    options = parser.parse_args()
    run_worker(options.loop, work, options)


if __name__ == "__main__":
    main()
