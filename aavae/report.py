"""Entry: the folder of a sweep, or any folder with runs → tables and a page (`aavae-report`)."""

import sys
from pathlib import Path

from aavae import __version__
from aavae.errors import UserError
from aavae.reports import report
from aavae.runtime import exits
from aavae.runtime.typed import Parser


def _work() -> int:
    parser = Parser(
        prog="aavae-report",
        description="Summarise the jobs of a sweep, or the runs in any folder: means over seeds on the "
        "screen and in DIR/sweep.md and sweep.tex, every job in DIR/sweep.csv, and a page to look at, with charts, "
        "DIR/sweep.html. Works while they run.",
        epilog="exit codes: 0 no job has failed, 1 some have or are dead, 2 something cannot be read or written",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aavae {__version__}")
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
