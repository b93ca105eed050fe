"""Distributions over views, made of the operations in `augmentations`.

Pipelines draw one row of parameters per image on the CPU, from a generator the caller seeds, so that a run sees the
same numbers on every device; applying them never waits for the device.
"""

import math

import torch
from torch import Tensor

from aavae import simclr
from aavae.augmentations import adjust_contrast, affine, crop_boxes, crop_draws, horizontal_flip, padded_crop
from aavae.errors import UserError
from aavae.runtime import send


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _coin(n: int, p: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) < p


def _probability(name: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise UserError(f"augmentation.{name} must lie between 0 and 1, not {p}")
    return p


class Pipeline:
    """A distribution over views: `draw` parameters for n images, `apply` them, or call it to do both."""

    crops = False  # whether the first operation is a random resized crop, which streaming workers then do
    augments = True  # whether a view can differ from its image

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """One row of parameters for each of n images of `size`×`size`, on the CPU."""
        return {}

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


class SimCLR(Pipeline):
    """SimCLR's pipeline per image: crop, flip, colour jitter in its own order, grayscale, blur (spec §1.5).

    Every image has its own coin for each step. `strength` s scales the jitter to (.8s, .8s, .8s, .2s);
    `blur_p` > 0 blurs with an odd kernel of about a tenth of the image.
    """

    crops = True

    def __init__(
        self,
        strength: float,
        blur_p: float,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip_p: float = 0.5,
        jitter_p: float = 0.8,
        grayscale_p: float = 0.2,
        blur_sigma=(0.1, 2.0),
    ):
        if not 0 <= strength <= 1.25:
            raise UserError(f"augmentation.strength must lie between 0 and 1.25, not {strength}")
        for name, pair, most in (("scale", scale, 1.0), ("ratio", ratio, 1e3), ("blur_sigma", blur_sigma, 1e3)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise UserError(
                    f"augmentation.{name} must be two rising positive numbers up to {most:g}, not {list(pair)}"
                )
        self.strength, self.scale, self.ratio, self.blur_sigma = strength, scale, ratio, blur_sigma
        self.flip_p, self.jitter_p = _probability("flip_p", flip_p), _probability("jitter_p", jitter_p)
        self.grayscale_p, self.blur_p = _probability("grayscale_p", grayscale_p), _probability("blur_p", blur_p)

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Crop numbers, coins, jitter factors (columns: brightness, contrast, saturation, hue), order, blur sigma."""
        reach = 0.8 * self.strength
        return {
            "crop": crop_draws(n, generator),
            "flip": _coin(n, self.flip_p, generator),
            "jitter": _coin(n, self.jitter_p, generator),
            "order": torch.rand(n, 4, generator=generator).argsort(1),
            "factors": torch.cat(
                [
                    _uniform(3 * n, 1 - reach, 1 + reach, generator).view(n, 3),
                    _uniform(n, -0.2 * self.strength, 0.2 * self.strength, generator).view(n, 1),
                ],
                1,
            ),
            "gray": _coin(n, self.grayscale_p, generator),
            "blur": _coin(n, self.blur_p, generator),
            "sigma": _uniform(n, *self.blur_sigma, generator),
        }

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, 3, H, W)` of float images in [0, 1], in torchvision's order of operations."""
        height, width = images.shape[-2:]
        if cropped:
            whole = torch.tensor([[0.0, 0.0, height, width]]).expand(len(images), -1)
            return simclr.views(images, draws, whole.unbind(1), (height, width))
        boxes = crop_boxes(draws["crop"], height, width, self.scale, self.ratio)
        return simclr.views(images, draws, boxes, (width, width))

    def __str__(self) -> str:
        low, high = self.scale
        return f"SimCLR of strength {self.strength:g} ({low:g}–{high:g} of the area, blur p={self.blur_p:g})"


class ResizedCrops(SimCLR):
    """Random resized crops and flips: SimCLR's pipeline without colours, as classifiers are trained with."""

    def __init__(self, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip_p: float = 0.5):
        super().__init__(0.0, 0.0, scale, ratio, flip_p, jitter_p=0.0, grayscale_p=0.0)

    def __str__(self) -> str:
        low, high = self.scale
        return f"random resized crops ({low:g}–{high:g} of the area), flips p={self.flip_p:g}"


class Crops(Pipeline):
    """Crops from the image enlarged by `padding` reflected pixels, and flips (the released linear evaluation's)."""

    def __init__(self, padding: int = 4, flip_p: float = 0.5):
        if padding < 0:
            raise UserError(f"augmentation.padding must be 0 or more, not {padding}")
        self.padding, self.flip_p = padding, _probability("flip_p", flip_p)

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The corner of each crop in the enlarged image, and a coin for the flip."""
        if self.padding >= size:
            raise UserError(f"augmentation.padding must be less than the images' {size} pixels, not {self.padding}")
        corner = torch.randint(2 * self.padding + 1, (n, 2), generator=generator)
        return {"corner": corner, "flip": _coin(n, self.flip_p, generator)}

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, C, H, W)` of float images in [0, 1]."""
        top, left = send(draws["corner"].T.contiguous(), images.device)
        images = padded_crop(images, top, left, self.padding)
        return horizontal_flip(images, send(draws["flip"], images.device))

    def __str__(self) -> str:
        return f"crops from images padded by {self.padding} reflected pixels, flips p={self.flip_p:g}"


class Digits(Pipeline):
    """Views of handwritten digits: rotation, shift, scale, shear, contrast and pixel noise; no flip, no colour.

    `rotation` and `shear` are in degrees, the others fractions; each value is the reach of a uniform draw around
    "unchanged", `noise` the largest standard deviation of the pixel noise.
    """

    def __init__(
        self,
        rotation: float = 20,
        shift: float = 0.2,
        scale: float = 0.2,
        shear: float = 10,
        contrast: float = 0.3,
        noise: float = 0.1,
    ):
        for name, value in (("scale", scale), ("contrast", contrast)):
            if not 0 <= value < 1:
                raise UserError(f"augmentation.{name} must lie in [0, 1), not {value}")
        for name, value, most in (
            ("rotation", rotation, 360),
            ("shift", shift, 1),
            ("shear", shear, 89),
            ("noise", noise, 1),
        ):
            if not 0 <= value <= most:
                raise UserError(f"augmentation.{name} must lie between 0 and {most}, not {value}")
        self.rotation, self.shear = math.radians(rotation), math.radians(shear)
        self.shift, self.scale, self.contrast, self.noise = shift, scale, contrast, noise

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Angles in radians, shifts in fractions of the image, factors, and the noise of every pixel."""
        return {
            "angle": _uniform(n, -self.rotation, self.rotation, generator),
            "shift": _uniform(2 * n, -self.shift, self.shift, generator).view(n, 2),
            "scale": _uniform(n, 1 - self.scale, 1 + self.scale, generator),
            "shear": _uniform(n, -self.shear, self.shear, generator),
            "contrast": _uniform(n, 1 - self.contrast, 1 + self.contrast, generator),
            "noise": _uniform(n, 0, self.noise, generator).view(n, 1, 1, 1)
            * torch.randn(n, 1, size, size, generator=generator),
        }

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, C, H, W)` of float images in [0, 1]."""
        draws = {name: send(parameter, images.device) for name, parameter in draws.items()}
        images = affine(images, draws["angle"], draws["shift"], draws["scale"], draws["shear"])
        return (adjust_contrast(images, draws["contrast"]) + draws["noise"]).clamp(0, 1)
