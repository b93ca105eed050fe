"""Three questions on the paper's claim, each a difference between settings over seeds with its confidence interval."""

import math
from typing import NamedTuple

import numpy as np

from aavae.loggers.screen import PROBES
from aavae.runtime.words import count
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.paper import NAMES
from experiments.runs import Group, Runs, Sweep
from experiments.significance import FEWEST, holm, paired
from experiments.table1 import CONTRASTIVE, own_recipe, percent, setting
from experiments.writing import Sheet

NOISE = "1. Does latent noise matter?"
KIND = "2. Any noise, or the domain's?"
BATCH = "3. Is AAVAE less sensitive to the batch size?"
# The second is taken from the first. Each pair differs in one thing; AAVAE and AAAE in two: noise and likelihood.
PAIRS = {
    NOISE: (("aavae", "aavae_mean"), ("aavae", "aaae_denoise")),
    KIND: (("aaae_denoise", "dae"), ("dae", "ae"), ("aaae_denoise", "ae")),
}
SIZED = ("aavae", CONTRASTIVE)
METHODS = tuple(dict.fromkeys(method for pairs in PAIRS.values() for pair in pairs for method in pair))


class Difference(NamedTuple):
    """What is compared, and the values of both sides in points by seed."""

    question: str
    name: str
    first: dict[object, float]
    second: dict[object, float]


class Questions(Artefact):
    """Latent noise, the kind of noise, and the batch size."""

    name, title = "questions", "Three questions on the paper's claim"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """Runs of Table 1 and Figure 4."""
        dataset, sizes = next(iter(runs.scale.datasets)), runs.scale.batch_sizes
        found = [Sweep(dataset, "method", (method,), own_recipe(runs, dataset, method)) for method in METHODS]
        return [*found, *(Sweep(dataset, "batch_size", sizes, setting(runs, dataset, m)) for m in SIZED)]

    def draw(self, runs: Runs, against: str) -> Sheet:
        """A row for each difference, and an interval in the figure."""
        dataset, probe = next(iter(runs.scale.datasets)), runs.scale.probe
        groups = {m: runs.of(dataset, *setting(runs, dataset, m)) for m in METHODS}
        sizes = {
            m: {b: runs.of(dataset, *setting(runs, dataset, m), f"batch_size={b}") for b in runs.scale.batch_sizes}
            for m in SIZED
        }
        asked = [
            Difference(question, f"{NAMES[a]} − {NAMES[b]}", groups[a].by_seed(probe), groups[b].by_seed(probe))
            for question, pairs in PAIRS.items()
            for a, b in pairs
        ]
        slopes = {m: _slopes(own, probe) for m, own in sizes.items()}
        pair = " − ".join(NAMES[m] for m in SIZED)
        asked.append(Difference(BATCH, f"slope per doubling of the batch: {pair}", *slopes.values()))
        tests = [paired(d.first, d.second) for d in asked]
        corrected = holm([t.p for t in tests])
        head = ["question", "difference", "points", "95 % interval", "p", "p, Holm", "seeds"]
        rows = []
        for d, t, p in zip(asked, tests, corrected, strict=True):
            interval = "–" if math.isnan(t.low) else f"{t.low:+.1f} to {t.high:+.1f}"
            points = "–" if math.isnan(t.mean) else f"{t.mean:+.1f}"
            rows.append([d.question, d.name, points, interval, _p(t.p), _p(p), f"{t.seeds}"])
        figure, ((axis,),) = plots.panels(1, width=plots.PAGE, height=2.4)
        for n, (t, (question, *_)) in enumerate(zip(tests, asked, strict=True)):
            colour = plots.style([NOISE, KIND, BATCH].index(question))[0]
            if not math.isnan(t.low):
                axis.plot([t.low, t.high], [-n, -n], color=colour, linewidth=1.6)
            axis.plot(t.mean, -n, "o", color=colour, markersize=5)
            axis.plot(t.values, [-n - 0.22] * len(t.values), ".", color=colour, markersize=3.5, alpha=0.7)
        axis.axvline(0, color="#555555", linewidth=0.8)
        axis.set_ylim(0.5 - len(asked), 0.5)
        axis.set_yticks([-n for n in range(len(asked))], [d.name for d in asked])
        axis.set_xlabel(f"difference in points of {PROBES[probe]}, {dataset}: mean, 95 % interval, seeds below")
        tested = sum(not math.isnan(t.p) for t in tests)
        recipes = {own_recipe(runs, dataset, m)[:-1] if runs.scale.equal_work else () for m in METHODS}
        recipe = own_recipe(runs, dataset, CONTRASTIVE) if runs.scale.equal_work else ()
        epochs = next((word.partition("=")[2] for word in recipe if word.startswith("epochs=")), "")
        caption = [
            f"Paired differences by seed in points of test accuracy, with the t-test for paired samples from {FEWEST} "
            f"seeds on. Holm's correction is over the {count(tested, 'difference')} that have p; intervals are not "
            "corrected. An interval that includes 0 does not show that there is no difference.",
            "In each pair of the first two questions one thing differs, except that AAVAE has the Gaussian likelihood "
            "where AAAE has the squared error."
            + (" Their recipes differ too: each method has the one that was best for it." if len(recipes) > 1 else ""),
            f"Slope: points of accuracy for each doubling of the batch size, a line through batch sizes "
            f"{', '.join(runs.scale.batch_sizes)} for each seed, with the learning rate in proportion to the batch "
            f"size; another rule may give another answer. A larger batch makes fewer steps in the same epochs. "
            + (f"{NAMES[CONTRASTIVE]} has {epochs} epochs, whose work is nearest to AAVAE's. " if epochs else "")
            + f"{_by_size(sizes, slopes, probe)}.",
            f"Codes at the end of training: {_codes(groups)}.",
        ]
        shown = [*groups.values(), *(group for own in sizes.values() for group in own.values())]
        return Sheet(head, rows, caption, figure, shown)


def _slopes(groups: dict[str, Group], probe: str) -> dict[object, float]:
    """By seed, the points of accuracy for each doubling of the batch size, if all sizes are there.

    A range of accuracies would be larger for the method whose seeds differ more, even where the size changes nothing.
    """
    found = [group.by_seed(probe) for group in groups.values()]
    doublings = np.log2([int(size) for size in groups])
    common = set(found[0]).intersection(*found[1:])
    return {seed: float(np.polyfit(doublings, [own[seed] for own in found], 1)[0]) for seed in common}


def _by_size(sizes: dict[str, dict[str, Group]], slopes: dict[str, dict[object, float]], probe: str) -> str:
    parts = []
    for m, own in sizes.items():
        means = ", ".join(f"{percent(g.accuracy(probe))} ({b})" for b, g in own.items())
        steep = f", slope {np.mean([*slopes[m].values()]):+.2f}" if slopes[m] else ""
        parts.append(f"{NAMES[m]} {means}{steep}")
    return "; ".join(parts)


def _codes(groups: dict[str, Group]) -> str:
    parts = []
    for method, group in groups.items():
        norm, sigma, snr = (group.last(f"train/{name}") for name in ("mu_norm", "sigma_mean", "snr"))
        if norm:
            used = method != "aavae_mean" and sigma and snr  # its σ is there, and draws nothing
            noise = f", mean σ {sigma.mean:.2g}, mean |μ|/σ {float(f'{snr.mean:.2g}'):,.0f}" if used else ""
            parts.append(f"{NAMES[method]} ‖μ‖ {norm.mean:.1f}{noise}")
    return "; ".join(parts) or "not logged"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"


if __name__ == "__main__":
    main(Questions())
