"""What tells the jobs of a sweep apart: what was typed for them, and whatever else differs in their configs."""

import json
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from aavae.reports.jobs import JobReport, one_line
from aavae.runs.identity import NOT_IDENTITY

ABSENT = "–"
LOOKS_ONLY = ("hydra", *(name for name in NOT_IDENTITY if name != "epochs"))
SCALARS = (str, int, float, type(None))
METHOD, DIAL, CLASS, SETTING = range(4)  # keys, by how much they say


class Column(NamedTuple):
    """A setting that varies: its dotted key, its short name, its value for each job, and what changes with it."""

    key: str
    name: str
    values: list[object]
    along: tuple[str, ...] = ()


def columns_of(jobs: list[JobReport]) -> list[Column]:
    """What tells jobs apart, but for the seed: what was typed, and whatever else differs and does not follow from it.

    Without typed words, settings that always change together are one column, named by the one that says most, and what
    follows from the method or from the classes of encoder, loss, … is none.
    """
    found = _typed(jobs)
    begun = [i for i, job in enumerate(jobs) if job.config]
    typed = [[same(c.values[i]) for i in begun] for c in found]
    choices = list(typed)
    shown: dict[str, list[str]] = {}
    for column in sorted(varying(jobs), key=lambda c: _telling(c.key)):
        key, values = column.key, [same(column.values[i]) for i in begun]
        twin = next((k for k, other in shown.items() if decides([other], values) and decides([values], other)), None)
        if key == "seed" or decides(typed, values):
            continue
        if twin:
            found = [c._replace(along=(*c.along, key)) if c.key == twin else c for c in found]
        elif _telling(key) != SETTING or not decides(choices, values):
            found.append(column)
            shown[key] = values
            if _telling(key) in (METHOD, CLASS):
                choices.append(values)
    if not found:
        return [Column("method", "method", [job.config.get("method", ABSENT) for job in jobs])]
    names = Counter(_short(c.key) for c in found)
    return [c._replace(name=_short(c.key) if names[_short(c.key)] == 1 else c.key) for c in found]


def varying(jobs: list[JobReport]) -> list[Column]:
    """Every setting in which the configs of jobs that have begun differ."""
    begun = [job.config for job in jobs if job.config]
    keys = dict.fromkeys(key for config in begun for key in config)
    differ = [key for key in keys if len({same(config.get(key, ABSENT)) for config in begun}) > 1]
    return [Column(key, key, [job.config.get(key, ABSENT) for job in jobs]) for key in differ]


def same(value: object) -> str:
    """A text that equal values share: 1 and 1.0 are one learning rate."""
    return _same_scalar(value) if isinstance(value, SCALARS) else json.dumps(value, sort_keys=True, default=str)


@lru_cache(maxsize=1 << 16, typed=True)  # hundreds of runs have the same few values
def _same_scalar(value: object) -> str:
    return json.dumps(float(value) if type(value) is int else value)


def text(value: object) -> str:
    """A setting as one would type it."""
    return one_line(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))


def decides(by: list[list[str]], values: list[str]) -> bool:
    """Whether jobs that agree on all of `by` agree on `values`; not without any."""
    seen: dict[tuple, str] = {}
    return bool(by) and all(seen.setdefault(k, v) == v for k, v in zip(zip(*by, strict=True), values, strict=True))


def _typed(jobs: list[JobReport]) -> list[Column]:
    if any(job.overrides is None for job in jobs if job.config):
        return []
    asked = [job.overrides or {} for job in jobs]
    columns = []
    for key in dict.fromkeys(key for overrides in asked for key in overrides):
        if key != "seed" and not any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in LOOKS_ONLY):
            is_group = not any(key in job.config for job in jobs)
            unasked = "default" if is_group else _default(jobs, key)
            values = [_asked(job, key, is_group, unasked) for job in jobs]
            if len({same(v) for v in values}) > 1:
                columns.append(Column(key, key, values))
    return columns


def _asked(job: JobReport, key: str, is_group: bool, unasked: object) -> object:
    """The value that `key` has for the job: of a group its choice; otherwise from its config, if it has begun."""
    if job.config and not is_group:
        return job.config.get(key, ABSENT)
    return ABSENT if job.overrides is None else job.overrides.get(key, unasked)


def _default(jobs: list[JobReport], key: str) -> object:
    """What `key` is where nothing was asked, as far as the jobs that have begun tell."""
    begun = [job.config for job in jobs if job.config and key not in (job.overrides or {})]
    found = {same(config.get(key, ABSENT)): config.get(key, ABSENT) for config in begun}
    return next(iter(found.values())) if len(found) == 1 else ABSENT


def _telling(key: str) -> int:
    """How much a key says."""
    if "." not in key:
        return METHOD if key == "method" else DIAL
    return CLASS if key.endswith(("._target_", ".name")) else SETTING


def _short(key: str) -> str:
    return key.removesuffix("._target_").removesuffix(".name").rpartition(".")[2]
