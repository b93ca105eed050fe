"""Nearest neighbour with a handful of labels per class."""

import statistics

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.datasets import Dataset, labels_of
from aavae.errors import UserError
from aavae.probes.representations import Representation
from aavae.runs.results import record
from aavae.runtime.randomness import generator_for
from aavae.runtime.words import count


def draw_per_class(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices of n images of every class, drawn without replacement; `labels` on the CPU."""
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)].split(labels.bincount().tolist())
    return torch.cat([members[:n] for members in by_class])


class FewLabel:
    """1-nearest-neighbour test accuracy with n labels per class: mean and sd (ddof 1) over `draws` seeded draws.

    Every representation sees the same draws. Raises UserError where a class has fewer than n training images.
    """

    def __init__(self, labels_per_class: tuple[int, ...] = (1, 5), draws: int = 20, seed: int = 0):
        whole = all(isinstance(n, int) and n >= 1 for n in labels_per_class)
        if not labels_per_class or not whole or draws < 2:
            raise UserError("probe.few_label: labels_per_class must be 1 or more, and draws 2 or more; whole numbers")
        self.labels_per_class, self.draws, self.seed = tuple(labels_per_class), draws, seed

    def check(self, dataset: Dataset) -> None:
        """Raise UserError where a class has fewer training images than labels are asked for."""
        self._refuse_scarce(labels_of(dataset["train"]), dataset.num_classes)

    def _refuse_scarce(self, labels: Tensor, num_classes: int) -> None:
        scarcest = int(labels.bincount(minlength=num_classes).min())
        if (most := max(self.labels_per_class)) > scarcest:
            possible = [n for n in self.labels_per_class if n <= scarcest] or [scarcest]
            cure = f"probe.few_label.labels_per_class=[{','.join(map(str, possible))}] can be done"
            raise UserError(
                f"probe.few_label: {count(most, 'label')} a class were asked for, but a class has only "
                f"{count(scarcest, 'training image')}; {cure if scarcest else 'leave few_label out of probe='}"
            )

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """Mean and sd for each number of labels."""
        train, labels = encode("train")
        self._refuse_scarce(labels, dataset.num_classes)
        test, truth = encode("test")
        train, test = F.normalize(train), F.normalize(test)
        records = []
        for n in self.labels_per_class:
            accuracies = []
            for draw in range(self.draws):
                chosen = draw_per_class(labels.cpu(), n, generator_for(self.seed, "few_label", n, draw))
                chosen = chosen.to(train.device)
                nearest = (test @ train[chosen].T).argmax(1)
                accuracies.append((labels[chosen][nearest] == truth).float().mean().item())
            drawn = f"{count(n, 'label', 'd')} a class, {self.draws} draws from {len(labels)} training images"
            protocol = f"1-NN, cosine, {drawn}, seed {self.seed}, float32"
            for metric, value in (
                ("accuracy", statistics.fmean(accuracies)),
                ("accuracy_sd", statistics.stdev(accuracies)),
            ):
                records.append(record(f"few_label_{n}", encode.name, "test", value, len(truth), protocol, metric))
        return records
