"""The command `python -m parity.compare`."""

import sys

from parity.start import start

if __name__ == "__main__":
    sys.exit(start("parity.compare.command"))
