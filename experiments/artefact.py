"""How every artefact is made: `python -m experiments.NAME [scale=…] [against=…] [runs=…] [override …]`."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from aavae import build
from aavae.errors import UserError
from aavae.loggers.screen import duration, shown
from aavae.reports.charts import AGAINST
from aavae.runtime import caches, exits
from aavae.runtime.words import count
from experiments.paper import SCALES, Scale
from experiments.runs import PRIMARY, Runs, Sweep
from experiments.writing import Sheet, write

PEAK = 790e12  # FLOP/s of dense bf16 products that an H100 has been seen to reach: a run cannot be faster
TRUTHS = ("true", "false")
# `runs` and `out` are folders: of the runs, and for the table and the figure.
SETTINGS = {
    "scale": "smoke", "against": "epochs", "methods": "all", "runs": "", "out": "", "train": "true", "dry_run": "false"
}  # fmt: skip


class Artefact:
    """A table or a figure: which sweeps it needs, and what it makes of their runs."""

    name: str
    title: str

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """The sweeps whose runs it shows."""
        raise NotImplementedError

    def draw(self, runs: Runs, against: str) -> Sheet:
        """Its table, figure and caption, from the runs that are done; curves are drawn `against` one of AGAINST."""
        raise NotImplementedError


class Asked(NamedTuple):
    """What was typed."""

    scale: Scale
    against: str
    methods: tuple[str, ...]
    folder: Path
    out: Path
    train: bool
    dry_run: bool
    overrides: list[str]


def parse(argv: list[str], out: str = "outputs/paper/{}") -> Asked:
    """What was typed; `out` is the folder it writes to if none is typed, `{}` in it the scale.

    Raises UserError for what is not `key=value`, and for an unknown scale, measure or method.
    """
    settings = dict(SETTINGS)
    overrides = []
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            raise UserError(f"{word} is not a setting; say scale={'|'.join(SCALES)}, or overrides of aavae-train")
        if key in SETTINGS:
            settings[key] = value
        else:
            overrides.append(word)
    for key, known in (("scale", SCALES), ("against", AGAINST), ("train", TRUTHS), ("dry_run", TRUTHS)):
        if settings[key] not in known:
            raise UserError(f"{key} must be {' or '.join(known)}, not {settings[key]}")
    scale, all_there_are = SCALES[settings["scale"]], build.options("method")
    methods = all_there_are if settings["methods"] == "all" else settings["methods"].split(",")
    if unknown := set(methods) - set(all_there_are):
        raise UserError(f"methods={min(unknown)} is not known; say all, or some of {', '.join(all_there_are)}")
    if "aavae" not in methods:
        raise UserError(f"methods={settings['methods']} must include aavae, which the others are compared with")
    folder = Path(settings["runs"] or f"multirun/paper_{scale.name}").absolute()
    there = Path(settings["out"] or out.format(scale.name))
    train, dry_run = (settings[key] == "true" for key in ("train", "dry_run"))
    return Asked(scale, settings["against"], (*methods,), folder, there, train, dry_run, overrides)


def make(artefact: Artefact, argv: list[str]) -> int:
    """Train what is not trained yet, unless train=false is typed, and write the artefact; 0, or 1 if a run failed."""
    asked = parse(argv)
    runs = Runs(asked.scale, asked.overrides, asked.folder, asked.methods)
    # What is chosen is known without counting what it computes.
    uncounted = Runs(asked.scale._replace(equal_work=False), [], runs.folder, asked.methods)
    refuse_taken(artefact.name, artefact.sweeps(uncounted), asked)
    sweeps = artefact.sweeps(runs)
    if asked.dry_run:
        return estimate(artefact.name, runs, sweeps)
    code = runs.train(sweeps) if asked.train else runs.refuse_none(sweeps)
    sheet = artefact.draw(runs, asked.against)
    command = shlex.join(["python", "-m", f"experiments.{artefact.name}", *argv])
    for path in write(asked.out, artefact.name, artefact.title, sheet, runs, command):
        print(shown(path.absolute()))
    return code


def refuse_taken(name: str, sweeps: Iterable[Sweep], asked: Asked) -> None:
    """Raise UserError for an override of what the artefact compares; those of a method's recipe may be overridden."""
    typed = {o.partition("=")[0].lstrip("+") for o in asked.overrides}
    free = {word for recipe in asked.scale.recipes.values() for word in recipe}
    chosen = {word.partition("=")[0] for s in sweeps for word in (s.key, *s.fixed) if word not in free}
    if taken := typed & chosen:
        raise UserError(f"{name} chooses {min(taken)} itself; leave it out")


def estimate(name: str, runs: Runs, sweeps: Iterable[Sweep]) -> int:
    """Say how many runs are left, what they compute, and how long that takes here and at best on an H100."""
    from aavae.sweeps.preflight import preflight

    left = [job for _, jobs in runs.left(sweeps) for job in jobs]
    print(f"runs        {len(left)} to train for {name}; {shown(runs.folder)} has the others")
    if not left:
        return 0
    plans, speed, gpus = preflight([[*job, "dry_run=true"] for job in left], None, PRIMARY)
    if faults := [plan for plan in plans if plan.error]:
        raise UserError(f"{count(len(faults), 'run')} of {len(plans)} cannot be trained: {faults[0].error}")
    flop = sum(plan.flops for plan in plans)
    print(f"compute     {flop / 1e15:.3g} PFLOP of training")
    if speed:
        here = duration(flop / speed / max(1, gpus))
        print(f"time        about {here} here, on {plans[0].device}, besides evaluation")
    print(f"            at least {duration(flop / PEAK)} on an H100, at its peak rate (estimate)")
    return 0


def main(artefact: Artefact) -> None:
    """The command of an artefact. Exit codes: 0 done, 1 a run failed, 2 bad input, 128 + n stopped by signal n."""
    caches.settle()
    name = f"experiments.{artefact.name}"

    def work() -> int:
        if {"-h", "--help"} & {*sys.argv[1:]}:
            print(
                f"python -m {name} [scale={'|'.join(SCALES)}] [against={'|'.join(AGAINST)}] [methods=all|NAME,…] "
                "[runs=FOLDER] [out=FOLDER] [train=false] [dry_run=true] [override …]"
            )
            print(f"{artefact.title}. Overrides are those of aavae-train, such as device=cuda or seed=0,1.")
            return 0
        try:
            return make(artefact, sys.argv[1:])
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on: {shlex.join(['python', '-m', name, *sys.argv[1:]])}")
            raise

    sys.exit(exits.run(name, work))
