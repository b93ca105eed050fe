"""What the runs of a folder have found."""

import os
import sys
from pathlib import Path

from aavae.errors import UserError


def report(folder: Path) -> int:
    """Print what the runs in `folder` have found and write it beside them, for programs, papers and browsers; returns
    the exit code.

    Raises UserError if there is no run, or, once all is printed, where nothing can be written.
    """
    from aavae.loggers.screen import Reporter
    from aavae.reports.means import summarize
    from aavae.reports.page import PAGE, page
    from aavae.reports.tables import is_run, tell, write
    from aavae.runtime import files

    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}")
    summary = summarize(folder)
    if not summary.jobs:
        raise UserError(summary.problems[0] if summary.problems else f"there is no run in {folder}")
    tell(summary, Reporter().console)
    sys.stdout.flush()
    write(summary)
    if not is_run(folder):
        files.write(folder / PAGE, page(summary).encode(errors="replace"))
    return summary.code
