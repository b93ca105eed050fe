"""How every command ends: its exit code, and one sentence where it did not end well."""

import signal
import sys
from collections.abc import Callable

from aavae.errors import UserError
from aavae.runtime import output, signals


def run(
    name: str, work: Callable[[], int], *, interrupted: str = "interrupted", kept: Callable[[], bool] = bool
) -> int:
    """Do the `work` of the command `name`; the exit code: that of `work`, 2 for bad input, 128 + n for signal n.

    Output that could not be written, other than to a reader who has left, is an error unless `kept` says that all of
    it is in files too.
    """
    sys.excepthook = _traceback
    with output.lenient() as out:
        try:
            with signals.listening(to_the_end=True):
                code = work() or 0
        except UserError as error:
            if not getattr(error, "said", False):
                output.complain(f"{name}: {error}")
            code = 2
        except KeyboardInterrupt as error:
            if not getattr(error, "said", False):
                print(f"{name}: {interrupted}", file=sys.stderr)
            code = 128 + getattr(error, "signum", signal.SIGINT)
        except SystemExit as error:  # argparse's, after --help; or of code that is not ours
            said = error.code or 0
            if isinstance(said, str):
                print(said, file=sys.stderr)
            code = 1 if isinstance(said, str) else said
        out.flush()
        if out.lost and out.lost.errno not in output.GONE:
            print(f"{name}: cannot write what it prints ({out.lost.strerror})", file=sys.stderr)
            code = code or (0 if kept() else 2)
    return code


def _traceback(*error) -> None:
    """Print the traceback of an error that is nobody's but the code's, without secrets."""
    with output.lenient():
        sys.__excepthook__(*error)
