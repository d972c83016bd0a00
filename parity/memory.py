"""Settings of malloc, so that the process keeps memory that it freed."""

import ctypes
import sys

SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep large blocks for the next step; True where it does, False on other systems.

    Without it every step's buffers, hundreds of megabytes, are returned to the system and faulted in again page by
    page: a quarter of a step's CPU time, in both backends. To be called before a framework is imported: a thread that
    has allocated before keeps an arena of its own, which returns its memory whatever is set here. See mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library without it, such as musl
        return False
    return all(mallopt(number, value) == 1 for number, value in SETTINGS.values())
