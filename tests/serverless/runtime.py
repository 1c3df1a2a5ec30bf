"""``python -m tests.serverless.runtime``: runs the example's handler, as a function's runtime would.

An event is a line on stdin, its answer a line on stdout, until stdin ends. Nothing runs in between.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "serverless.py"


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # where logs go

    def say(answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    begun = time.perf_counter()
    handler = runpy.run_path(str(EXAMPLE))["handler"]
    say({"init_ms": (time.perf_counter() - begun) * 1e3})
    for line in sys.stdin:
        say(handler(json.loads(line), None))


if __name__ == "__main__":
    main()
