"""Figure 4: batch size, latent dimension, decoder and width, and the same batch sizes for a contrastive method."""

from aavae.loggers.screen import PROBES
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.runs import Group, Runs, Sweep
from experiments.significance import differences
from experiments.table1 import CONTRASTIVE, floor_rows, floor_values, percent, setting
from experiments.writing import Sheet


class Figure4(Artefact):
    """Ablations of AAVAE, and the control that the paper has not: SimCLR's batch size."""

    name, title = "figure4", "Figure 4: batch size, latent dimension, decoder, width"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """A sweep a panel."""
        return list(self._panels(runs).values())

    def _panels(self, runs: Runs) -> dict[str, Sweep]:
        scale, dataset = runs.scale, next(iter(runs.scale.datasets))
        key, decoders = scale.decoders
        own, contrastive = (setting(runs, dataset, method) for method in ("aavae", CONTRASTIVE))
        return {
            "(a) batch size": Sweep(dataset, "batch_size", scale.batch_sizes, own),
            "(b) latent dimension": Sweep(dataset, "latent_dim", scale.latent_dims, own),
            "(c) decoder": Sweep(dataset, key, decoders, own),
            "(d) log σ²": Sweep(dataset, "loss.log_scale", scale.log_scales, own),
            "SimCLR, batch size": Sweep(dataset, "batch_size", scale.batch_sizes, contrastive),
        }

    def draw(self, runs: Runs, against: str) -> Sheet:
        """Above, accuracy on the way; below, at the end."""
        dataset, probe = next(iter(runs.scale.datasets)), runs.scale.probe
        sweeps = self._panels(runs)
        figure, axes = plots.panels(len(sweeps), rows=2, height=2.0, sharey="row")
        rows, caption, shown = [], [], list[Group]()
        for i, (title, sweep) in enumerate(sweeps.items()):
            groups = {v: runs.of(dataset, *sweep.fixed, f"{sweep.key}={v}") for v in sweep.values}
            above, below = axes[0][i], axes[1][i]
            for n, (value, group) in enumerate(groups.items()):
                colour, marker, line = plots.style(n)
                plots.lines(above, group.measured(probe, against), colour, line, value)
                plots.spread(below, n, list(group.by_seed(probe).values()), colour, marker)
                row = [percent(group.accuracy(probe)), _number(group.number("flop"))]
                rows.append([group.called(f"{title}: {value}"), *row])
            above.set_title(title)
            plots.progress_axis(above, against)
            above.legend(frameon=False, fontsize=5.5)
            plots.categories(below, sweep.values, "", rotated=True)
            plots.floors(below, floor_values(next(iter(groups.values())), probe))
            if not i:
                below.legend(frameon=False, fontsize=5.5)
            caption.append(f"{title}: {differences(sweep.values[0], groups, probe)}")
            shown += groups.values()
        for axis in axes[:, 0]:
            axis.set_ylabel(f"{dataset}, {PROBES[probe]} (%)")
        if runs.scale.equal_work:
            caption.append("SimCLR computes what AAVAE computes, to the nearest epoch.")
        caption.append(
            "With the batch size, learning rate and warm-up are scaled. The paper prints no numbers; it says that "
            "accuracy hardly depends on any of these. It has no such sweep of a contrastive method."
        )
        head = ["setting", f"{dataset}: {PROBES[probe]}, measured", "PFLOP"]
        rows += floor_rows(shown[0], probe, len(head))
        return Sheet(head, rows, caption, figure, shown)


def _number(spread) -> str:
    return "" if spread is None else f"{spread.mean / 1e15:.3g}"


if __name__ == "__main__":
    main(Figure4())
