"""What all artefacts cost at a scale, from counted FLOP: `python -m experiments.costs [scale=…]`, without training."""

import importlib
import sys
from pathlib import Path

from aavae.errors import UserError
from aavae.runtime import caches, exits
from aavae.runtime.words import markdown_table
from experiments.artefact import PEAK, Artefact, parse
from experiments.runs import PRIMARY, Runs

ARTEFACTS = ("table1", "figure2", "figure3", "figure4", "figure5", "lengths", "questions")
NOWHERE = Path("multirun/none")  # as if nothing had been trained


def artefact(name: str) -> Artefact:
    """The artefact that the module of that name makes."""
    module = importlib.import_module(f"experiments.{name}")
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Artefact))
    return next(kind() for kind in kinds if getattr(kind, "name", None) == name)


def table(argv: list[str]) -> str:
    """A row an artefact: runs, PFLOP and hours on an H100 at its peak rate, and what the rows above have not trained.

    Raises UserError where a run is impossible.
    """
    from aavae.sweeps.preflight import preflight

    asked = parse(argv)
    runs = Runs(asked.scale, asked.overrides, NOWHERE.absolute())
    jobs = {n: [j for _, own in runs.left(artefact(n).sweeps(runs)) for j in own] for n in ARTEFACTS}
    plans, _, _ = preflight([[*job, "dry_run=true"] for own in jobs.values() for job in own], None, PRIMARY)
    if faults := [plan.error for plan in plans if plan.error]:
        raise UserError(f"{len(faults)} of {len(plans)} runs are impossible: {faults[0]}")
    known: dict[str, float] = {}
    rows = []
    for name, own in jobs.items():
        mine, plans = plans[: len(own)], plans[len(own) :]
        new = {plan.identity: plan.flops for plan in mine if plan.identity not in known}
        rows.append([name, *_cost(len(mine), sum(p.flops for p in mine)), *_cost(len(new), sum(new.values()))])
        known |= new
    rows.append(["all", *[""] * 3, *_cost(len(known), sum(known.values()))])
    head = ["", "runs", "PFLOP", "H100 hours, at least", "new runs", "new PFLOP", "new hours"]
    return markdown_table(head, rows, range(1, len(head)))


def _cost(runs: int, flop: float) -> list[str]:
    return [f"{runs}", *(f"{float(f'{value:.3g}'):,g}" for value in (flop / 1e15, flop / PEAK / 3600))]


def _work() -> int:
    print(table(sys.argv[1:]))
    return 0


if __name__ == "__main__":
    caches.settle()
    sys.exit(exits.run("experiments.costs", _work))
