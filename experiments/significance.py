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
    seeds: set[object] = set()
    for name, group in groups.items():
        other = group.by_seed(probe)
        test = paired(other, own)
        if name == reference or test.seeds < FEWEST:
            continue
        seeds |= own.keys() & other.keys()
        equal = math.isnan(test.p)
        (clear if test.p < LEVEL else unclear).append(f"{name} (equal)" if equal else f"{name} (p = {test.p:.2g})")
    if not clear and not unclear:
        return f"Fewer than {FEWEST} seeds are done, too few for a paired t-test."
    parts = [f"differ from {reference}: {', '.join(clear)}" if clear else f"none differs from {reference}"]
    parts += [f"within the seeds' spread: {', '.join(unclear)}"] if unclear else []
    return f"Paired t-tests over {len(seeds)} seeds, level {LEVEL}, not corrected for their number: {'; '.join(parts)}."


def holm(ps: Sequence[float]) -> list[float]:
    """p corrected for the number of tests (Holm 1979); a NaN is no test, and stays."""
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    found, largest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        found[i] = largest
    return found
