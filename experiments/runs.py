"""The runs an artefact is made of: trained through sweeps in one folder a scale, and read back from it."""

import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from aavae import build
from aavae.errors import Interrupted, UserError
from aavae.loggers.screen import shown
from aavae.reports.charts import progress
from aavae.reports.jobs import JobReport, deciding, find_jobs, logged, read_job
from aavae.reports.means import Spread, accuracies, spread_of
from aavae.runs.identity import IMPLIED, identity
from aavae.runs.start import marked
from aavae.sweeps.sweep import is_done
from experiments.paper import Scale

PRIMARY = "config"


class Sweep(NamedTuple):
    """Settings that are trained over all seeds: the `values` of one `key`, each with the `fixed` overrides."""

    dataset: str
    key: str
    values: tuple[str, ...]
    fixed: tuple[str, ...] = ()


class Group(NamedTuple):
    """The runs of one setting, one a seed, as far as they are there."""

    jobs: list[JobReport]

    @property
    def done(self) -> list[JobReport]:
        """Those that are done."""
        return [job for job in self.jobs if job.state == "done"]

    def called(self, name: str) -> str:
        """Its name in a table, marked where runs are missing or did not start from random weights."""
        done = len(self.done)
        part = f" ({done} of {len(self.jobs)} seeds)" if 0 < done < len(self.jobs) else ""
        return marked(name, any(job.start for job in self.jobs)) + part

    def accuracy(self, probe: str, feature: str = "h") -> Spread | None:
        """Test accuracy, a fraction, over seeds."""
        return accuracies(self.jobs, feature).get(probe)

    def by_seed(self, probe: str, feature: str = "h") -> dict[object, float]:
        """Test accuracy in % by seed."""
        found = {job.seed: accuracies([job], feature).get(probe) for job in self.done}
        return {seed: 100 * spread.mean for seed, spread in found.items() if spread}

    def number(self, key: str) -> Spread | None:
        """Something that runs say of themselves, over seeds: score, flop, seconds."""
        return spread_of(self.done, lambda job: job.number(key))

    def hours(self) -> Spread | None:
        """Device-hours over seeds."""
        return spread_of(self.done, lambda job: job.hours)

    def training_hours(self) -> Spread | None:
        """Device-hours over seeds that the steps took by the speed logged with them, without looks and evaluations."""
        return spread_of(self.done, _training_hours)

    def curves(self, name: str, against: str = "epochs") -> list[list[tuple[float, float]]]:
        """For each run, the values of a metric by how far it was."""
        return _aligned([(job, _curve(job, name)) for job in self.done], against)

    def measured(self, probe: str, against: str = "epochs") -> list[list[tuple[float, float]]]:
        """For each run, test accuracy of h in % by how far it was: on the way, and at the end."""
        curves = []
        for job in self.done:
            points = _curve(job, f"probe/{probe}/h/test/accuracy")
            for r in job.results:
                if (r["probe"], r["feature"], r["split"], r["metric"]) == (probe, "h", "test", "accuracy"):
                    points[float(r["epoch"])] = r["value"]
            curves.append((job, {epoch: 100 * y for epoch, y in points.items()}))
        return _aligned(curves, against)

    def last(self, name: str) -> Spread | None:
        """The last value of a metric over seeds."""
        return spread_of(self.done, lambda job: self.last_of(job, name))

    def last_of(self, job: JobReport, name: str) -> float | None:
        """The last value of a metric that a run has logged."""
        curve = _curve(job, name)
        return curve[max(curve)] if curve else None

    def record(self, probe: str, feature: str, metric: str) -> Spread | None:
        """A record of a probe over seeds."""

        def value(job: JobReport) -> float | None:
            own = (
                r["value"] for r in job.results if (r["probe"], r["feature"], r["metric"]) == (probe, feature, metric)
            )
            return next(own, None)

        return spread_of(self.done, value)


def _training_hours(job: JobReport) -> float | None:
    seconds, before = 0.0, 0.0
    for line in logged(job.folder):
        if speed := line.get("images_per_second"):
            seconds += (line["step"] - before) * float(str(job.config["batch_size"])) / speed
            before = line["step"]
    return seconds * (job.number("devices") or 1) / 3600 if seconds else None


def _curve(job: JobReport, name: str) -> dict[float, float]:
    """What a run has logged under a name, by epoch."""
    return {line["epoch"]: line[name] for line in logged(job.folder) if name in line}


def _aligned(curves: list[tuple[JobReport, dict[float, float]]], against: str) -> list[list[tuple[float, float]]]:
    """The curves at the epochs that all of them have, so that points with one index can be averaged."""
    curves = [(job, curve) for job, curve in curves if curve]
    common = sorted(set.intersection(*(set(curve) for _, curve in curves))) if curves else []
    found = (
        [(x, curve[epoch]) for epoch in common if (x := progress(against, job, epoch)) is not None]
        for job, curve in curves
    )
    return [curve for curve in found if curve]


def _differences(config: dict[str, object], asked: dict[str, object]) -> list[str]:
    """The settings of `config` that are not those of `asked`, as overrides; not the seed."""
    keys = sorted((config.keys() | asked.keys()) - {"seed"})
    return [
        f"{key}={IMPLIED.get(key) if key not in config else config[key]}"
        for key in keys
        if config.get(key) != asked.get(key)
    ]


class Runs:
    """The runs of a scale, with overrides of the user's, in a folder that all artefacts share.

    `methods` are those that Table 1 compares; None: all that there are.
    """

    def __init__(self, scale: Scale, overrides: Sequence[str], folder: Path, methods: Sequence[str] | None = None):
        self.scale, self.folder = scale, folder
        self.methods = build.options("method") if methods is None else [*methods]
        self.seeds = [o for o in overrides if o.startswith("seed=")]
        self.how = [o for o in overrides if o.startswith("hydra")]
        self.overrides = [o for o in overrides if o not in (*self.seeds, *self.how)]

    def words(self, dataset: str, fixed: Iterable[str]) -> list[str]:
        """The overrides of a setting; of those with one key the last one counts: the user's.

        Where methods are compared at equal work, the user's `epochs` are AAVAE's, from which others follow.
        """
        chosen: dict[str, str] = {}
        epochs = [o for o in self.overrides if self.scale.equal_work and o.lstrip("+").startswith("epochs=")]
        others = [o for o in self.overrides if o not in epochs]
        for word in (*self.scale.datasets[dataset], *self.scale.common, *epochs, *fixed, *others):
            key = word.partition("=")[0].lstrip("+")
            chosen.pop(key, None)
            chosen[key] = word
        return list(chosen.values())

    def seed_values(self) -> list[int]:
        """The seeds."""
        text = self.seeds[-1].partition("=")[2] if self.seeds else ",".join(map(str, self.scale.seeds))
        try:
            return [int(part) for part in text.split(",")]
        except ValueError as error:
            raise UserError(f"seed={text} must be whole numbers with commas between them") from error

    def of(self, dataset: str, *fixed: str) -> Group:
        """The runs of one setting; one that is done with other epochs or probes than asked for counts as pending."""
        config, jobs = self._config(dataset, fixed), []
        for seed in self.seed_values():
            own = config | {"seed": seed}
            folder = self.folder / identity(own)
            job = read_job(folder, f"seed={seed}", [f"seed={seed}"])
            other = job.state == "done" and not is_done(folder, own)
            jobs.append(job._replace(state="pending", results=[]) if other else job)
        return Group(jobs)

    def left(self, sweeps: Iterable[Sweep]) -> list[tuple[Sweep, list[list[str]]]]:
        """The sweeps of which something is not done, with the overrides of all jobs that are left."""
        found, seen = [], set()
        for sweep in sweeps:
            jobs = []
            for value in sweep.values:
                fixed = (*sweep.fixed, f"{sweep.key}={value}")
                config = self._config(sweep.dataset, fixed)
                for seed in self.seed_values():
                    own = config | {"seed": seed}
                    folder = self.folder / identity(own)
                    if folder not in seen and not is_done(folder, own):
                        jobs.append([*self.words(sweep.dataset, fixed), f"seed={seed}"])
                    seen.add(folder)
            if jobs:
                found.append((sweep, jobs))
        return found

    def train(self, sweeps: Iterable[Sweep]) -> int:
        """Launch, or go on with, what is not done; the largest exit code. Raises Interrupted after a signal."""
        code = 0
        for sweep, _ in self.left(sweeps):
            words = self.words(sweep.dataset, sweep.fixed)
            words += [f"{sweep.key}={','.join(sweep.values)}", f"seed={','.join(map(str, self.seed_values()))}"]
            code = max(code, _launch([*words, *self.how, f"hydra.sweep.dir={build.quoted(str(self.folder))}"]))
            if code == 2:
                raise UserError("nothing is written, since the sweep above cannot be trained")
        return code

    def refuse_none(self, sweeps: Iterable[Sweep]) -> int:
        """0 if a run of the sweeps is done; else raises UserError, which says what differs in the most similar run."""
        settings = [(s.dataset, (*s.fixed, f"{s.key}={value}")) for s in sweeps for value in s.values]
        if any(self.of(dataset, *fixed).done for dataset, fixed in settings):
            return 0
        there = [job.config for job in find_jobs(self.folder)[0] if job.state == "done"]
        if not there:
            raise UserError(f"{shown(self.folder)} has no finished run; name another folder with runs=")
        asked = [deciding(self._config(*own)) for own in settings]
        differs = min((_differences(config, own) for config in there for own in asked), key=len)
        words = " ".join(differs[:4]) or "another seed, or was judged by other probes"
        raise UserError(
            f"{shown(self.folder)} has no finished run with these settings; the most similar one has {words}"
        )

    def _config(self, dataset: str, fixed: Iterable[str]) -> dict:
        return build.plain(build.compose(self.words(dataset, fixed), None, PRIMARY))


def _launch(words: list[str]) -> int:
    command = [sys.executable, "-m", "aavae.train", "-m", *words]
    with subprocess.Popen(command) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt as error:
                # A terminal has asked the sweep too, to which this copy is nothing new; `kill` has not. It saves.
                process.send_signal(getattr(error, "signum", signal.SIGINT))
    if code > 128 or code < 0:
        raise Interrupted(code - 128 if code > 0 else -code)
    return code
