"""The command line as ``python -m tensordb``."""

from __future__ import annotations

import sys

from tensordb.cli import main

if __name__ == "__main__":
    sys.exit(main())
