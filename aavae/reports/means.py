"""What a sweep has found so far: what varies among its jobs, and means and spreads over seeds."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aavae.loggers.screen import FEATURES, PROBES, in_order
from aavae.reports.columns import ABSENT, Column, columns_of, decides, same
from aavae.reports.jobs import JobReport, find_jobs
from aavae.runs.results import measured_by
from aavae.runs.start import KEYS as START

STATES = ("done", "running", "pending", "interrupted", "failed", "dead", "damaged")
# What a representation depends on, besides the seed: runs that agree on it share a row.
BASELINES = {"pixels": ("dataset.",), "h_untrained": ("dataset.", "encoder.")}


class Spread(NamedTuple):
    """Mean and standard deviation (ddof 1; None for one seed) over `n` seeds.

    `mixed`: they were not all measured by one protocol.
    """

    mean: float
    sd: float | None
    n: int
    mixed: bool = False


class Row(NamedTuple):
    """Jobs that differ in the seed only, and one of their representations.

    `values` has an entry per column; accuracies are fractions, `seconds` and `flop` (of training) means over jobs that
    are done.
    """

    values: tuple[object, ...]
    feature: str
    jobs: list[JobReport]
    accuracies: dict[str, Spread]
    score: Spread | None = None
    seconds: float | None = None
    flop: float | None = None

    @property
    def seeds(self) -> int:
        """How many seeds are done."""
        return len({same(job.seed) for job in self.jobs if job.state == "done"})

    @property
    def start(self) -> str | None:
        """What its encoders started from, None for random weights and for what owes nothing to training."""
        return None if self.feature in BASELINES else next((job.start for job in self.jobs if job.start), None)

    @property
    def states(self) -> str:
        """`done`, or how many jobs are in which state."""
        return counted(self.jobs, brief=True)


class Summary(NamedTuple):
    """The `jobs` of a folder, the `columns` that tell them apart, and a row for what shares them; baselines last.

    `problems` are sentences on what could not be read.
    """

    folder: Path
    jobs: list[JobReport]
    columns: list[Column]
    rows: list[Row]
    problems: list[str]

    @property
    def probes(self) -> list[str]:
        """The probes that have measured a test accuracy."""
        return in_order((probe for row in self.rows for probe in row.accuracies), PROBES)

    def of(self, *states: str) -> list[JobReport]:
        """The jobs in these states."""
        return [job for job in self.jobs if job.state in states]

    @property
    def code(self) -> int:
        """The exit code: 0, 1 if a job failed or is dead, 2 if something is damaged."""
        if self.problems or self.of("damaged"):
            return 2
        return 1 if self.of("failed", "dead") else 0


def summarize(folder: Path) -> Summary:
    """Everything the jobs in `folder` have found: a sweep, many runs, or a single one; also while they run.

    Only jobs that are done enter means.
    """
    jobs, problems = find_jobs(folder)
    columns = columns_of(jobs)
    return Summary(folder, jobs, columns, _rows(jobs, columns) + _baselines(jobs, columns), problems)


def counted(jobs: list[JobReport], brief: bool = False) -> str:
    """How many jobs are in which state."""
    found = Counter(job.state for job in jobs)
    if brief and set(found) == {"done"}:
        return "done"
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


# ---- Means ------------------------------------------------------------------------------------------------------


def _rows(jobs: list[JobReport], columns: list[Column]) -> list[Row]:
    """A row for jobs that differ in the seed only, and one for each further representation of theirs."""
    together: dict[tuple, list[int]] = {}
    for i in range(len(jobs)):
        together.setdefault(tuple(same(c.values[i]) for c in columns), []).append(i)
    rows = []
    for group in sorted(together.values(), key=lambda g: [_ordered(c.values[g[0]]) for c in columns]):
        values, own = tuple(c.values[group[0]] for c in columns), [jobs[i] for i in group]
        done = [job for job in own if job.state == "done"]
        score = spread_of(done, lambda job: job.number("score"))
        rows.append(Row(values, "h", own, accuracies(own, "h"), score, _mean(done, "seconds"), _mean(done, "flop")))
        others = (r["feature"] for job in done for r in job.results if r["feature"] not in ("h", *BASELINES))
        for feature in in_order(others, FEATURES):
            if found := accuracies(own, feature):
                rows.append(Row(values, feature, own, found))
    return rows


def _mean(jobs: list[JobReport], key: str) -> float | None:
    found = [v for job in jobs if (v := job.number(key)) is not None]
    return sum(found) / len(found) if found else None


def _baselines(jobs: list[JobReport], columns: list[Column]) -> list[Row]:
    """What owes nothing to training, over all jobs that must agree on it."""
    rows = []
    for feature, prefixes in BASELINES.items():
        begun = [i for i, job in enumerate(jobs) if job.config]
        kinds = {i: same([item for item in jobs[i].config.items() if _matters(item[0], prefixes)]) for i in begun}
        labels = [kinds[i] for i in begun]
        several = len(set(labels)) > 1
        own = [several and decides([labels], [same(c.values[i]) for i in begun]) for c in columns]
        for kind in dict.fromkeys(labels):
            group = [i for i in begun if kinds[i] == kind]
            if found := accuracies([jobs[i] for i in group], feature):
                values = tuple(c.values[group[0]] if shown else "" for c, shown in zip(columns, own, strict=True))
                rows.append(Row(values, feature, [jobs[i] for i in group], found))
    return rows


def _matters(key: str, prefixes: tuple[str, ...]) -> bool:
    return key.startswith(prefixes) and key not in START  # an encoder that nobody has trained is at random weights


def _ordered(value: object) -> tuple:
    number = float(value) if isinstance(value, int | float) else None
    return (value == ABSENT, number is None, number or 0.0, str(value))


def accuracies(jobs: list[JobReport], feature: str) -> dict[str, Spread]:
    """Test accuracies of a representation by probe, over the jobs that are done."""
    found: dict[str, dict[Path, dict]] = {}
    for job in jobs:
        for r in tested(job):
            if r["feature"] == feature:
                found.setdefault(r["probe"], {})[job.folder] = r
    return {probe: _accuracy(jobs, records) for probe, records in found.items()}


def tested(job: JobReport) -> list[dict]:
    """The test accuracies of a job, none unless it is done."""
    results = job.results if job.state == "done" else []
    return [r for r in results if (r["split"], r["metric"]) == ("test", "accuracy")]


def _accuracy(jobs: list[JobReport], records: dict[Path, dict]) -> Spread:
    # What a probe chose by itself, and its seed, may differ.
    protocols = {measured_by(r) for r in records.values()}
    spread = spread_of([job for job in jobs if job.folder in records], lambda job: records[job.folder]["value"])
    assert spread is not None  # each record is of a job
    return spread._replace(mixed=len(protocols) > 1)


def spread_of(jobs: list[JobReport], value: Callable[[JobReport], float | None]) -> Spread | None:
    """Over seeds; jobs of one seed, as those of a baseline, count as their mean."""
    by_seed: dict[str, list[float]] = {}
    for job in jobs:
        if (v := value(job)) is not None:
            by_seed.setdefault(same(job.seed), []).append(v)
    if not by_seed:
        return None
    with np.errstate(invalid="ignore"):  # what has diverged has no spread
        means = [np.mean(v) for v in by_seed.values()]
        sd = float(np.std(means, ddof=1)) if len(means) > 1 else None
        return Spread(float(np.mean(means)), sd, len(means))
