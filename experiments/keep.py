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
from aavae.reports.jobs import find_jobs
from aavae.runs import status
from aavae.runs.config import CONFIG
from aavae.runs.provenance import PROVENANCE
from aavae.runs.results import RESULTS
from aavae.runtime import caches, exits, files
from aavae.runtime.words import count
from experiments.artefact import parse

COPIED = (RESULTS, METRICS)  # results have a digest of their bytes
OF_THE_MACHINE = ("host", "pid", "process")
FOLDER = re.compile(r""" '?hydra\.run\.dir=(?:'"'"'.*?'"'"''|\S+)""")  # as a sweep quotes it: a path of this machine
PARENTS = re.compile(r"""(?<=[= '"\[,])/(?:[^/\s'",\]]+/)+""")  # of an absolute path


def keep(runs: Path, out: Path) -> int:
    """Copy the small files of the runs in `runs` that are done and judged into `out`; how many.

    Names of the machine and the folders of absolute paths are left out. Raises UserError if there is no such run.
    """
    jobs, _ = find_jobs(runs)
    for job in jobs:
        if job.state == "damaged":
            print(f"left out: {shown(job.folder)}: {job.reason}", file=sys.stderr)
    done = [job.folder for job in jobs if job.state == "done" and (job.folder / RESULTS).exists()]
    if not done:
        raise UserError(f"{shown(runs)} has no run that is done and judged; name the folder of the runs with runs=")
    for run in done:
        folder = out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        said = {k: v for k, v in (status.read(run) or {}).items() if k not in OF_THE_MACHINE}
        sessions = json.loads((run / PROVENANCE).read_text(encoding="utf-8"))
        for one in (said, *sessions):
            one["command"] = FOLDER.sub("", one["command"])
        _write(folder / status.STATUS, json.dumps(said, indent=1) + "\n")
        _write(folder / PROVENANCE, json.dumps(sessions, indent=1) + "\n")
        _write(folder / CONFIG, (run / CONFIG).read_text(encoding="utf-8"))
        for name in COPIED:
            shutil.copyfile(run / name, folder / name)
    return len(done)


def _write(path: Path, text: str) -> None:
    files.write(path, PARENTS.sub("", text))


def _work() -> int:
    taken = ("scale", "runs", "out")
    if other := [word for word in sys.argv[1:] if word.partition("=")[0] not in taken]:
        raise UserError(f"{other[0]} is not a setting here; say scale=, runs= and out=")
    asked = parse(sys.argv[1:], "experiments/results/{}/runs")
    print(f"{count(keep(asked.folder, asked.out), 'run')} kept in {shown(asked.out)}")
    return 0


if __name__ == "__main__":
    caches.settle()
    sys.exit(exits.run("experiments.keep", _work))
