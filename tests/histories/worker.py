"""One process on a shared store: several tasks, each with random operations, all written down.

Run as ``python -m tests.histories.worker``; the driver kills some of these.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import anyio
import structlog

from holdfast.supervisor.supervisor import Supervisor
from tests.crash.opening import open_store
from tests.histories.client import Client
from tests.histories.history import Recorder
from tests.histories.variants import VARIANTS

TASKS = 5


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

    async def operate(store: Supervisor, number: int) -> None:
        task_rng = random.Random(f"{options.seed} {number}")
        clients = [
            Client(await store.require(name), recorder, task_rng, f"{options.file.stem}.{number}.{name}")
            for name in options.sessions
        ]
        while not ended():
            await task_rng.choice(clients).step()
            if task_rng.random() < 0.2:
                await anyio.sleep(task_rng.random() * options.pause_s)

    async with open_store(options.url, variant=VARIANTS[options.variant], **random_settings(rng)) as store:
        follower = Client(await store.require(rng.choice(options.sessions)), recorder, rng, "follower")
        async with anyio.create_task_group() as tasks:
            for number in range(TASKS):
                tasks.start_soon(operate, store, number)
            tasks.start_soon(follower.follow, ended, options.catch_up_s)
    recorder.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    parser.add_argument("sessions", nargs="+")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--end", type=Path, required=True, help="when this file is there, it is time")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--variant", default="sound")
    parser.add_argument("--pause-s", type=float, default=0.01)
    parser.add_argument("--catch-up-s", type=float, default=20.0)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    backend, backend_options = (
        ("trio", {}) if options.loop == "trio" else ("asyncio", {"use_uvloop": options.loop == "uvloop"})
    )
    anyio.run(work, options, backend=backend, backend_options=backend_options)


if __name__ == "__main__":
    main()
