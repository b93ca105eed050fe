"""Views of handwritten digits."""

import math

import torch
from torch import Tensor

from aavae.augmentations.colors import adjust_contrast
from aavae.augmentations.operations import affine
from aavae.augmentations.pipeline import Pipeline, uniform
from aavae.errors import UserError
from aavae.runtime.device import send


class DigitViews(Pipeline):
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
            "angle": uniform(n, -self.rotation, self.rotation, generator),
            "shift": uniform(2 * n, -self.shift, self.shift, generator).view(n, 2),
            "scale": uniform(n, 1 - self.scale, 1 + self.scale, generator),
            "shear": uniform(n, -self.shear, self.shear, generator),
            "contrast": uniform(n, 1 - self.contrast, 1 + self.contrast, generator),
            "noise": uniform(n, 0, self.noise, generator).view(n, 1, 1, 1)
            * torch.randn(n, 1, size, size, generator=generator),
        }

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, C, H, W)` of float images in [0, 1]."""
        draws = {name: send(parameter, images.device) for name, parameter in draws.items()}
        images = affine(images, draws["angle"], draws["shift"], draws["scale"], draws["shear"])
        return (adjust_contrast(images, draws["contrast"]) + draws["noise"]).clamp(0, 1)
