"""Differences between settings, held against the spread of seeds."""

import warnings

from experiments.runs import Group

LEVEL = 0.05
FEWEST = 3  # seeds: two have next to no power, and equal differences by chance


def differences(reference: str, groups: dict[str, Group], probe: str) -> str:
    """A sentence on which settings differ from the `reference` by more than the seeds do: paired t-tests over seeds."""
    from scipy.stats import ttest_rel

    own = groups[reference].by_seed(probe)
    clear: list[str] = []
    unclear: list[str] = []
    seeds: set[object] = set()
    for name, group in groups.items():
        other = group.by_seed(probe)
        common = [seed for seed in own if seed in other]
        if name == reference or len(common) < FEWEST:
            continue
        seeds |= set(common)
        with warnings.catch_warnings(action="ignore"):  # of equal numbers, which have no p
            p = float(ttest_rel([other[s] for s in common], [own[s] for s in common]).pvalue)
        (clear if p < LEVEL else unclear).append(f"{name} (p = {p:.2g})" if p == p else f"{name} (equal)")
    if not clear and not unclear:
        return f"Fewer than {FEWEST} seeds are done, too few for a paired t-test."
    parts = [f"differ from {reference}: {', '.join(clear)}" if clear else f"none differs from {reference}"]
    parts += [f"within the seeds' spread: {', '.join(unclear)}"] if unclear else []
    return f"Paired t-tests over {len(seeds)} seeds, level {LEVEL}, not corrected for their number: {'; '.join(parts)}."
