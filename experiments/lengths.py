"""Accuracy by the length of training: one run a seed that is judged on its way, at the scale's learning rates."""

from aavae.loggers.screen import PROBES
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.paper import NAMES
from experiments.runs import Runs, Sweep
from experiments.significance import differences
from experiments.table1 import floor_rows, floor_values, own_recipe
from experiments.writing import Sheet

METHODS = ("aavae", "vae")


class Lengths(Artefact):
    """AAVAE, and the VAE beside it, after 400, 800, 1600 and 3200 epochs; at smaller scales after fewer."""

    name, title = "lengths", "Accuracy by the length of training"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """Both methods."""
        dataset = next(iter(runs.scale.datasets))
        return [Sweep(dataset, "method", METHODS, own_recipe(runs, dataset, "aavae"))]

    def draw(self, runs: Runs, against: str) -> Sheet:
        """A curve a method, and a row for each time it was judged."""
        (sweep,), probe = self.sweeps(runs), runs.scale.probe
        dataset = sweep.dataset
        groups = {NAMES[m]: runs.of(dataset, *sweep.fixed, f"method={m}") for m in METHODS}
        figure, ((axis,),) = plots.panels(1)
        rows = []
        for n, (method, (name, group)) in enumerate(zip(METHODS, groups.items(), strict=True)):
            colour, _, line = plots.style(n, method)
            plots.lines(axis, group.measured(probe, against), colour, line, name)
            for points in zip(*group.measured(probe), strict=True):
                values = [accuracy for _, accuracy in points]
                row = group.called(f"{name}, {points[0][0]:g} epochs")
                rows.append([row, f"{sum(values) / len(values):.1f}", " ".join(f"{v:.1f}" for v in values)])
        plots.progress_axis(axis, against)
        plots.floors(axis, floor_values(next(iter(groups.values())), probe))
        axis.set_ylabel(f"{dataset}, {PROBES[probe]} (%)")
        axis.legend(frameon=False)
        caption = [
            f"At the end: {differences(next(iter(groups)), groups, probe)}",
            "The paper prints the numbers after 3200 epochs only (Table 1).",
        ]
        shapes = {str(job.config["schedule.shape"]) for group in groups.values() for job in group.done}
        if shapes - {"constant"}:
            caption.append(
                f"The learning rate falls over the whole training ({', '.join(sorted(shapes))}): a shorter training "
                "would end with higher accuracy than these runs have on their way."
            )
        head = ["method, length", f"{dataset}: {PROBES[probe]}, measured (mean)", "seeds"]
        rows += floor_rows(next(iter(groups.values())), probe, len(head))
        return Sheet(head, rows, caption, figure, list(groups.values()))


if __name__ == "__main__":
    main(Lengths())
