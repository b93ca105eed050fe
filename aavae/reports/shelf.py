"""Runs in any folders: find one by its name, choose among them, put them in order."""

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

import aavae
from aavae.errors import UserError
from aavae.reports.jobs import JobReport, find_jobs, read_job
from aavae.runs import notes
from aavae.runs.config import CONFIG
from aavae.runs.status import STATUS

PLACES = ("outputs", "multirun")  # where runs go unless somebody says otherwise
LAST = "@last"
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
FILTER = re.compile(r"([A-Za-z_][\w./-]*)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
COMPARE: dict[str, Callable] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


class Run(NamedTuple):
    """A run with what a person calls it by: its `job`, and its notes and tags."""

    job: JobReport
    notes: notes.Notes

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.job.folder

    @property
    def started(self) -> datetime | None:
        """When it began; None where that is not known."""
        try:
            return datetime.fromisoformat(self.job.said["started"]).astimezone()
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def updated(self) -> datetime | None:
        """When it was last heard of."""
        try:
            return datetime.fromisoformat(self.job.said["updated"]).astimezone()
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def age(self) -> float | None:
        """Seconds since it began."""
        return None if self.started is None else (datetime.now().astimezone() - self.started).total_seconds()

    @property
    def method(self) -> str:
        """Its method, empty before it has begun."""
        return str(self.job.config.get("method", ""))

    @property
    def dataset(self) -> str:
        """The option of its dataset, or the class where it is not ours."""
        target = str(self.job.config.get("dataset._target_", ""))
        return _datasets().get(target, target.rpartition(".")[2])

    def get(self, key: str) -> object:
        """What it has under a name of `ls`, or of its config; None where it has nothing."""
        facts = {
            "state": self.job.state,
            "method": self.method,
            "dataset": self.dataset,
            "epoch": self.job.number("epoch"),
            "epochs": self.job.config.get("epochs"),
            "score": self.job.number("score"),
            "seconds": self.job.number("seconds"),
            "age": self.age,
            "name": self.folder.name,
        }
        return facts[key] if key in facts else self.job.config.get(key)


FACTS = ("state", "method", "dataset", "epoch", "epochs", "score", "seconds", "age", "name", "since", "tag")


@cache
def _datasets() -> dict[str, str]:
    folder = Path(aavae.__file__).parent / "conf/dataset"
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[(said.get("dataset") or said).get("_target_")] = path.stem
    return found


def places(folders: Sequence[Path]) -> list[Path]:
    """The folders to look in: those given, or the usual ones that are here.

    Raises UserError for a folder that does not exist.
    """
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise UserError(f"there is no folder {missing[0]}")
    return list(folders) or [Path(place) for place in PLACES if os.path.isdir(place)]


def find(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in and below folders, those that began last first, and what could not be read."""
    runs: dict[Path, Run] = {}
    problems: list[str] = []
    for folder in folders:
        jobs, own = find_jobs(folder)
        problems += own
        for job in jobs:
            runs.setdefault(Path(os.path.abspath(job.folder)), _run(job, problems))
    return sorted(runs.values(), key=lambda run: (run.started is not None, run.started), reverse=True), problems


def _run(job: JobReport, problems: list[str]) -> Run:
    try:
        return Run(job, notes.read(job.folder))
    except UserError as error:
        problems.append(str(error))
        return Run(job, notes.Notes([], []))


def called(name: str, folders: Sequence[Path] = ()) -> Run:
    """The run that a person calls `name`: its folder, the beginning of the folder's name, or `@last`.

    Raises UserError where there is none, or more than one.
    """
    folder = Path(name).expanduser()
    if (folder / STATUS).exists() or (folder / CONFIG).exists():
        problems: list[str] = []
        run = _run(read_job(folder, folder.name, None), problems)
        if problems:
            raise UserError(problems[0])
        return run
    beside = folder.parent
    if beside != Path() and beside.is_dir():  # the beginning of a folder's name, with the way to it
        folders, name = [beside], folder.name
    where = places(folders)
    runs, _ = find(where)
    looked = " or ".join(str(place) for place in where or PLACES)
    if not runs:
        raise UserError(f"there is no run in {looked}; name the run's folder")
    if name == LAST:
        return max(runs, key=lambda run: (run.updated is not None, run.updated))
    found = [run for run in runs if run.folder.name.startswith(name) or run.folder.as_posix().endswith(f"/{name}")]
    if len(found) > 1:
        listed = ", ".join(str(run.folder) for run in found[:4]) + (" …" if len(found) > 4 else "")
        raise UserError(f"{name} may be any of {len(found)} runs: {listed}")
    if not found:
        raise UserError(f"no run in {looked} begins with {name!r}; aavae-runs ls shows what there is")
    return found[0]


# ---- Choosing -----------------------------------------------------------------------------------------------------


def is_filter(word: str) -> bool:
    """Whether a word is `key=value`, `key<value` or the like, and no folder."""
    return bool(FILTER.fullmatch(word)) and not os.path.isdir(word)


def chosen(runs: Iterable[Run], filters: Sequence[str]) -> list[Run]:
    """The runs that pass all filters.

    Raises UserError for a value that cannot be compared, and for a key that none of the runs has.
    """
    every = runs = list(runs)
    for word in filters:
        match = FILTER.fullmatch(word)
        assert match  # `is_filter` has seen it
        key, sign, value = match.groups()
        if key not in FACTS and every and not any(key in run.job.config for run in every):
            raise UserError(_unknown(key, every))
        passes = _filter(key, sign, value)
        runs = [run for run in runs if passes(run)]
    return runs


def _unknown(key: str, runs: Sequence[Run]) -> str:
    import difflib

    known = [*FACTS, *dict.fromkeys(name for run in runs for name in run.job.config)]
    ends = [name for name in known if name.endswith(f".{key}")]
    near = ends[:3] or difflib.get_close_matches(key, known, 1)
    return f"none of these runs has {key!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _filter(key: str, sign: str, value: str) -> Callable[[Run], bool]:
    if key == "since":
        return _since(sign, value)
    if key == "tag":
        if sign not in ("=", "!="):
            raise UserError(f"tags are compared by = and !=, not {sign}")
        return lambda run: (value in run.notes.tags) == (sign == "=")
    if key == "age":
        limit: float | None = seconds_of(value)
    else:
        limit = _number(value)
    if sign in COMPARE:
        if limit is None:
            raise UserError(f"{key}{sign}{value} compares with a number, which {value!r} is not")

        def compared(run: Run) -> bool:
            own = _number(run.get(key))
            return own is not None and COMPARE[sign](own, limit)

        return compared

    def equal(run: Run) -> bool:
        own = run.get(key)
        number = _number(own)
        if number is not None and limit is not None:
            return number == limit
        return fnmatch.fnmatchcase(_text(own).lower(), value.lower())

    return equal if sign == "=" else lambda run: not equal(run)


def _since(sign: str, value: str) -> Callable[[Run], bool]:
    if sign != "=":
        raise UserError("since is said with =, as since=7d or since=2026-11-25")
    try:
        begin = datetime.fromisoformat(value).astimezone()
    except ValueError:
        begin = datetime.now().astimezone() - timedelta(seconds=seconds_of(value))
    return lambda run: run.started is not None and run.started >= begin


def seconds_of(text: str) -> float:
    """The seconds of `90m`, `12h`, `7d` or `2w`. Raises UserError for anything else."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)):
        raise UserError(f"{text!r} is no time; say 90m, 12h, 7d or 2w, or for since= a date such as 2026-11-25")
    return timedelta(**{UNITS[match[2]]: float(match[1])}).total_seconds()


def _number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(str(value))
    except ValueError:
        return None


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


# ---- Order --------------------------------------------------------------------------------------------------------

BEST_FIRST = ("score", "epoch", "seconds")


def in_order(runs: Sequence[Run], key: str) -> list[Run]:
    """The runs by `key`: scores, epochs and seconds from the largest, others from the smallest; `-key` the other way.
    Those that have none come last.

    Raises UserError for a key that none of the runs has.
    """
    backwards = key.startswith("-")
    key = key.removeprefix("-")
    if key not in FACTS[:-2] and runs and not any(key in run.job.config for run in runs):
        raise UserError(_unknown(key, runs))

    def place(run: Run) -> tuple:
        value = run.get(key)
        number = _number(value)
        return (0, number, "") if number is not None else (1, 0.0, _text(value))

    have = [run for run in runs if run.get(key) is not None]
    have.sort(key=place, reverse=(key in BEST_FIRST) != backwards)
    return [*have, *(run for run in runs if run.get(key) is None)]
