"""Expand the overrides of a sweep into the overrides of its jobs."""

import itertools
from collections import Counter

from hydra.core.override_parser.types import Glob, Override, RangeSweep

from aavae import build
from aavae.errors import UserError

MOST = 10**6  # values of one key
HOW = ("hydra.", "hydra/", "dry_run=", "resume=", "sweep.")  # overrides that say how to sweep, not what


# ---- Which jobs ---------------------------------------------------------------------------------------------------


class Grid:
    """The jobs that overrides with several values stand for, those of a preset's `hydra.sweeper.params` included.

    It is `complete` unless there are values that only another sweeper knows (ranges, an optimiser's choices). Raises
    UserError for a glob over anything but a group, and for values that the sweeper chosen does not know.
    """

    def __init__(self, overrides: list[str], config_dir: str | None, primary: str):
        typed = build.parse(overrides)
        _refuse_what_no_job_takes(typed)
        once = [str(o.input_line) for o in typed if not o.is_sweep_override()]
        try:
            sweeper = build.hydra_node(once, config_dir, primary).sweeper
        except UserError:
            build.compose(once, config_dir, primary)  # says it better, where it can
            raise
        preset = [f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()]
        self.complete = str(sweeper.get("_target_")).endswith(".BasicSweeper")
        self.values: dict[str, list[str]] = {}  # of one key; the command line's word replaces the preset's
        self.swept: set[str] = set()  # without + and ++
        for override in [*build.parse(preset), *typed]:
            key = override.get_key_element()
            self.swept |= {key.lstrip("+")} if override.is_sweep_override() else set()
            if override.is_sweep_override() and not override.is_discrete_sweep():
                if self.complete and str(sweeper.get("_target_")).endswith(".BasicSweeper"):
                    raise UserError(f"{override.input_line} leaves values open; list them, or choose a hydra/sweeper=")
                self.complete = False
            else:
                self.values[key] = _values(override)

    def __len__(self) -> int:
        size = 1
        for values in self.values.values():
            size *= len(values)
        return size

    def jobs(self) -> list[list[str]]:
        """The overrides of every job, in Hydra's order."""
        return [list(choice) for choice in itertools.product(*self.values.values())]

    def name(self, job: list[str]) -> str:
        """What tells a job from the others."""
        own = (override.removeprefix("++") for override in job)
        return " ".join(o for o in own if o.split("=")[0].lstrip("+") in self.swept) or "single"


def _refuse_what_no_job_takes(typed: list[Override]) -> None:
    for override in typed:
        key, line = override.key_or_group, override.input_line
        if key == "hydra.run.dir":
            raise UserError(f"{line} is for one run; -m takes hydra.sweep.dir=, a folder for all of its jobs")
        if key == "sweep" and override.is_sweep_override():
            raise UserError(f"{line} names several presets; launch a sweep for each")
        if str(line).lstrip("+~").startswith(HOW) and override.is_sweep_override():
            raise UserError(f"{key} says how to sweep, and takes one value, not {line}")


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, Glob):
        if override.key_or_group not in build.groups():
            raise UserError(f"glob is for groups, not for {override.key_or_group}; list its values, a,b,c")
        return [f"{key}={name}" for name in value.filter(build.options(override.key_or_group))]
    if isinstance(value, RangeSweep) and not _ends(value):
        raise UserError(f"{override.input_line} is no list of values that ends, or one of more than {MOST:,}")
    if override.is_sweep_override():
        values = [f"{key}={value}" for value in override.sweep_string_iterator()]
        if twice := [value for value, times in Counter(values).items() if times > 1]:
            raise UserError(f"{override.input_line} names {twice[0]} twice; name each value once")
        return values
    return [str(override.input_line)]


def _ends(swept: RangeSweep) -> bool:
    """Whether its values come to an end soon; seen before they are made."""
    start, stop, step = swept.start, swept.stop, swept.step
    return start is not None and stop is not None and bool(step) and (stop - start) / step <= MOST


def swept_by(overrides: list[str]) -> list[str]:
    """What a sweep is known by: its fixed overrides, and the keys it sweeps, whichever their values."""
    parsed = build.parse([o for o in overrides if not o.startswith(HOW)])
    return sorted(o.get_key_element() if o.is_sweep_override() else str(o.input_line) for o in parsed)
