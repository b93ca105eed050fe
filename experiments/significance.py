"""Differences between settings, held against the spread of seeds."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.runs import Group

LEVEL = 0.05
FEWEST = 3  # seeds: two have next to no power, and equal differences by chance


class Paired(NamedTuple):
    """A mean difference in points, its 95 % interval and p (NaN below FEWEST seeds), and each seed's difference."""

    mean: float
    low: float
    high: float
    p: float
    values: list[float]

    @property
    def seeds(self) -> int:
        """How many seeds both have."""
        return len(self.values)


def paired(first: dict[object, float], second: dict[object, float]) -> Paired:
    """The t-test for paired samples over the seeds that both have."""
    from scipy.stats import ttest_rel

    common = [seed for seed in first if seed in second]
    values = [first[seed] - second[seed] for seed in common]
    mean = float(np.mean(values)) if values else math.nan
    if len(common) < FEWEST:
        return Paired(mean, math.nan, math.nan, math.nan, values)
    with warnings.catch_warnings(action="ignore"):  # of equal numbers, which have no p
        test = ttest_rel([first[s] for s in common], [second[s] for s in common])
        interval = test.confidence_interval(1 - LEVEL)
    return Paired(mean, float(interval.low), float(interval.high), float(test.pvalue), values)


def differences(reference: str, groups: dict[str, Group], probe: str) -> str:
    """A sentence on which settings differ from the `reference` by more than the seeds do: paired t-tests over seeds."""
    own = groups[reference].by_seed(probe)
    clear: list[str] = []
    unclear: list[str] = []
    few: list[str] = []
    for name, group in groups.items():
        test = paired(group.by_seed(probe), own)
        if name == reference:
            continue
        if test.seeds < FEWEST:
            few.append(name)
            continue
        result = "equal" if math.isnan(test.p) else f"p = {test.p:.2g}"
        fewer = f", {test.seeds} seeds" if test.seeds < len(own) else ""
        (clear if test.p < LEVEL else unclear).append(f"{name} ({result}{fewer})")
    if not clear and not unclear:
        return f"Fewer than {FEWEST} seeds are done, too few for a paired t-test."
    parts = [f"differ from {reference}: {', '.join(clear)}" if clear else f"none is shown to differ from {reference}"]
    parts += [f"no difference is shown for: {', '.join(unclear)}"] if unclear else []
    parts += [f"too few seeds: {', '.join(few)}"] if few else []
    return f"Paired t-tests over {len(own)} seeds, level {LEVEL}, not corrected for their number: {'; '.join(parts)}."


def holm(ps: Sequence[float]) -> list[float]:
    """p corrected for the number of tests (Holm 1979); a NaN is no test, and stays."""
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    found, largest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        found[i] = largest
    return found
