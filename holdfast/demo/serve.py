"""``python -m holdfast.demo.serve FOLDER PORT``: the demo's server process."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

import holdfast
from holdfast.demo.server import app

__all__ = ["main"]


def main(folder: Path, port: int) -> None:
    """Serve on loopback until killed."""
    store = holdfast.open(f"sqlite:///{folder / 'sessions.db'}")
    uvicorn.run(app(store, folder / "ledger"), host="127.0.0.1", port=port, log_level="warning", lifespan="on")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
