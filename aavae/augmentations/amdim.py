"""AMDIM's views: one flip for both, then a shift, colours and grayscale for each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aavae.augmentations.colors import color_jitter, grayscale
from aavae.augmentations.crops import padded_crop
from aavae.augmentations.operations import horizontal_flip
from aavae.augmentations.pipeline import Pipeline, coin, probability, uniform
from aavae.augmentations.simclr import SimCLRViews
from aavae.errors import UserError
from aavae.runtime.device import send


class AMDIMViews(Pipeline):
    """A flip that all views of an image share; then for each a shift by up to `padding` reflected pixels, jitter by
    `jitter` (brightness, contrast, saturation, hue), and grayscale, each with a probability."""

    def __init__(
        self,
        padding: int = 4,
        shift_p: float = 0.8,
        jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.2),
        jitter_p: float = 0.8,
        grayscale_p: float = 0.25,
        flip_p: float = 0.5,
    ):
        if padding < 0:
            raise UserError(f"augmentation.padding must be 0 or more, not {padding}")
        if len(jitter) != 4 or not all(0 <= reach <= 1 for reach in jitter) or jitter[3] > 0.5:
            raise UserError(f"augmentation.jitter must be four numbers up to 1, the last up to 0.5, not {list(jitter)}")
        self.padding, self.jitter = padding, list(jitter)
        self.shift_p, self.jitter_p = probability("shift_p", shift_p), probability("jitter_p", jitter_p)
        self.grayscale_p, self.flip_p = probability("grayscale_p", grayscale_p), probability("flip_p", flip_p)

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The parameters of one view, its flip included."""
        if self.padding >= size:
            raise UserError(f"augmentation.padding must be less than the images' {size} pixels, not {self.padding}")
        corner = torch.randint(2 * self.padding + 1, (n, 2), generator=generator)
        shifted = coin(n, self.shift_p, generator)
        *reaches, hue = self.jitter
        factors = [uniform(n, 1 - reach, 1 + reach, generator) for reach in reaches]
        return {
            "corner": torch.where(shifted[:, None], corner, self.padding),
            "jitter": coin(n, self.jitter_p, generator),
            "order": torch.rand(n, 4, generator=generator).argsort(1),
            "factors": torch.stack([*factors, uniform(n, -hue, hue, generator)], 1),
            "gray": coin(n, self.grayscale_p, generator),
            "flip": coin(n, self.flip_p, generator),
        }

    def draws(self, n: int, size: int, generators: Sequence[torch.Generator]) -> list[dict[str, Tensor]]:
        """The parameters of several views, which share the flip of the first."""
        first, *others = (self.draw(n, size, generator) for generator in generators)
        return [first, *(other | {"flip": first["flip"]} for other in others)]

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, 3, H, W)` of float images in [0, 1]."""
        images = horizontal_flip(images, send(draws["flip"], images.device))
        top, left = send(draws["corner"].T.contiguous(), images.device)
        images = padded_crop(images, top, left, self.padding)
        images = color_jitter(images, draws["factors"], draws["order"], draws["jitter"])
        gray = send(draws["gray"], images.device).view(-1, 1, 1, 1)
        return torch.where(gray, grayscale(images), images)


class AMDIMCrops(SimCLRViews):
    """AMDIM's views of larger images: resized crops in place of shifts, and a flip that all views of an image share."""

    def __init__(
        self,
        scale: Sequence[float] = (0.3, 1.0),
        ratio: Sequence[float] = (0.7, 1.4),
        jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.2),
        jitter_p: float = 0.8,
        grayscale_p: float = 0.25,
        flip_p: float = 0.5,
    ):
        super().__init__(0.0, 0.0, scale, ratio, flip_p, jitter_p, grayscale_p, jitter=jitter)

    def __str__(self) -> str:
        low, high = self.scale
        return f"AMDIM's crops ({low:g}–{high:g} of the area), one flip for all views"

    def draws(self, n: int, size: int, generators: Sequence[torch.Generator]) -> list[dict[str, Tensor]]:
        """The parameters of several views, which share the flip of the first."""
        first, *others = super().draws(n, size, generators)
        return [first, *(other | {"flip": first["flip"]} for other in others)]
