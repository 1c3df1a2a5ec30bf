"""``python -m holdfast.demo.serve PORT FOLDER NUMBER LEASE_S [NAME]``: one instance of the demo's server.

The store's URL is in ``HOLDFAST_URL``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvicorn

import holdfast
from holdfast.demo.ledger import ledger_path
from holdfast.demo.process import end_with_parent
from holdfast.demo.server import app

__all__ = ["main"]


def main(port: int, folder: Path, number: int, lease_s: float, name: str | None = None) -> None:
    """Serve on loopback until killed."""
    end_with_parent()
    ledger = ledger_path(folder, number, os.getpid())
    application = app(holdfast.open(), ledger, instance_name=name, lease_s=lease_s)
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="warning", lifespan="on")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])
