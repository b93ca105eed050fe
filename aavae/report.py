"""Entry: the folder of a sweep, or any folder with runs → a table, `sweep.csv` and `sweep.md` (`aavae-report`)."""

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

from aavae import exits
from aavae.errors import UserError


def report(folder: Path) -> int:
    """Print what the runs in `folder` have found and write it beside them; returns the exit code.

    Raises UserError if there is no run, or, once all is printed, where nothing can be written.
    """
    from aavae.console import Reporter
    from aavae.summary import summarize
    from aavae.summary_tables import tell, write

    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}")
    summary = summarize(folder)
    if not summary.jobs:
        raise UserError(summary.problems[0] if summary.problems else f"there is no run in {folder}")
    tell(summary, Reporter().console)
    sys.stdout.flush()
    write(summary)
    return summary.code


def _work() -> int:
    parser = argparse.ArgumentParser(
        prog="aavae-report",
        description="Say what the jobs of a sweep, or the runs in any folder, have found: means over seeds on the "
        "screen and in DIR/sweep.md, every job in DIR/sweep.csv. Works while they run.",
        epilog="exit codes: 0 no job has failed, 1 some have or are dead, 2 something cannot be read or written",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aavae {version('aavae')}")
    parser.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="such as multirun/NAME, outputs, or a run")
    asked, unknown = parser.parse_known_args()
    if unknown:
        raise UserError(f"there is no option {unknown[0]}, and there are no settings: aavae-report takes folders")
    code = 0
    for folder in asked.folders:
        try:
            code = max(code, report(folder.expanduser()))
        except UserError as error:
            print(f"aavae-report: {error}", file=sys.stderr)
            code = 2
    return code


def main() -> None:
    """The command `aavae-report`. Exit codes: 0 no job failed, 1 some did or are dead, 2 bad input, 128 + n stopped by
    signal n."""
    sys.exit(exits.run("aavae-report", _work))


if __name__ == "__main__":
    main()
