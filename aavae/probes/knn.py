"""k nearest neighbours on frozen features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.datasets import Dataset
from aavae.errors import UserError
from aavae.probes.representations import Representation
from aavae.runs.results import record


def knn_predict(train: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Classes `(Q,)` of `queries` `(Q, F)` by their k nearest training features in cosine similarity.

    Neighbours vote with weight exp(similarity / temperature) (Wu et al. 2018, §3.4).
    """
    train = F.normalize(train)
    predictions = []
    for chunk in F.normalize(queries).split(1024):
        similarity, index = (chunk @ train.T).topk(min(k, len(train)))
        # Relative to the nearest, so that the exponential cannot overflow; the vote is the same.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[index], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


class KNN:
    """Weighted k-NN accuracy on validation and test images, neighbours from the labelled training images."""

    def __init__(self, k: int = 20, temperature: float = 0.07, splits: tuple[str, ...] = ("val", "test")):
        if k < 1 or temperature <= 0:
            raise UserError(f"probe.knn: k must be 1 or more and temperature positive, not {k} and {temperature}")
        self.k, self.temperature, self.splits = k, temperature, tuple(splits)

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """One record per split."""
        train, labels = encode("train")
        protocol = (
            f"k={min(self.k, len(train))}, cosine, weights exp(s/{self.temperature}), {len(train)} training images, "
            "float32"
        )
        records = []
        for split in self.splits:
            features, truth = encode(split)
            predicted = knn_predict(train, labels, features, self.k, self.temperature, dataset.num_classes)
            accuracy = (predicted == truth).float().mean().item()
            records.append(record("knn", encode.name, split, accuracy, len(truth), protocol))
        return records
