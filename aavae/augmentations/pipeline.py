"""Distributions over views, made of the operations in `augmentations`.

Pipelines draw one row of parameters per image on the CPU, from a generator the caller seeds, so that a run sees the
same numbers on every device; applying them never waits for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from aavae.errors import UserError


def uniform(n: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def coin(n: int, p: float, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator) < p


def probability(name: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise UserError(f"augmentation.{name} must lie between 0 and 1, not {p}")
    return p


class Pipeline:
    """A distribution over views: `draw` parameters for n images, `apply` them, or call it to do both."""

    # Whether the first operation is a random resized crop by its `scale` and `ratio`, which streaming workers then do.
    crops = False
    augments = True  # whether a view can differ from its image

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """One row of parameters for each of n images of `size`×`size`, on the CPU."""
        return {}

    def draws(self, n: int, size: int, generators: Sequence[torch.Generator]) -> list[dict[str, Tensor]]:
        """The parameters of several views of each image, from a generator each. Views that share a draw, or that differ
        in kind, are a subclass's."""
        return [self.draw(n, size, generator) for generator in generators]

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, C, H, W)` of float images in [0, 1]; `cropped` says that workers have cropped already."""
        return images

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.apply(images, self.draw(len(images), images.shape[-1], generator))

    def __str__(self) -> str:
        """What a record says about it."""
        return type(self).__name__


class NoAugmentation(Pipeline):
    """The view is the image itself (AE and VAE)."""

    augments = False
