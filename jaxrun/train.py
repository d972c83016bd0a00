"""python -m jaxrun.train: trains a recipe in JAX; --help lists every option."""

import sys

from parity.start import start

if __name__ == "__main__":
    sys.exit(start("parity.harness.train", "jaxrun"))
