"""Random images in place of those of a dataset that is not here: what would a run take?"""

from collections.abc import Iterator

import torch
from torch import Tensor

from aavae.datasets import Dataset, Split

MADE = 256  # images, of which a large split shows each many times


class Rehearsal(Split):
    """A split of n random images `(3, S, S)`, of which image i is the same as image i + 256; labels take turns."""

    def __init__(self, n: int, image_size: int, num_classes: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        shape = (min(n, MADE), 3, image_size, image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        super().__init__(images.to(device), torch.arange(n) % num_classes if num_classes else None)
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.images[indices % len(self.images)]

    def take(self, indices: Tensor) -> Split:
        """The images at `indices`, as a split of their own."""
        labels = None if self.labels is None else self.labels[indices.cpu()]
        return Split(self[indices.to(self.images.device)], labels)

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """The images, or those at `order`, uint8, `batch_size` at a time."""
        return super().batches(batch_size, torch.arange(self.n) if order is None else order)

    @property
    def not_made(self) -> int:
        """Bytes that the images would take, and do not take here."""
        return (self.n - len(self.images)) * self.images[0].numel()


def rehearsal(dataset: Dataset, device: torch.device) -> dict[str, Split]:
    """A split for each of the dataset's `sizes`; those of one size are one, as `pretrain` often is `train`."""
    made = {n: Rehearsal(n, dataset.image_size, dataset.num_classes, device) for n in {*dataset.sizes.values()}}
    return {name: made[n] for name, n in dataset.sizes.items()}


def bytes_not_made(dataset: Dataset) -> int:
    """Bytes that the images of a dataset would take in memory, beside those that stand in for them."""
    if not dataset.rehearsed or not dataset.in_memory:
        return 0
    splits = [split for split in dataset.splits.values() if isinstance(split, Rehearsal)]
    return sum({id(split): split.not_made for split in splits}.values())
