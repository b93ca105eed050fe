"""The jobs of a sweep, or the runs below any folder: what each was asked, how it stands, what it has found."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from aavae.errors import UserError
from aavae.runs import status
from aavae.runs import sweep as sweeps
from aavae.runs.config import CONFIG, read_config
from aavae.runs.identity import identity_config
from aavae.runs.results import RESULTS, read_results
from aavae.runs.start import start_of
from aavae.runtime import files

MODULE = "aavae.train"  # python -m
WORD = re.compile(r"(?:[^\s']|'[^']*')+")


class JobReport(NamedTuple):
    """A run in its `folder`: pending, running, done, failed, interrupted, dead, or damaged.

    `config` are the settings that decide its weights, and `epochs`, by dotted key; empty before it has begun.
    `overrides` are what was typed for it, None where that is not known. `said` is its status, `results` its records.
    """

    folder: Path
    name: str
    state: str
    reason: str | None
    overrides: dict[str, object] | None
    config: dict[str, object]
    said: dict
    results: list[dict]

    @property
    def seed(self) -> object:
        """The seed of the run, None where it is not known."""
        return self.config.get("seed", (self.overrides or {}).get("seed"))

    @property
    def start(self) -> str | None:
        """What its encoder started from, None for random weights."""
        return start_of(self.config)

    @property
    def line(self) -> str:
        """Why it stands so, in one line."""
        if self.state == "dead" and not self.reason:
            return f"nothing was heard of it since {self.said.get('updated')}"
        return one_line(self.reason or "it gave no reason")

    @property
    def warnings(self) -> list[str]:
        """What is wrong with its training at the last look (docs/logging.md), a sentence each."""
        said = self.said.get("warnings")
        return [one_line(str(text)).removeprefix("warning: ") for text in said] if isinstance(said, list) else []

    @property
    def hours(self) -> float | None:
        """Device-hours it has taken, evaluation included."""
        seconds = self.number("seconds")
        return None if seconds is None else seconds * (self.number("devices") or 1) / 3600

    def number(self, key: str) -> float | None:
        """A number that the status has under `key`."""
        value = self.said.get(key)
        return float(value) if isinstance(value, int | float) else None


def one_line(text: str) -> str:
    """The text without line breaks, and without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def read_sweep(folder: Path) -> dict | None:
    """The sweep.json of a folder, None if there is none. Raises UserError if it is damaged."""
    if not os.path.exists(folder / sweeps.SWEEP):
        return None
    sweep = sweeps.read(folder)
    try:
        texts = [text for entry in (*sweep["launches"], *sweep["jobs"]) for text in entry["overrides"]]
        texts += [job[key] for job in sweep["jobs"] for key in ("folder", "name")]
        if strange := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"{strange[0]!r} is no text")
        return sweep
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / sweeps.SWEEP} is damaged ({error})") from error


def logged(folder: Path) -> list[dict[str, float]]:
    """The numbers in each line of a run's metrics.jsonl that can be read."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has not begun, or may not be read
        return []
    lines = []
    for line in text.splitlines():
        try:
            entry = files.parsed(line)
        except ValueError:  # being written
            continue
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int | float):
            lines.append({k: v for k, v in entry.items() if isinstance(v, int | float)})
    return lines


def find_jobs(folder: Path) -> tuple[list[JobReport], list[str]]:
    """The jobs of the sweeps in and below `folder` and all other runs there, and what could not be read."""
    jobs: dict[Path, JobReport] = {}
    problems: list[str] = []
    for place, run in _places(folder, problems):
        if run:
            if place not in jobs:
                name = place.relative_to(folder).as_posix() if place != folder else folder.resolve().name
                jobs[place] = read_job(place, name, None)
            continue
        try:
            sweep = read_sweep(place)
        except UserError as error:
            problems.append(str(error))
            sweep = None
        for entry in sweep["jobs"] if sweep else []:
            own = place / entry["folder"]
            jobs[own] = read_job(own, entry["name"], entry["overrides"])
    return list(jobs.values()), problems


def _places(folder: Path, problems: list[str]) -> Iterator[tuple[Path, bool]]:
    """The folders in and below `folder` that are not hidden, and whether each is a run; no further below runs."""

    def refused(error: OSError) -> None:
        problems.append(f"cannot look into {error.filename} ({error.strerror})")

    for root, folders, names in os.walk(folder, onerror=refused):
        # Anything may be called config.yaml.
        run = status.STATUS in names or (CONFIG in names and {RESULTS, "metrics.jsonl"} & set(names))
        folders[:] = [] if run else sorted(name for name in folders if not name.startswith("."))
        yield Path(root), bool(run)


def read_job(folder: Path, name: str, overrides: list[str] | None) -> JobReport:
    """The run in `folder`, called `name`, as it stands; `overrides` were typed for it, if that is known."""
    said, config, results, problem = {}, {}, [], None
    try:
        said = status.read(folder) or {}
        state = status.state_of(said) if said else "pending"
        if said:
            config = deciding(read_config(folder))
            results = read_results(folder)
        elif (folder / CONFIG).exists():
            problem = f"it has no {status.STATUS}"
    except UserError as error:
        problem = str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"what it says of itself is damaged ({type(error).__name__}: {one_line(str(error))})"
    if problem:
        state = "damaged"
    asked = _parsed(overrides) if overrides is not None else _typed(said)
    return JobReport(folder, name, state, problem or _text(said.get("reason")), asked, config, said, results)


def _text(reason: object) -> str | None:
    return None if reason is None else str(reason)


def deciding(config: dict) -> dict[str, object]:
    """The settings of a plain config that decide its run's weights, and `epochs`, by dotted key."""
    return identity_config(config) | {"epochs": config.get("epochs")} if config else {}


def _typed(said: dict) -> dict[str, object] | None:
    """What the run's command asked for; None if that is a grid, of which it is one job."""
    try:
        command = said["command"]
        # shlex takes a millisecond, which hundreds of runs would feel.
        quoted = WORD.findall(command) if "'" in command else command.split()
        simple = not set(command) & {'"', "\\"} and command.count("'") % 2 == 0
        words = [word.replace("'", "") for word in quoted] if simple else shlex.split(command)
    except (KeyError, ValueError, AttributeError, TypeError):  # the last two: no text
        return None
    words = words[words.index(MODULE) + 1 :] if MODULE in words else words[1:]
    if {"-m", "--multirun"} & set(words):
        return None
    return _parsed([word for word in words if not word.startswith("-")])


def _parsed(overrides: list[str]) -> dict[str, object]:
    parts = (override.lstrip("+").partition("=") for override in overrides if "=" in override)
    return {key: _value(text) for key, _, text in parts}


def _value(text: str) -> object:
    words = text.lower()  # Hydra takes True for true
    try:
        return files.parsed(words if words in ("true", "false", "null") else text)
    except ValueError:
        return text
