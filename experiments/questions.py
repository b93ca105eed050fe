"""Three questions on the paper's claim, each a difference between settings over seeds with its confidence interval."""

import math
from typing import NamedTuple

import numpy as np

from aavae.loggers.screen import PROBES
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.paper import NAMES
from experiments.runs import Group, Runs, Sweep
from experiments.significance import FEWEST, holm, paired
from experiments.table1 import CONTRASTIVE, own_recipe, percent
from experiments.writing import Sheet

NOISE = "1. Does latent noise matter?"
KIND = "2. Any noise, or the domain's?"
BATCH = "3. Is AAVAE less sensitive to the batch size?"
# The second is taken from the first. In each pair one thing differs, but for AAVAE and AAAE: noise and likelihood.
PAIRS = {
    NOISE: (("aavae", "aavae_mean"), ("aavae", "aaae_denoise")),
    KIND: (("aaae_denoise", "dae"), ("dae", "ae"), ("aaae_denoise", "ae")),
}
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
        return [*found, *(Sweep(dataset, "batch_size", sizes, self._fixed(runs, m)) for m in ("aavae", CONTRASTIVE))]

    def draw(self, runs: Runs, against: str) -> Sheet:
        """A row for each difference, and an interval in the figure."""
        dataset, probe = next(iter(runs.scale.datasets)), runs.scale.probe
        groups = {m: runs.of(dataset, *own_recipe(runs, dataset, m), f"method={m}") for m in METHODS}
        sizes = {
            m: {b: runs.of(dataset, *self._fixed(runs, m), f"batch_size={b}") for b in runs.scale.batch_sizes}
            for m in ("aavae", CONTRASTIVE)
        }
        asked = [
            Difference(question, f"{NAMES[a]} − {NAMES[b]}", groups[a].by_seed(probe), groups[b].by_seed(probe))
            for question, pairs in PAIRS.items()
            for a, b in pairs
        ]
        ranges = [_ranges(sizes[m], probe) for m in ("aavae", CONTRASTIVE)]
        asked.append(Difference(BATCH, f"range over batch sizes: {NAMES['aavae']} − {NAMES[CONTRASTIVE]}", *ranges))
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
        axis.set_yticks([-n for n in range(len(asked))], [d.name for d in asked])
        axis.set_xlabel(f"difference in points of {PROBES[probe]}, {dataset}: mean, 95 % interval, seeds below")
        caption = [
            f"Paired differences by seed in points of test accuracy; intervals and p of the t-test for paired samples, "
            f"from {FEWEST} seeds on. Holm's correction is over the {len(asked)} differences.",
            "In each pair of the first two questions one thing differs, except that AAVAE has the Gaussian likelihood "
            "where AAAE has the squared error.",
            f"Range: the best minus the worst accuracy of a seed over batch sizes {', '.join(runs.scale.batch_sizes)}, "
            f"with the learning rate scaled. Means over seeds: {_by_size(sizes, probe)}.",
            f"Codes at the end of training: {_codes(groups)}.",
        ]
        shown = [*groups.values(), *(group for own in sizes.values() for group in own.values())]
        return Sheet(head, rows, caption, figure, shown)

    def _fixed(self, runs: Runs, method: str) -> tuple[str, ...]:
        return (*own_recipe(runs, next(iter(runs.scale.datasets)), method), f"method={method}")


def _ranges(groups: dict[str, Group], probe: str) -> dict[object, float]:
    """By seed, the best minus the worst accuracy over the settings, if all are there."""
    found = [group.by_seed(probe) for group in groups.values()]
    common = set(found[0]).intersection(*found[1:])
    return {seed: float(np.ptp([own[seed] for own in found])) for seed in common}


def _by_size(sizes: dict[str, dict[str, Group]], probe: str) -> str:
    return "; ".join(
        f"{NAMES[m]} {', '.join(f'{percent(g.accuracy(probe))} ({b})' for b, g in own.items())}"
        for m, own in sizes.items()
    )


def _codes(groups: dict[str, Group]) -> str:
    parts = []
    for method, group in groups.items():
        norm, snr = group.last("train/mu_norm"), group.last("train/snr")
        if norm:
            used = method != "aavae_mean" and snr and snr.mean > 0  # its σ is there, and draws nothing
            ratio = f", log10 SNR {math.log10(snr.mean):.1f}" if used else ""
            parts.append(f"{NAMES[method]} ‖μ‖ {norm.mean:.3g}{ratio}")
    return "; ".join(parts) or "not logged"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"


if __name__ == "__main__":
    main(Questions())
