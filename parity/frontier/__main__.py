"""The command `python -m parity.frontier`."""

import sys

from parity.frontier.command import main

if __name__ == "__main__":
    sys.exit(main())
