"""Keep what finished runs have measured, without their weights: `python -m experiments.keep scale=… [runs=…] [out=…]`.

The kept runs are small enough to be committed. An artefact reads them with `runs=experiments/results/SCALE/runs`.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from aavae.errors import UserError
from aavae.loggers.screen import shown
from aavae.reports.following import METRICS
from aavae.runs import status
from aavae.runs.config import CONFIG
from aavae.runs.provenance import PROVENANCE
from aavae.runs.results import RESULTS
from aavae.runtime import caches, exits, files
from aavae.runtime.words import count
from experiments.artefact import parse

AS_THEY_ARE = (CONFIG, RESULTS, METRICS)
OF_THE_MACHINE = ("host", "pid", "process")
FOLDER = re.compile(r""" '?hydra\.run\.dir=(?:'"'"'.*?'"'"''|\S+)""")  # as a sweep quotes it: a path of this machine


def keep(runs: Path, out: Path) -> int:
    """Copy the small files of the runs in `runs` that are done and judged into `out`; how many.

    Names and paths of the machine are left out. Raises UserError if there is none.
    """
    done = [
        path.parent
        for path in sorted(runs.glob(f"*/{status.STATUS}"))
        if not path.parent.is_symlink()  # outputs/latest is a run a second time
        and (status.read(path.parent) or {})["state"] == "done"
        and (path.parent / RESULTS).exists()
    ]
    if not done:
        raise UserError(f"{shown(runs)} has no run that is done and judged; name the folder of the runs with runs=")
    for run in done:
        folder = out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        said = {k: v for k, v in (status.read(run) or {}).items() if k not in OF_THE_MACHINE}
        sessions = json.loads((run / PROVENANCE).read_text(encoding="utf-8"))
        for one in (said, *sessions):
            one["command"] = FOLDER.sub("", one["command"])
        files.write(folder / status.STATUS, json.dumps(said, indent=1) + "\n")
        files.write(folder / PROVENANCE, json.dumps(sessions, indent=1) + "\n")
        for name in AS_THEY_ARE:
            shutil.copyfile(run / name, folder / name)
    return len(done)


def _work() -> int:
    asked = parse(sys.argv[1:], "experiments/results/{}/runs")
    if asked.overrides:
        raise UserError(f"{asked.overrides[0]} is not a setting here; say scale=, runs= and out=")
    print(f"{count(keep(asked.folder, asked.out), 'run')} kept in {shown(asked.out)}")
    return 0


if __name__ == "__main__":
    caches.settle()
    sys.exit(exits.run("experiments.keep", _work))
