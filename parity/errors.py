"""How a command may end, and the exceptions for it.

Exit codes of every command: 0 it holds; 1 it was judged, or ran, and falls short; 2 it could not be judged or run,
and the user can fix it; 3 a fault of this program; 130, 143 and 129 interrupted by Ctrl-C,
SIGTERM and SIGHUP.
"""

import difflib
import errno
import sys
import traceback
from collections.abc import Callable, Iterable

MAX_NAMED = 8  # known names in one message
REPORT_AT = "please report it with the lines above, the command and the run's run.json (docs/troubleshooting.md)"
# What the system refuses because of the place, its limits or its state, and what the user can do about it.
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "remount it for writing",
    errno.EACCES: "check the permissions of its folder",
    errno.EPERM: "check the permissions of its folder",
    errno.EIO: "check the disk and its connection",
    errno.ESTALE: "check the network file system",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EILSEQ: "choose a name that the file system takes",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close some files of other programs",
    errno.ENOTDIR: "check the path, of which a part is a file",
    errno.ELOOP: "check the links in the path",
}


class InputError(Exception):
    """Something the user can fix. Its text is one sentence: what, where, expected, found, what to do. Exit code 2."""


class RunFailed(Exception):
    """A run that was carried out and falls short, such as a loss that is not finite. Exit code 1."""


class Interrupted(Exception):
    """The user asked to stop (Ctrl-C, SIGTERM, SIGHUP), and the run directory is in order. Exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def remedy(error: OSError) -> str:
    """What to do about a file that the system did not let us write, as a clause; by the error's number."""
    return REMEDIES.get(error.errno or 0, "check the path")


def nearest(name: str, known: Iterable[str], most: int = MAX_NAMED) -> str:
    """The end of a sentence about an unknown name: the closest known name, if any is close, and all known names.

    Of more than `most` names it has the closest, and the number of the others.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    if len(known) <= most:
        return f"{hint}known: {', '.join(known)}"
    closest = difflib.get_close_matches(name, known, n=most, cutoff=0)
    return f"{hint}known: {', '.join(closest)} and {len(known) - most} more"


def _one_text(error: Exception) -> str:
    """An error's text as any terminal can show it: a file's name may be no Unicode, and steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in str(error))


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a command's main function and returns its exit code; prints the one line that explains a non-zero one."""
    try:
        return main() or 0
    except InputError as error:
        print(f"error: {_one_text(error)}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"failed: {_one_text(error)}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"interrupted: {error}", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt:
        print("interrupted: a started run continues from its last checkpoint with --resume", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno not in REMEDIES:
            return _fault()
        path = error.filename if isinstance(error.filename, str) else "a file"
        sentence = OSError(f"{path}: cannot be read or written ({error.strerror}): {remedy(error)}")
        print(f"error: {_one_text(sentence)}", file=sys.stderr)
        return 2
    except Exception:
        return _fault()


def _fault() -> int:
    traceback.print_exc()
    print(f"fault: this is a mistake in the program, not in what you asked for; {REPORT_AT}", file=sys.stderr)
    return 3
