"""``python -m bench``."""

from __future__ import annotations

from bench.cli import main

# The guard matters: each measurement runs in a fresh process, which imports this module again.
if __name__ == "__main__":
    main()
