"""What the runs of a folder have found."""

import os
import sys
from pathlib import Path

from aavae.errors import UserError


def report(folder: Path) -> int:
    """Print what the runs in `folder` have found and write it beside them; returns the exit code.

    Raises UserError if there is no run, or, once all is printed, where nothing can be written.
    """
    from aavae.loggers.screen import Reporter
    from aavae.reports.means import summarize
    from aavae.reports.tables import tell, write

    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}")
    summary = summarize(folder)
    if not summary.jobs:
        raise UserError(summary.problems[0] if summary.problems else f"there is no run in {folder}")
    tell(summary, Reporter().console)
    sys.stdout.flush()
    write(summary)
    return summary.code
