"""python -m jaxrun.sample RUN --prompt TEXT: text from the weights of a run of either backend, by JAX."""

import sys

from parity.harness.sample import main

if __name__ == "__main__":
    sys.exit(main("jaxrun"))
