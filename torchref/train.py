"""python -m torchref.train: trains a recipe in PyTorch; --help lists every option."""

import sys

from parity.start import start

if __name__ == "__main__":
    sys.exit(start("parity.harness.train", "torchref"))
