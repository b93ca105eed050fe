"""Probes: a frozen representation → numbers and pictures. One file and one YAML add another.

A probe has a constructor and `run(encode, dataset)`, which returns records
`{probe, feature, split, metric, value, n, protocol}` (accuracies as fractions; the caller adds the epoch) and, where
there is something to look at, `Picture`s. One that needs something of the dataset may have `check(dataset)`, which
raises UserError before anything is trained; one that needs no labels says `needs_labels = False`; one that needs
something of a representation may have `missing(encode)`, which says what is missing, or None. Which representations it
is given is said by `features` in its YAML.

A probe that learns while the model is trained has, besides, `begin(output_dim, dataset, device, precision)`,
`learn(encoder, step)`, which returns scalars to log, `accuracy(encode, split)`, `state()` and `restore(state,
device)`.
"""

from typing import Any, NamedTuple

from aavae.errors import UserError


class Picture(NamedTuple):
    """A PNG, as `name`.png in the run folder and as a panel `name` in dashboards."""

    name: str
    png: bytes


class Guest(NamedTuple):
    """A probe under the name it has in the config, the representations it is asked about, and what it leaves unsaid.

    One that nobody has asked for, and that cannot be done on the dataset, is `left_out` for that reason.
    """

    name: str
    probe: Any
    features: tuple[str, ...]
    left_out: str | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether it has nothing to do without labels."""
        return getattr(self.probe, "needs_labels", True)

    @property
    def learns(self) -> bool:
        """Whether it learns while the model is trained."""
        return hasattr(self.probe, "learn") and not self.left_out

    def checked(self, dataset, asked: bool) -> "Guest":
        """The same, or left out if it could not be done on `dataset`; raises UserError if it was `asked` for."""
        if not hasattr(self.probe, "check") or (self.needs_labels and not dataset.labelled):
            return self
        try:
            self.probe.check(dataset)
        except UserError as error:
            if asked:
                raise
            return self._replace(left_out=str(error))
        return self

    def missing(self, encode) -> str | None:
        """What it misses of a representation; None if nothing."""
        return self.probe.missing(encode) if hasattr(self.probe, "missing") else None


def name_of(r: dict) -> str:
    """The name of a record in logs: probe/feature/split/metric."""
    return f"{r['probe']}/{r['feature']}/{r['split']}/{r['metric']}"


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
