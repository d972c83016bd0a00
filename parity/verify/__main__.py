"""python -m parity.verify"""

import sys

from parity.verify.command import main

if __name__ == "__main__":
    sys.exit(main())
