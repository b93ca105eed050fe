"""Classifiers that learn by stochastic gradient descent: the loop, its batches and its settings."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, Images, labels_of, to_float
from aavae.errors import UserError
from aavae.probes.representations import Representation
from aavae.runtime.device import Precision, send
from aavae.runtime.randomness import generator_for
from aavae.runtime.words import count

Batches = Iterable[tuple[Tensor, Tensor]]

LOOK_EVERY = 100  # steps between two looks at the loss, each of which waits for the device


class Plan(NamedTuple):
    """How many steps there are: `epochs` of `per_epoch` batches of `size` images, under a cosine of `cosine_steps`."""

    epochs: int
    per_epoch: int
    size: int
    cosine_steps: int

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.per_epoch


def plan(n: int, epochs: int, batch_size: int) -> Plan:
    """Epochs over n images that drop the incomplete last batch, unless it is the only one."""
    per_epoch = max(1, n // batch_size)
    return Plan(epochs, per_epoch, min(n, batch_size), epochs * per_epoch)


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate, 1 at step 0 and 0 at `steps`; afterwards it rises again, as in the released code."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class SGD:
    """SGD with Nesterov momentum and a cosine without warm-up, as `probe` asks for it.

    `lr` is the learning rate of batches of 256 images; smaller and larger batches scale it linearly. Raises UserError
    for values out of range.
    """

    def __init__(self, probe: str, batch_size: int, lr: float, momentum: float, weight_decay: float, least: int = 1):
        for name, value, fine, range_ in (
            ("batch_size", batch_size, batch_size >= least, f"{least} or more"),
            ("lr", lr, 0 < lr < math.inf, "positive"),
            ("momentum", momentum, 0 < momentum < 1, "between 0 and 1"),
            ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "0 or more"),
        ):
            if not fine:
                raise UserError(f"probe.{probe}: {name} must be {range_}, not {value}")
        self.probe, self.batch_size, self.lr = probe, batch_size, lr
        self.momentum, self.weight_decay = momentum, weight_decay

    def peak(self, size: int) -> float:
        """The first learning rate, for batches of `size`."""
        return self.lr * size / 256

    def fit(self, model: nn.Module, batches: Batches, how: Plan, precision: Precision) -> None:
        """Minimise the cross-entropy of `model`'s logits over `batches` of inputs and labels.

        Raises UserError where the loss is no longer finite.
        """
        peak, scaler = self.peak(how.size), precision.scaler()
        optimizer = torch.optim.SGD(
            model.parameters(), peak, self.momentum, weight_decay=self.weight_decay, nesterov=True
        )
        for step, (x, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = peak * cosine(step, how.cosine_steps)
            with precision.autocast():
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            looks = (step + 1) % LOOK_EVERY == 0 or step + 1 == how.steps
            if looks and not loss.isfinite():
                raise UserError(
                    f"probe.{self.probe}: the loss is {loss.item()} at step {step:,} of {how.steps:,}; "
                    f"a probe.{self.probe}.lr below {self.lr:g} helps"
                )

    def protocol(self, how: Plan) -> str:
        """What a record says about it."""
        return (
            f"{count(how.epochs, 'epoch', 'd')}, {count(how.steps, 'step', 'd')} of {count(how.size, 'image', 'd')}, "
            f"SGD, Nesterov momentum {self.momentum:g}, weight decay {self.weight_decay:g}, "
            f"lr {self.peak(how.size):g}, cosine over {count(how.cosine_steps, 'step', 'd')}"
        )


def linear_head(features: int, classes: int, device: torch.device, generator: torch.Generator) -> nn.Linear:
    """A linear layer as PyTorch initialises it, drawn from `generator` instead of from the process's own."""
    head = nn.utils.skip_init(nn.Linear, features, classes)
    bound = 1 / math.sqrt(features)  # what kaiming_uniform_(a=√5) comes to
    nn.init.uniform_(head.weight, -bound, bound, generator)
    nn.init.uniform_(head.bias, -bound, bound, generator)
    return head.to(device)


def cropped_batches(
    encode: Representation, dataset: Dataset, split: Images, how: Plan, keys: tuple, crops: Pipeline | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images `(B, 3, H, W)`, shuffled and cropped anew in each epoch, and their labels, on the device.

    Order and crops are a function of `keys`, epoch and batch; `crops` are the dataset's if none are given.
    """
    crops = crops or dataset.crops()
    for epoch in range(how.epochs):
        order = torch.randperm(len(split), generator=generator_for(*keys, "order", epoch))
        order = order[: how.per_epoch * how.size]
        labels = send(labels_of(split)[order], encode.device).split(how.size)
        for batch, (images, truth) in enumerate(zip(split.batches(how.size, order), labels, strict=True)):
            # Of the whole image: the target's own crop would come on top.
            views = crops(to_float(images.to(encode.device)), generator_for(*keys, "crop", epoch, batch))
            yield dataset.normalize(views), truth
