"""``python -m keyferry`` is ``keyferry``."""

import sys

from keyferry.cli import main

if __name__ == "__main__":
    sys.exit(main())
