"""The command `python -m parity.attempt`."""

import sys

from parity.attempt.command import main

if __name__ == "__main__":
    sys.exit(main())
