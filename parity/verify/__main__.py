"""python -m parity.verify"""

import sys

from parity.start import start

if __name__ == "__main__":
    sys.exit(start("parity.verify.command"))
