"""The authors' linear evaluation: a linear classifier on frozen features of augmented images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from aavae.datasets import Dataset
from aavae.errors import UserError
from aavae.probes.classifier import SGD, Plan, cropped_batches, linear_head, plan
from aavae.probes.representations import Representation
from aavae.runs.results import record
from aavae.runtime.device import Precision
from aavae.runtime.randomness import generator_for

STL_EVALS = ("official", "fixed")


class Linear:
    """Accuracy of a linear classifier after `epochs` of SGD on features of cropped and flipped images
    (docs/reproduction.md).

    The encoder is frozen and in eval mode, features and classifier are in float32; the last epoch's is taken, so
    nothing is selected on. `accuracy_drop_last` leaves out the last incomplete batch of test images, as the released
    code did.

    `stl_eval` matters to STL-10 only. `official` is what the released code really ran: clean images in a fixed order,
    the incomplete batch of each epoch kept (18 batches), under a cosine that counted without it (17 an epoch), so that
    the learning rate rises again at the end. `fixed` treats STL-10 as every other dataset.
    """

    def __init__(
        self,
        epochs: int = 90,
        batch_size: int = 256,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        stl_eval: str = "official",
        seed: int = 0,
    ):
        if epochs < 1:
            raise UserError(f"probe.linear: epochs must be 1 or more, not {epochs}")
        if stl_eval not in STL_EVALS:
            raise UserError(f"probe.linear: stl_eval must be one of {', '.join(STL_EVALS)}, not {stl_eval!r}")
        self.sgd = SGD("linear", batch_size, lr, momentum, weight_decay)
        self.epochs, self.stl_eval, self.seed = epochs, stl_eval, seed

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """Accuracies on validation and test images."""
        held_out = {split: encode(split) for split in ("val", "test")}
        width = held_out["test"][0].shape[1]
        head = linear_head(width, dataset.num_classes, encode.device, generator_for(self.seed, "linear", "head"))
        as_released = dataset.name == "stl10" and self.stl_eval == "official"
        how = self.plan(len(dataset["train"]), as_released)
        batches = self._clean(encode, how) if as_released else self._cropped(encode, dataset, how)
        batches = encode.track(batches, how.steps, f"linear on {encode.name}")
        self.sgd.fit(head, batches, how, Precision.float32(encode.device))

        protocol, records = self._protocol(dataset, how, as_released), []
        for split, (features, truth) in held_out.items():
            with torch.no_grad():
                right = (head(features).argmax(1) == truth).float()
            records.append(record("linear", encode.name, split, right.mean(), len(right), protocol))
        if full := len(right) // self.sgd.batch_size * self.sgd.batch_size:
            protocol += f", the first {full} images in order"
            value = right[:full].mean()
            records.append(record("linear", encode.name, "test", value, full, protocol, "accuracy_drop_last"))
        return records

    def plan(self, n: int, as_released: bool) -> Plan:
        """Batches of n images, and steps of the cosine."""
        how = plan(n, self.epochs, self.sgd.batch_size)
        return how._replace(per_epoch=-(-n // how.size)) if as_released else how

    def _clean(self, encode: Representation, how: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        # The same images in every epoch have the same features.
        features, labels = encode("train")
        for _ in range(how.epochs):
            yield from zip(features.split(how.size), labels.split(how.size), strict=True)

    def _cropped(self, encode: Representation, dataset: Dataset, how: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        batches = cropped_batches(encode, dataset, dataset["train"], how, (self.seed, "linear"))
        for step, (x, labels) in enumerate(batches):
            yield encode.encode(x, generator_for(self.seed, "linear", "latent", step)), labels

    def _protocol(self, dataset: Dataset, how: Plan, as_released: bool) -> str:
        images = "clean images in fixed order" if as_released else f"{dataset.crops()}, shuffled"
        variant = f", stl_eval={self.stl_eval}" if dataset.name == "stl10" else ""
        return (
            f"linear classifier on frozen features, {len(dataset['train'])} training images, {images}{variant}, "
            f"{self.sgd.protocol(how)}, last epoch, seed {self.seed}, float32"
        )
