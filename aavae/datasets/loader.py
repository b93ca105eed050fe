"""Training batches whose order is a function of (seed, epoch), from memory or streamed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aavae.augmentations.crops import crop_draws
from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import Dataset, Split, to_float
from aavae.errors import UserError
from aavae.runtime.device import send
from aavae.runtime.processes import Processes
from aavae.runtime.randomness import generator_for, generators_for
from aavae.runtime.words import count


class Batch(NamedTuple):
    """A step's images: the clean ones in [0, 1] on the device, and what the augmentation starts from."""

    clean: Tensor  # (B, 3, H, W), the clean images
    source: Tensor  # (B, 3, H, W), the whole image, or the crop that workers made
    cropped: bool
    others: tuple[Tensor, ...] = ()  # the crops of further views, where workers made them

    def source_of(self, view: int) -> Tensor:
        """What view number `view` starts from, `(B, 3, H, W)`."""
        return self.others[view - 1] if view and self.others else self.source


class Loader:
    """Batches of `batch_size` (all processes together) from the `pretrain` split, the incomplete last one dropped.

    Raises UserError if the batch size is below 2 (BatchNorm needs two images) or larger than the training set.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Pipeline,
        batch_size: int,
        seed: int,
        device: torch.device,
        processes: Processes | None = None,
        n_views: int = 1,
    ):
        self.dataset, self.split, self.augmentation = dataset, dataset["pretrain"], augmentation
        self.batch_size, self.seed, self.device, self.n_views = batch_size, seed, device, n_views
        if batch_size < 2:
            raise UserError(f"batch_size must be 2 or more (BatchNorm needs two images), not {batch_size}")
        if batch_size > len(self.split):
            raise UserError(
                f"batch_size={batch_size} is larger than the training set of {count(len(self.split), 'image')}"
            )
        self.share = (processes or Processes()).share(batch_size)
        self.rows = self.share.stop - self.share.start
        self.steps_per_epoch = len(self.split) // batch_size

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.split), generator=generator_for(self.seed, "order", epoch))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of `epoch`, from batch `first` on."""
        whole = self._order(epoch)[: self.steps_per_epoch * self.batch_size].view(self.steps_per_epoch, -1)
        if not isinstance(self.split, Split):
            yield from self._streamed(whole, epoch, first)
            return
        mine = send(whole[first:, self.share].contiguous(), self.device)
        for indices in mine:
            source = to_float(self.split[indices])
            yield Batch(self.dataset.target(source), source, cropped=False)

    def _streamed(self, whole: Tensor, epoch: int, first: int) -> Iterator[Batch]:
        augmentation: Any = self.augmentation  # which has `scale` and `ratio` where it `crops`
        split: Any = self.split  # a StreamedSplit
        crops, scale, ratio = augmentation.crops, None, None
        if crops:
            scale, ratio = augmentation.scale, augmentation.ratio

        def requests():
            for i, indices in enumerate(whole[first:], start=first):
                draws: Any = [()] * len(indices)  # or a Tensor of them
                if crops:
                    step = epoch * self.steps_per_epoch + i
                    generators = generators_for(self.n_views, self.seed, "crop", step)
                    draws = torch.stack([crop_draws(len(indices), generator) for generator in generators], 1)
                pairs = zip(indices[self.share].tolist(), draws[self.share], strict=True)
                yield [(index, draw, scale, ratio) for index, draw in pairs]

        for images in split.stream(requests()):
            clean, source, *others = (to_float(send(part, self.device)) for part in images)
            yield Batch(clean, source, crops, tuple(others))
