"""Probes: a frozen representation → numbers and pictures. One file and one YAML add another.

A probe has a constructor and `run(encode, dataset)`, which returns records
`{probe, feature, split, metric, value, n, protocol}` (accuracies as fractions; the caller adds the epoch) and, where
there is something to look at, `Picture`s. One that needs something of the dataset may have `check(dataset)`, which
raises UserError before anything is trained; one that needs no labels says `needs_labels = False`; one that needs
something of a representation may have `missing(encode)`, which says what is missing, or None. Which representations it
is given is said by `features` in its YAML.

A probe that learns while the model is trained has, besides, `begin(output_dim, dataset, device, precision)`,
`learn(encoder, step)`, `state()` and `restore(state)`.
"""

from typing import Any, NamedTuple

DEFAULT_FEATURES = ("h", "pixels", "h_untrained")


class Picture(NamedTuple):
    """A PNG, as `name`.png in the run folder and as a panel `name` in dashboards."""

    name: str
    png: bytes


class Guest(NamedTuple):
    """A probe under the name it has in the config, and the representations it is asked about."""

    name: str
    probe: Any
    features: tuple[str, ...] = DEFAULT_FEATURES


def record(probe: str, feature: str, split: str, value: float, n: int, protocol: str, metric: str = "accuracy") -> dict:
    """One result; `n` is the number of images it was measured on."""
    return {
        "probe": probe,
        "feature": feature,
        "split": split,
        "metric": metric,
        "value": float(value),
        "n": n,
        "protocol": protocol,
    }
