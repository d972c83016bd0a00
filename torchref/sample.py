"""python -m torchref.sample RUN --prompt TEXT: text from the weights of a run of either backend, by PyTorch."""

import sys

from parity.start import start

if __name__ == "__main__":
    sys.exit(start("parity.harness.sample", "torchref"))
