"""`-m`: the jobs of a sweep, checked before the first one, launched, and summed up at the end."""

import contextlib
import hashlib
import math
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

from omegaconf import OmegaConf

from aavae import build
from aavae.errors import GaveUp, Interrupted, UserError, mark_told
from aavae.runs import status, sweep
from aavae.runs.config import asked_for, read_config
from aavae.runs.sweep import Job
from aavae.runtime import files, secrets, slurm, threads
from aavae.runtime.output import complain
from aavae.runtime.words import count, folded, wrapped
from aavae.sweeps import search, slurm_queue
from aavae.sweeps.grid import Grid
from aavae.sweeps.refusals import SLURM, refuse_helpers, refuse_twins

MULTIRUN = "multirun.yaml"  # Hydra's
SHOWN = 10  # impossible jobs that are named one by one


# ---- Before, during and after -------------------------------------------------------------------------------------


class Multirun:
    """A sweep of `command`; `go` hands it to Hydra, whose launcher comes back to `run`."""

    def __init__(self, command, overrides: list[str], config_dir: str | None):
        self.command, self.overrides, self.config_dir = command, overrides, config_dir
        self.grid = Grid(overrides, config_dir, command.primary)
        self.folder = Path()  # `check` finds it
        self.jobs: list[Job] = []  # as far as is known before they are launched
        self.asked: dict[Path, tuple[str, dict]] = {}  # names and configs of the jobs that are known, by their folder
        self.steps: dict[Path, int] = {}  # of these jobs
        self.names: dict[Path, str] = {}  # of the jobs of launches before, where a folder is one setting's
        self.since: str | None = None  # runs that began before are to begin anew
        self.gpus = 0
        self.launcher = ""  # its class; `check` finds it
        self.study: tuple[str, str] | None = None  # of an optimiser: its name and its storage

    def go(self) -> int:
        """Check all jobs, run them, and sum up; returns the exit code."""
        folder = self.check()
        if folder is None:
            return 0
        new, name = not folder.exists(), self.command.name
        self.command.make(folder, "hydra.sweep.dir")
        with files.only_one(folder, "hydra.sweep.dir"):
            self.begin()
            if self.launcher.endswith(SLURM):
                slurm_queue.watch()
            try:
                code = self.command.launch_sweep(self, self.overrides, self.config_dir, folder)
            except GaveUp as error:
                if not any(folder.glob("*/status.json")):  # as when sbatch refuses: no job was begun
                    if new:
                        shutil.rmtree(folder)
                    raise
                complain(f"{name}: {error}")
                code = 1
            except SystemExit as error:  # Hydra's, which has printed why another launcher or sweeper gave up
                code = 1 if error.code else 0
            except KeyboardInterrupt as error:
                from aavae.loggers.screen import shown

                self.sum_up()
                again = f"{name} sweep.resume={shlex.quote(str(shown(folder)))}"
                print(f"stopped; continue with\n  {folded(again, 2)}")
                mark_told(error)
                raise
            failed = self.sum_up()
            unlike = self._unlike()
            for line in unlike:
                complain(f"{name}: {line}")
            self._tell_dashboards()
        return 1 if code or failed or unlike else 0

    def check(self) -> Path | None:
        """See that every job is possible, and say what they will take; the folder, or None for a dry run.

        Raises UserError, naming all that are impossible.
        """
        from aavae.sweeps.preflight import preflight

        primary, grid = self.command.primary, self.grid
        fixed = [values[0] for values in grid.values.values() if values]
        cfg = build.compose(fixed, self.config_dir, primary)
        secrets.learn(build.plain(cfg))
        if without := [key for key, values in grid.values.items() if not values]:
            raise UserError(f"the grid is empty: {without[0]} has no values")
        if len(grid) > cfg.sweep.max_jobs:
            raise UserError(f"{count(len(grid), 'job')}? if you mean it, say sweep.max_jobs={len(grid)}")
        jobs = grid.jobs()
        how = [o for o in self.overrides if o.startswith("hydra")]
        given = [*how, *jobs[0]]
        where = build.folder(given, "hydra.sweep.dir", primary, self.config_dir, self.command.job_name)
        self.folder = folder = Path(where).absolute()
        node = build.hydra_node([*given, f"hydra.sweep.dir={build.quoted(where)}"], self.config_dir, primary)
        refuse_helpers(node)
        self.launcher = str(node.launcher.get("_target_"))
        self.since = status.now() if cfg.resume == "never" else sweep.afresh(folder, self._given())
        plans, speed, self.gpus = preflight(jobs, self.config_dir, primary, folder, self.since)
        impossible = [f"{grid.name(p.overrides)}: {p.error}" for p in plans if p.error]
        if impossible:
            several = f"{len(impossible)} of {len(jobs)} jobs are impossible, and none was begun"
            more = [f"and {len(impossible) - SHOWN} more"] if len(impossible) > SHOWN else []
            raise UserError("\n  ".join([several, *impossible[:SHOWN], *more]) if len(jobs) > 1 else plans[0].error)
        if where in str(node.sweeper.get("storage")):  # in this folder, which nobody else may use
            self.study = (node.sweeper.study_name, node.sweeper.storage)
        if node.sweep._get_node("subdir")._value() == "${aavae_identity:}":
            refuse_twins(plans, grid)
            self.names = sweep.names(folder)
            own = ([o for o in p.overrides if not o.startswith("hydra")] for p in plans)
            self.jobs = [
                Job(n, o, folder / p.identity, self.name_of(o, folder / p.identity))
                for n, (o, p) in enumerate(zip(own, plans, strict=True))
            ]
            self.asked = {job.folder: (job.name, p.config) for job, p in zip(self.jobs, plans, strict=True)}
        self.steps = {folder / p.identity: p.steps for p in plans}
        stands = [self.stands(folder / p.identity, p.config) for p in plans]
        self._say(folder, plans, stands, speed, grid.complete)
        return None if cfg.dry_run else folder

    def stands(self, folder: Path, config: dict) -> str | None:
        """The state of a job that this launch has nothing to do for, as its run is done, or trained further already;
        None for the others."""
        if sweep.is_outdated(folder, self.since):
            return None
        if is_done(folder, config | {"resume": "auto"}):
            return "done"
        with contextlib.suppress(UserError):
            said = status.read(folder)
            if said and (said.get("saved") or 0) > self.steps.get(folder, math.inf):
                return status.state_of(said)
        return None

    def _unlike(self) -> list[str]:
        """What became of jobs that are not what this launch asked for, though no state says that they failed."""
        from aavae.sweeps.pool import LOG, finished_run, last_words

        lines = []
        for folder, (name, config) in self.asked.items():
            state = self.stands(folder, config)
            if state is None and finished_run(folder):
                said = f"; the last line of its log: {words}" if (words := last_words(folder / LOG)) else ""
                lines.append(f"{name}: it did not begin, and its run of before is kept{said}")
            elif state not in (None, "done"):
                lines.append(f"{name}: its run has more steps than this launch asks for, and is {state}")
        return lines

    def name_of(self, overrides: list[str], folder: Path) -> str:
        """What tells a job from the others of this launch, or its name of before if that says this and more."""
        name, before = self.grid.name(overrides), self.names.get(folder, "")
        return before if before and {*name.split()} <= {*before.split(), "single"} else name

    def _say(self, folder: Path, plans: list, stands: list[str | None], speed: float, complete: bool) -> None:
        from aavae.loggers.screen import duration, shown

        known = "" if complete else ", as far as is known; the others are the sweeper's to choose"
        left = [p for p, state in zip(plans, stands, strict=True) if state is None]
        done = f", {n} of them done" if (n := stands.count("done")) else ""
        if further := len(plans) - len(left) - stands.count("done"):
            done += f", {further} of them trained further than this"
        print(wrapped(f"sweep       {shown(folder)}: {count(len(plans), 'job')}{done}{known}"))
        print(f"steps       {sum(p.steps for p in left):,} in all")
        if speed:
            where = f"{self.gpus} GPUs at a time" if self.gpus > 1 else plans[0].device
            seconds = sum(p.flops for p in left) / speed / max(1, self.gpus)
            print(wrapped(f"time        about {duration(seconds)} of training in all, on {where}, besides evaluation"))
        needed = sum(p.disk for p in left if not (folder / p.identity).exists())
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free
        print(f"disk        {needed / 2**30:.2f} GiB of {free / 2**30:,.0f} GiB free", flush=True)
        if needed > free:
            raise UserError(
                f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB free in {there}; make room, or name "
                "another hydra.sweep.dir="
            )

    def begin(self) -> None:
        """Write down what is going to be done, so that it can be gone on with, whatever launches it."""
        self.record(self.jobs if self.grid.complete else [])
        if self.study:
            search.ask_again(*self.study)

    def record(self, jobs: list[Job]) -> None:
        """Write down the launch and its jobs."""
        sweep.record(self.folder, self._given(), self._config_dir(), jobs, self.since)

    def _given(self) -> list[str]:
        """The overrides by which the launch is known, and launched again: it goes on, even if it was to begin anew."""
        return [o for o in self.overrides if not o.startswith(("hydra.sweep.dir=", "hydra.launcher.", "resume="))]

    def run(self, jobs: list[Job], configs: list[dict], n_jobs: int | None) -> list:
        """Run the jobs, each in a process of its own; how each ended. Raises Interrupted after stopping them all."""
        from aavae.sweeps.board import Board
        from aavae.sweeps.pool import Outcome, Pool

        self.record(jobs)
        _hide_secrets(self.folder / MULTIRUN)
        outcomes = {}
        self.asked |= {job.folder: (job.name, config) for job, config in zip(jobs, configs, strict=True)}
        for job, config in zip(jobs, configs, strict=True):
            if state := self.stands(job.folder, config):
                outcomes[job.number] = Outcome(state, _score(job.folder))
        with Board(jobs, {number: outcome.state for number, outcome in outcomes.items()}) as board:
            pool = Pool(self._child, self._slots(n_jobs, configs[0]["device"]), board.update)
            outcomes |= pool.run([job for job in jobs if job.number not in outcomes])
        if pool.stopped is not None:
            raise Interrupted(pool.stopped)
        return [outcomes[job.number] for job in jobs]

    def run_alone(self, overrides: list[str], number: int, folder: Path, config: dict) -> float | None:
        """Run one job where another launcher than ours has brought us; its score, None if it did not end well.

        Raises Interrupted after stopping it; what Slurm should queue again, submitit does first.
        """
        from aavae.sweeps.pool import Pool

        if self.stands(folder, config):
            return _score(folder)
        pool = Pool(self._child, [{}], lambda states: None)
        outcome = pool.run([Job(number, overrides, folder, self.name_of(overrides, folder))])[number]
        if pool.stopped is not None:
            _tell_submitit(pool.stopped)
            raise Interrupted(pool.stopped)
        return outcome.score

    def sum_up(self) -> bool:
        """Write and show what came of the sweep; whether a job failed."""
        from aavae.reports import report

        _hide_secrets(self.folder / MULTIRUN)
        return report(self.folder) != 0

    def _tell_dashboards(self) -> None:
        """Hand the table and the charts to the loggers that show such, as a run of the sweep's group."""
        from aavae.loggers import Beginning, Loggers
        from aavae.reports.means import summarize
        from aavae.reports.page import figures
        from aavae.reports.tables import as_cells

        cfg = build.compose(self.grid.jobs()[0], self.config_dir, self.command.primary)
        if not cfg.logger:
            return
        shown = {name: own for name, own in build.loggers(cfg, metrics=False).items() if hasattr(own, "report")}
        loggers, name = Loggers(shown), self.folder.name
        # One run a sweep, however often it is summed up.
        known = {"id": f"report-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"}
        begun = Beginning(
            self.folder,
            name=f"{name}, report",
            group=name,
            job_type="report",
            remembered=dict.fromkeys(shown, known),
        )
        try:
            loggers.start(begun)
        except UserError as error:  # all is on disk
            complain(f"{self.command.name}: {error}")
            return
        summary = summarize(self.folder)
        loggers.report(*as_cells(summary), figures(summary))
        loggers.close()

    def _child(self, job: Job) -> list[str]:
        where = ["--config-dir", self._config_dir()] if self.config_dir else []
        belongs = {"sweep.name": self.folder.name, "sweep.job": job.name, "hydra.run.dir": str(job.folder)}
        settings = [f"{key}={build.quoted(value)}" for key, value in belongs.items()]
        given = [o for o in job.overrides if not o.startswith("sweep.")]
        if self.since:  # a job that is stopped goes on with what it has made since
            anew = ["resume=never"] if sweep.is_outdated(job.folder, self.since) else []
            given = [o for o in given if not o.startswith("resume=")] + anew
        return [sys.executable, "-m", self.command.module, *where, *given, *settings]

    def _config_dir(self) -> str | None:
        return str(Path(self.config_dir).resolve()) if self.config_dir else None

    def _slots(self, n_jobs: int | None, device: str) -> list[dict[str, str]]:
        handed_out = self.gpus and device in ("auto", "cuda")
        n = n_jobs or (self.gpus if handed_out else 1)
        share = {}
        if n > 1 and not threads.chosen():
            share = {"OMP_NUM_THREADS": str(max(1, len(threads.cores()) // n)), threads.SHARED: "1"}
        visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
        visible = visible or [str(i) for i in range(self.gpus)]
        return [share | ({"CUDA_VISIBLE_DEVICES": visible[i % len(visible)]} if handed_out else {}) for i in range(n)]


def _hide_secrets(path: Path) -> None:
    """Write a config again without the secrets in it, where Hydra has written some."""
    if path.exists():
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if (without := secrets.hidden(config)) != config:
            files.write(path, OmegaConf.to_yaml(OmegaConf.create(without)))


def _score(folder: Path) -> float | None:
    return (status.read(folder) or {}).get("score")


def _tell_submitit(signum: int) -> None:
    # It waits for one signal only, SIGUSR2 unless told otherwise, at which it has the job queued again and exits.
    expected = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
    waits = "SUBMITIT_EXECUTOR" in os.environ and callable(signal.getsignal(expected))
    if waits and (signum == expected or slurm.returns(signum)):
        signal.raise_signal(expected)


def is_done(folder: Path, config: dict) -> bool:
    """Whether the run in `folder` was trained as far, and judged, as `config` asks for."""
    damaged = (OSError, KeyError, AttributeError, TypeError, ValueError)
    with contextlib.suppress(UserError, *damaged):  # then it is run again, and says why
        said = status.read(folder)
        judged = (folder / "results.json").exists() or not config["probe"]
        if config["resume"] == "never" or said is None or said["state"] != "done" or not judged:
            return False
        before = read_config(folder)
        known = [(c["epochs"], c["features"], c["trainer"]["max_steps"]) for c in (before, config)]
        return known[0] == known[1] and asked_for(config["probe"], before["probe"])
    return False
