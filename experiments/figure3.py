"""Figure 3: accuracy by the weight β of the KL term."""

from aavae.loggers.screen import PROBES
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.runs import Runs, Sweep
from experiments.significance import differences
from experiments.table1 import floor_rows, floor_values, percent, setting
from experiments.writing import Sheet


class Figure3(Artefact):
    """AAVAE with β·KL added."""

    name, title = "figure3", "Figure 3: accuracy by the weight of the KL term"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """β on the first dataset."""
        dataset = next(iter(runs.scale.datasets))
        return [Sweep(dataset, "loss.beta", runs.scale.betas, setting(runs, dataset, "aavae"))]

    def draw(self, runs: Runs, against: str) -> Sheet:
        """Accuracy at the end by β; against another measure, a curve for each β."""
        dataset, probe = next(iter(runs.scale.datasets)), runs.scale.probe
        own = setting(runs, dataset, "aavae")
        groups = {f"β = {beta}": runs.of(dataset, *own, f"loss.beta={beta}") for beta in runs.scale.betas}
        figure, ((axis,),) = plots.panels(1)
        for n, (name, group) in enumerate(groups.items()):
            colour, _, line = plots.style(n)
            if against == "epochs":
                plots.spread(axis, n, list(group.by_seed(probe).values()), plots.style(0)[0], "o")
            else:
                plots.lines(axis, group.measured(probe, against), colour, line, name)
        if against == "epochs":
            plots.categories(axis, runs.scale.betas, "β")
        else:
            plots.progress_axis(axis, against)
        plots.floors(axis, floor_values(next(iter(groups.values())), probe))
        axis.set_ylabel(f"{dataset}, {PROBES[probe]} (%)")
        axis.legend(frameon=False)
        rows = [
            [
                group.called(name),
                percent(group.accuracy(probe)),
                f"{kl.mean:.3g}" if (kl := group.last("val/kl")) else "",
            ]
            for name, group in groups.items()
        ]
        caption = [
            differences(next(iter(groups)), groups, probe),
            "The paper prints no numbers; it says that accuracy is flat for β far below 1 and falls from 1 on.",
        ]
        head = ["β", f"{dataset}: {PROBES[probe]}, measured", "KL (nats per image, validation views)"]
        rows += floor_rows(next(iter(groups.values())), probe, len(head))
        return Sheet(head, rows, caption, figure, list(groups.values()))


if __name__ == "__main__":
    main(Figure3())
