"""``python -m holdfast.demo`` is ``holdfast demo``, by default: no options but ``--json``."""

from __future__ import annotations

import sys

from holdfast.demo.run import main

if __name__ == "__main__":
    sys.exit(main(json="--json" in sys.argv[1:]))
