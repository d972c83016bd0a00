"""python -m jaxrun.train: trains a recipe in JAX; --help lists every option."""

import sys

from parity.harness.train import main

if __name__ == "__main__":
    sys.exit(main("jaxrun"))
