"""Encoder and linear classifier trained end to end, on all labels or on a few per cent of them."""

import contextlib
import copy
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aavae.datasets import Dataset, Images, labels_of
from aavae.errors import UserError
from aavae.probes.classifier import SGD, Plan, cropped_batches, linear_head, plan
from aavae.probes.few_label import draw_per_class
from aavae.probes.representations import Representation
from aavae.runs.results import record
from aavae.runtime.device import Precision, full_float32, without_search
from aavae.runtime.randomness import generator_for, seed_default, seed_for
from aavae.runtime.words import count

HELD_OUT = ("val", "test")


@contextlib.contextmanager
def _own_dropout(device: torch.device, seed: int) -> Iterator[None]:
    # Dropout draws from torch's own generator, which others count on.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_default(device, seed)
        yield


def _trainable(encoder: nn.Module) -> nn.Module:
    twin = copy.deepcopy(encoder).train().requires_grad_(True)
    for layer in twin.modules():
        if isinstance(layer, _BatchNorm) and layer.momentum is None:
            layer.momentum = 0.1  # a cumulative average would still remember the first steps when the last is done
    return twin


def fine_tuned(
    encode: Representation, dataset: Dataset, split: Images, sgd: SGD, how: Plan, keys: tuple, what: str
) -> nn.Module:
    """A copy of the encoder and a linear head, both trained on `split`: normalised images → logits, in eval mode.

    BatchNorm is in training mode while it learns, in the precision of `encode`; what was float32 with TensorFloat-32
    is float32 here. Order, crops, head and dropout are a function of `keys`.
    """
    assert encode.encoder is not None  # else it is `missing`
    encoder = _trainable(encode.encoder)
    width: Any = encoder.output_dim
    head = linear_head(width, dataset.num_classes, encode.device, generator_for(*keys, "head"))
    model = nn.Sequential(encoder, nn.Flatten(), head)
    batches = encode.track(cropped_batches(encode, dataset, split, how, keys), how.steps, what)
    with full_float32(), _own_dropout(encode.device, seed_for(*keys, "dropout")):
        sgd.fit(model, batches, how, encode.precision)
    return model.eval()


@torch.no_grad()
@without_search()
def accuracy(model: nn.Module, encode: Representation, split: Images, what: str) -> float:
    """The share of clean images of `split` that `model` classifies rightly."""
    size, predicted = encode.batch_size, []
    for images in encode.track(split.batches(size), -(-len(split) // size), what):
        with encode.precision.autocast():
            predicted.append(model(encode.normalized(images)).argmax(1))
    found = torch.cat(predicted)
    return (found == labels_of(split).to(found.device)).float().mean().item()


def _no_encoder(encode: Representation) -> str | None:
    return "only h and h_untrained have an encoder to train" if encode.encoder is None else None


class Finetune:
    """Accuracy of encoder and linear classifier after `epochs` of SGD on all training labels.

    SGD, crops and flips as in SimCLR's fine-tuning (Chen et al. 2020, appendix B.5: Nesterov momentum 0.9, lr
    0.05·B/256, no warm-up, no weight decay) with the cosine of its code. The encoder is a copy.
    """

    def __init__(
        self,
        epochs: int = 30,
        batch_size: int = 256,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        if epochs < 1:
            raise UserError(f"probe.finetune: epochs must be 1 or more, not {epochs}")
        self.sgd = SGD("finetune", batch_size, lr, momentum, weight_decay, least=2)
        self.epochs, self.seed = epochs, seed

    def missing(self, encode: Representation) -> str | None:
        """Why there is nothing to train."""
        return _no_encoder(encode)

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """One record for validation, one for test images."""
        train, what = dataset["train"], f"fine-tuning {encode.name}"
        how = plan(len(train), self.epochs, self.sgd.batch_size)
        model = fine_tuned(encode, dataset, train, self.sgd, how, (self.seed, "finetune"), what)
        protocol = _protocol(f"all {len(train)} training labels", self.sgd, how, dataset, self.seed, encode.precision)
        records = []
        for split in HELD_OUT:
            value = accuracy(model, encode, dataset[split], f"{what}, {split} images")
            records.append(record("finetune", encode.name, split, value, len(dataset[split]), protocol))
        return records


def _protocol(labels: str, sgd: SGD, how: Plan, dataset: Dataset, seed: int, precision: Precision) -> str:
    return (
        f"encoder and linear classifier trained end to end on {labels}, {dataset.crops()}, shuffled, "
        f"{sgd.protocol(how)}, last epoch, seed {seed}, {precision.computes}"
    )


def labels_per_class(fraction: float, n: int, classes: int) -> int:
    """How many labels of every class `fraction` of n labels are, one at least."""
    return max(1, round(fraction * n / classes))


class Semi:
    """Accuracy of encoder and linear classifier after SGD on `fractions` of the training labels, for `epochs` each.

    The labelled images are drawn with as many of every class; the others are not used. SGD as for `Finetune`; 60 epochs
    for 1 % and 30 for 10 % are SimCLR's (Chen et al. 2020, appendix B.5). With several `draws` the accuracy is their
    mean, and `accuracy_sd` their standard deviation (ddof 1). Every representation sees the same draws.
    """

    def __init__(
        self,
        fractions: tuple[float, ...] = (0.01, 0.1),
        epochs: tuple[int, ...] = (60, 30),
        draws: int = 1,
        batch_size: int = 256,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        if not fractions or not all(0 < f <= 1 for f in fractions):
            raise UserError(f"probe.semi: fractions must be numbers above 0 and up to 1, not {list(fractions)}")
        if len(epochs) != len(fractions) or min(epochs) < 1:
            raise UserError(
                f"probe.semi: epochs must be a number of 1 or more for each of the {len(fractions)} fractions, "
                f"not {list(epochs)}"
            )
        if draws < 1:
            raise UserError(f"probe.semi: draws must be 1 or more, not {draws}")
        self.sgd = SGD("semi", batch_size, lr, momentum, weight_decay, least=2)
        self.fractions, self.epochs, self.draws, self.seed = tuple(fractions), tuple(epochs), draws, seed

    def check(self, dataset: Dataset) -> None:
        """Raise UserError where a class has too few training images for a draw with as many of every class."""
        train = dataset["train"]
        scarcest = int(labels_of(train).bincount(minlength=dataset.num_classes).min())
        for fraction in self.fractions:
            if (n := labels_per_class(fraction, len(train), dataset.num_classes)) > scarcest:
                raise UserError(
                    f"probe.semi: {100 * fraction:g} % of the labels are {n} a class, but a class has only {scarcest}; "
                    "leave that fraction out of probe.semi.fractions"
                )

    def missing(self, encode: Representation) -> str | None:
        """Why there is nothing to train."""
        return _no_encoder(encode)

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """For each fraction one record, or with several draws two, for validation and for test images."""
        self.check(dataset)
        records = []
        for fraction, epochs in zip(self.fractions, self.epochs, strict=True):
            records += self._fraction(fraction, epochs, encode, dataset)
        return records

    def _fraction(self, fraction: float, epochs: int, encode: Representation, dataset: Dataset) -> list[dict]:
        name, train = f"semi_{100 * fraction:g}", dataset["train"]
        n = labels_per_class(fraction, len(train), dataset.num_classes)
        how = plan(n * dataset.num_classes, epochs, self.sgd.batch_size)
        accuracies: dict[str, list[float]] = {split: [] for split in HELD_OUT}
        for draw in range(self.draws):
            keys, what = (self.seed, name, draw), f"{name} of {encode.name}"
            chosen = draw_per_class(labels_of(train).cpu(), n, generator_for(*keys, "labels"))
            model = fine_tuned(encode, dataset, train.take(chosen), self.sgd, how, keys, what)
            for split, found in accuracies.items():
                found.append(accuracy(model, encode, dataset[split], f"{what}, {split} images"))
        labels = f"{count(n, 'label', 'd')} a class" + (f", {self.draws} draws" if self.draws > 1 else "")
        protocol, records = _protocol(labels, self.sgd, how, dataset, self.seed, encode.precision), []
        for split, found in accuracies.items():
            values = {"accuracy": statistics.fmean(found)}
            if self.draws > 1:
                values["accuracy_sd"] = statistics.stdev(found)
            for metric, value in values.items():
                records.append(record(name, encode.name, split, value, len(dataset[split]), protocol, metric))
        return records
