"""Probes: frozen features → numbers. One file and one YAML add another.

A probe has a constructor and `run(encode, dataset)`, which returns records
`{probe, feature, split, metric, value, n, protocol}`, accuracies as fractions; the caller adds the epoch. One that
needs something of the dataset may have `check(dataset)`, which raises UserError before anything is trained.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aavae.datasets import Dataset, Split, sample, to_float


class Representation:
    """A frozen map from normalised images `(B, 3, H, W)` to features `(B, N)`, under a `name`; remembers the features
    of each split, so that several probes share one pass over the images."""

    def __init__(self, name: str, encode: Callable[[Tensor], Tensor], dataset: Dataset, batch_size: int = 500):
        self.name, self.encode, self.dataset, self.batch_size = name, encode, dataset, batch_size
        self._features: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, split: str) -> tuple[Tensor, Tensor]:
        """Features `(N, F)` float32 of the clean images of `split`, and labels `(N,)`, on one device."""
        if split not in self._features:
            self._features[split] = self.of(self.dataset[split])
        return self._features[split]

    @torch.no_grad()
    def of(self, split: Split) -> tuple[Tensor, Tensor]:
        """Features and labels of any labelled images."""
        features = torch.cat([self.encode(batch) for batch in split.batches(self.batch_size)])
        return features, split.labels.to(features.device)

    def limit(self, split: str, n: int) -> "Representation":
        """The same, with only n images of `split`."""
        if len(self.dataset[split]) > n:
            self._features[split] = self.of(sample(self.dataset[split], n))
        return self


def images_to(encode: Callable[[Tensor], Tensor], dataset: Dataset, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`encode`, a function of normalised images, as a function of the dataset's uint8 images."""

    def run(images: Tensor) -> Tensor:
        return encode(dataset.normalize(dataset.target(to_float(images.to(device))))).flatten(1).float()

    return run


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
