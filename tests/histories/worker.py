"""One process on a shared store: several tasks, each with random operations, all written down.

Run as ``python -m tests.histories.worker``; the driver kills some of these.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from holdfast.supervisor.supervisor import Supervisor
from tests.crash.opening import open_store, run_worker
from tests.histories.client import Client
from tests.histories.history import Recorder
from tests.histories.variants import VARIANTS

TASKS = 5
ENDINGS: tuple[tuple[Callable[[Client], Awaitable[None]], ...], ...] = (
    (), (Client.close,), (Client.delete,), (Client.close, Client.delete),
)  # fmt: skip
"""How the sessions end, in their order."""


def random_settings(rng: random.Random) -> dict[str, Any]:
    """Settings that make rare paths common."""
    return {
        "actors.idle_s": rng.choice([0.02, 0.2, 300.0]),
        "actors.ring_events": rng.choice([1, 8, 256]),
        "writer.max_session_units": rng.choice([1, 4, 1_000]),
    }


async def work(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    recorder = Recorder(options.file)

    def ended() -> bool:
        return options.end.exists()  # one system call, beside a dozen for an operation

    async def clients_of(store: Supervisor, task: str) -> list[Client]:
        task_rng = random.Random(f"{options.seed} {task}")
        return [
            Client(await store.require(name), recorder, task_rng, f"{options.file.stem}.{task}.{name}")
            for name in options.sessions
        ]

    async def operate(clients: list[Client], task_rng: random.Random) -> None:
        while not ended():
            await task_rng.choice(clients).step()
            if task_rng.random() < 0.2:
                await anyio.sleep(task_rng.random() * options.pause_s)

    async def finish(clients: list[Client], task_rng: random.Random) -> None:
        """Race the other workers to the sessions' ends, while all go on."""
        while not (options.finish.exists() or ended()):
            await anyio.sleep(0.02)
        for client, ending in zip(clients, itertools.cycle(ENDINGS)):
            for end in ending:
                await anyio.sleep(task_rng.random() * 0.1)
                await end(client)

    settings = random_settings(rng) | {"retention.max_events": options.max_events}
    async with open_store(options.url, variant=VARIANTS[options.variant], **settings) as store:
        follower = rng.choice(await clients_of(store, "follower"))
        teams = [await clients_of(store, str(number)) for number in range(TASKS)]
        finishers = await clients_of(store, "finisher")
        async with anyio.create_task_group() as tasks:
            for team in teams:
                tasks.start_soon(operate, team, random.Random(rng.random()))
            tasks.start_soon(finish, finishers, random.Random(rng.random()))
            tasks.start_soon(follower.follow, ended, options.catch_up_s)
    recorder.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    parser.add_argument("sessions", nargs="+")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--end", type=Path, required=True, help="when this file is there, it is time")
    parser.add_argument("--finish", type=Path, required=True, help="when this file is there, end the sessions")
    parser.add_argument("--max-events", type=int)
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--variant", default="sound")
    parser.add_argument("--pause-s", type=float, default=0.01)
    parser.add_argument("--catch-up-s", type=float, default=20.0)
    options = parser.parse_args()
    run_worker(options.loop, work, options)


if __name__ == "__main__":
    main()
