"""Figure 2: is a good density a good representation? Over epochs with a learned width, and over fixed widths."""

from aavae.loggers.screen import PROBES
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.runs import Group, Runs, Sweep
from experiments.significance import differences
from experiments.table1 import floor_rows, floor_values, percent, setting
from experiments.writing import Sheet

WITH_BETA = ("loss.beta=0.001",)
DENSITY, UNIT = "bpd_8bit", "bits per dimension, 8-bit pixels"


class Figure2(Artefact):
    """Density against accuracy."""

    name, title = "figure2", "Figure 2: density and accuracy"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """Learned and fixed width, and the widths: as the paper says, and with the β of the authors' script."""
        dataset = next(iter(runs.scale.datasets))
        own, widths = setting(runs, dataset, "aavae"), runs.scale.log_scales
        fixed = [Sweep(dataset, "loss.log_scale", widths, (*own, *beta)) for beta in ((), WITH_BETA)]
        return [Sweep(dataset, "loss.learn_scale", ("false", "true"), own), *fixed]

    def draw(self, runs: Runs, against: str) -> Sheet:
        """(a) density of training and validation images and accuracy over epochs; (b) both at the end, by width."""
        dataset, probe = next(iter(runs.scale.datasets)), runs.scale.probe
        own = setting(runs, dataset, "aavae")
        fixed, learned = (runs.of(dataset, *own, f"loss.learn_scale={learns}") for learns in ("false", "true"))
        widths = {f"log σ² = {w}": runs.of(dataset, *own, f"loss.log_scale={w}") for w in runs.scale.log_scales}
        script = {
            f"{name}, β = 0.001": runs.of(dataset, *own, *WITH_BETA, f"loss.log_scale={w}")
            for name, w in zip(widths, runs.scale.log_scales, strict=True)
        }
        figure, axes = plots.panels(3)
        density, accuracy, cloud = axes[0]
        for n, (split, name) in enumerate((("train_eval", "training images"), ("val", "validation images"))):
            colour, _, line = plots.style(n)
            plots.lines(density, learned.curves(f"{split}/{DENSITY}", against), colour, line, name)
        density.set(title="(a) learned width: density", ylabel=UNIT)
        for n, (group, name) in enumerate(((learned, "learned width"), (fixed, "fixed width"))):
            colour, _, line = plots.style(n)
            plots.lines(accuracy, group.measured(probe, against), colour, line, name)
        plots.floors(accuracy, floor_values(fixed, probe))
        accuracy.set(title="(a) accuracy", ylabel=f"{dataset}, {PROBES[probe]} (%)")
        for n, (name, group) in enumerate({"learned": learned, **widths}.items()):
            colour, marker, _ = plots.style(n)
            points = self._points(group, probe)
            if points:
                cloud.plot(*zip(*points, strict=True), marker, color=colour, label=name, markersize=4, linestyle="none")
        for n, group in enumerate(script.values(), 1):  # hollow, in the colour of the same width
            colour, marker, _ = plots.style(n)
            if points := self._points(group, probe):
                style = {"color": colour, "markersize": 4, "linestyle": "none", "fillstyle": "none"}
                label = "hollow: β = 0.001" if n == 1 else None
                cloud.plot(*zip(*points, strict=True), marker, label=label, **style)
        cloud.set(title="(b) by width", xlabel=UNIT, ylabel=f"{PROBES[probe]} (%)")
        for axis in (density, accuracy):
            plots.progress_axis(axis, against)
        for axis in axes[0]:
            axis.legend(frameon=False)
        everything = {"learned": learned, "fixed": fixed, **widths, **script}
        rows = [
            [
                g.called(name),
                percent(g.accuracy(probe)),
                *(f"{s.mean:.3f}" if (s := g.last(f"{part}/{DENSITY}")) else "–" for part in ("train_eval", "val")),
            ]
            for name, g in everything.items()
        ]
        caption = [
            self._correlation(everything, probe),
            differences("fixed", everything, probe),
            "The paper prints no numbers; it says that a learned width overfits the density while accuracy does not "
            "fall, and that accuracy and density are not correlated over widths.",
        ]
        head = ["width", f"{dataset}: {PROBES[probe]}, measured", f"{UNIT}: training images", "validation images"]
        rows += floor_rows(fixed, probe, len(head))
        return Sheet(head, rows, caption, figure, list(everything.values()))

    def _points(self, group: Group, probe: str) -> list[tuple[float, float]]:
        accuracy = group.by_seed(probe)
        density = {job.seed: own for job in group.done if (own := group.last_of(job, f"val/{DENSITY}")) is not None}
        return [(density[seed], value) for seed, value in accuracy.items() if seed in density]

    def _correlation(self, groups: dict[str, Group], probe: str) -> str:
        from scipy.stats import spearmanr

        points = [point for name, group in groups.items() if name != "fixed" for point in self._points(group, probe)]
        if len({x for x, _ in points}) < 3 or len({y for _, y in points}) < 2:
            return "Too few runs are done for a correlation."
        rho, p = spearmanr(*zip(*points, strict=True))
        what = f"Spearman's correlation of validation density and accuracy over {len(points)} runs"
        return f"{what}: {rho:.2f} (p = {p:.2g})."


if __name__ == "__main__":
    main(Figure2())
