"""The command `python -m parity.compare`."""

import sys

from parity.compare.command import main

if __name__ == "__main__":
    sys.exit(main())
