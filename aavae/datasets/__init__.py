"""Datasets: images as uint8 tensors with their facts. One file and one YAML add another.

A dataset is cheap to construct and reads its images when `load` is called. Its splits are `pretrain` and
`pretrain_val` (for validating pretraining) and, where there are labels, `train`, `val` and `test` (for the probes).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from aavae.augmentations.crops import Crops
from aavae.augmentations.pipeline import Pipeline
from aavae.augmentations.simclr import SimCLRViews
from aavae.errors import UserError
from aavae.runtime.device import send

SPLIT_SEED = 42  # of the released code, whatever the seed of the run (docs/reproduction.md)


class Images(Protocol):
    """What every split is, in memory or streamed."""

    labels: Tensor | None

    def __len__(self) -> int:
        """How many images there are."""

    def take(self, indices: Tensor) -> "Images":
        """The images at `indices`, as a split of their own."""

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """The images, or those at `order`, uint8, `batch_size` at a time."""

    def fingerprint(self) -> str:
        """A short hash of what it holds."""


class Split:
    """Images `(N, 3, H, W)` uint8 in memory, on the training device, and their labels `(N,)` int64 or None."""

    def __init__(self, images: Tensor, labels: Tensor | None = None):
        self.images, self.labels = images, labels
        self._fingerprint: str | None = None  # gigabytes take seconds, and are asked for it more than once

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at `indices`, which lie where the images do."""
        return self.images[indices]

    def to(self, device: torch.device) -> "Split":
        """The same split with its images on `device`."""
        return Split(self.images.to(device), self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at `indices`, as a split of their own."""
        labels = None if self.labels is None else self.labels[send(indices, self.labels.device)]
        return Split(self.images[send(indices, self.images.device)], labels)

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """The images, or those at `order`, uint8, `batch_size` at a time; the last batch may be smaller."""
        if order is None:
            yield from self.images.split(batch_size)
            return
        for indices in send(order, self.images.device).split(batch_size):
            yield self[indices]

    def fingerprint(self) -> str:
        """A short hash of shape, labels and every byte of every image."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
            for some in self.images.split(4096):  # of images on a GPU, not all at once
                digest.update(some.cpu().contiguous().numpy())
            if self.labels is not None:
                digest.update(self.labels.cpu().numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


class Dataset(ABC):
    """What every dataset knows: its facts, and after `load` its `splits`.

    Facts: `name`, `num_classes` (0: no labels) and their names, `classes`, where they have any, `image_size` in pixels,
    `mean` and `std` per channel of images in [0, 1], the `stem` a ResNet should have for it, and the augmentation
    strengths recommended for it.
    """

    name: str
    num_classes: int
    classes: Sequence[str] = ()
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    stem = "cifar"
    strength = 0.5
    blur_p = 0.0
    reference_batch = 256  # of the recommended learning rate
    in_memory = True
    sizes: ClassVar[dict[str, int]] = {}  # images of each split, where that is known before any is read
    rehearsed = False  # whether random images stand in for them

    def __init__(self):
        self.splits: Mapping[str, Images] = {}
        self._sent: dict[tuple, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self, device: torch.device) -> Mapping[str, Images]:
        """Read the images; called once, by `load`.

        Returns `pretrain` and `pretrain_val` and, if `num_classes` is not 0, `train`, `val` and `test` with labels from
        0 to num_classes − 1.
        """

    def present(self) -> bool:
        """Whether the images are here; asked of a dataset with `sizes`."""
        return True

    def load(self, device: torch.device | str = "cpu", rehearse: bool = False) -> "Dataset":
        """Read the images to `device`, once. Raises UserError where they are missing or damaged.

        To `rehearse`, nothing is downloaded: where images are not here, random ones of their size and number stand in.
        """
        if "splits" not in vars(self):
            raise UserError(f"{type(self).__name__}.__init__ must call super().__init__()")
        if not self.splits and rehearse and self.sizes and not self.present():
            from aavae.datasets.rehearsal import rehearsal

            self.splits, self.rehearsed = rehearsal(self, torch.device(device)), True
        if not self.splits:
            self.splits = self.read(torch.device(device))
        return self

    def __getitem__(self, split: str) -> Images:
        return self.load().splits[split]

    @property
    def labelled(self) -> bool:
        """Whether the probes have labels to work with."""
        return self.num_classes > 0

    def target(self, images: Tensor) -> Tensor:
        """The clean images `(B, 3, H, W)` in [0, 1] that the decoder reconstructs and the probes see."""
        return images

    def views(self) -> Pipeline:
        """The augmentation recommended for it."""
        return SimCLRViews(self.strength, self.blur_p)

    def crops(self) -> Pipeline:
        """The light augmentation that classifiers are trained with."""
        return Crops(self.image_size // 8)

    def constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each `(1, 3, 1, 1)`, where and of the type that `images` are."""
        # Sent to the device once: a step that sent them would wait for the device.
        key = (images.device, images.dtype)
        if key not in self._sent:
            mean, std = (images.new_tensor(c).view(1, 3, 1, 1) for c in (self.mean, self.std))
            self._sent[key] = mean, std
        return self._sent[key]

    def normalize(self, images: Tensor) -> Tensor:
        """Images in [0, 1] → normalised units."""
        mean, std = self.constants(images)
        return (images - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """Normalised units → [0, 1], clamped."""
        mean, std = self.constants(images)
        return (images * std + mean).clamp(0, 1)

    def fingerprint(self) -> str:
        """A short hash over all splits; see `same_images`."""
        parts = [f"{name}:{split.fingerprint()}" for name, split in sorted(self.splits.items())]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def seeded_split(n: int, first: int) -> tuple[Tensor, Tensor]:
    """Indices of the first `first` and the rest of n images, shuffled as torch's random_split does under seed 42."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:first], order[first:]


def stratified_split(labels: Tensor, held: int) -> tuple[Tensor, Tensor]:
    """Indices of images that are kept and of about `held` held out, as large a part of every class, under seed 42.

    Of a class with two or more images one at least is held out, and one at least is kept.
    """
    counts = labels.bincount()
    quota = held * counts.double() / len(labels)
    most = (counts - 1).clamp(min=0)
    share = quota.long().clamp(min=1).minimum(most)
    for label in (quota - share).argsort(descending=True, stable=True).tolist():
        if share.sum() < held and share[label] < most[label]:
            share[label] += 1
    shuffled = seeded_split(len(labels), len(labels))[0]
    members = shuffled[labels[shuffled].argsort(stable=True)].split(counts.tolist())
    parts = [m.tensor_split([n]) for m, n in zip(members, share.tolist(), strict=True)]
    return torch.cat([kept for _, kept in parts]), torch.cat([out for out, _ in parts])


def same_images(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints are of one dataset, as far as is known: a longer one has seen more of the images."""
    if not one or not other:
        return False
    return one.startswith(other) or other.startswith(one)


def labels_of(split: Images) -> Tensor:
    """The labels of a split of a dataset that has some."""
    assert split.labels is not None
    return split.labels


def sample(split: Images, n: int) -> Images:
    """n images of `split`, or all if it has no more: drawn once and for all, since files may lie in order of class."""
    return split if n >= len(split) else split.take(seeded_split(len(split), n)[0])


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [0, 1] → uint8, rounded."""
    return (images * 255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images → float32 in [0, 1]."""
    return images.float() / 255
