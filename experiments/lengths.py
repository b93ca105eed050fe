"""Accuracy by the length of training: one run a seed at a constant learning rate, judged on its way."""

from aavae.loggers.screen import PROBES
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.paper import NAMES
from experiments.runs import Runs, Sweep
from experiments.significance import differences
from experiments.table1 import floor_rows, floor_values
from experiments.writing import Sheet

METHODS = ("aavae", "vae")


class Lengths(Artefact):
    """AAVAE, and the VAE beside it, after 400, 800, 1600 and 3200 epochs; at smaller scales after fewer."""

    name, title = "lengths", "Accuracy by the length of training"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """Both methods."""
        return [Sweep(next(iter(runs.scale.datasets)), "method", METHODS)]

    def draw(self, runs: Runs, against: str) -> Sheet:
        """A curve a method, and a row for each time it was judged."""
        dataset, probe = next(iter(runs.scale.datasets)), runs.scale.probe
        groups = {NAMES[m]: runs.of(dataset, f"method={m}") for m in METHODS}
        figure, ((axis,),) = plots.panels(1)
        rows = []
        for n, (method, (name, group)) in enumerate(zip(METHODS, groups.items(), strict=True)):
            colour, _, line = plots.style(n, method)
            plots.lines(axis, group.measured(probe, against), colour, line, name)
            for length, values in _by_length(group.measured(probe)).items():
                mean = sum(values) / len(values)
                rows.append(
                    [group.called(f"{name}, {length:g} epochs"), f"{mean:.1f}", " ".join(f"{v:.1f}" for v in values)]
                )
        plots.progress_axis(axis, against)
        plots.floors(axis, floor_values(next(iter(groups.values())), probe))
        axis.set_ylabel(f"{dataset}, {PROBES[probe]} (%)")
        axis.legend(frameon=False)
        caption = [
            f"At the end: {differences(next(iter(groups)), groups, probe)}",
            "The paper prints the numbers after 3200 epochs only (Table 1).",
        ]
        head = ["method, length", f"{dataset}: {PROBES[probe]}, measured (mean)", "seeds"]
        rows += floor_rows(next(iter(groups.values())), probe, len(head))
        return Sheet(head, rows, caption, figure, list(groups.values()))


def _by_length(curves: list[list[tuple[float, float]]]) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for curve in curves:
        for epoch, value in curve:
            found.setdefault(epoch, []).append(value)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    main(Lengths())
