"""``python -m atonce``: the command line."""

import sys

from atonce.cli import main

if __name__ == "__main__":
    sys.exit(main())
