"""The efficiency frontier as a static site: plain files that work from a folder, and ask nothing of the network.

`build` writes it from plain JSON values. Its pages are complete as tables without JavaScript; charts and filters need
it.
"""

from parity.frontier.site.build import build

__all__ = ["build"]
