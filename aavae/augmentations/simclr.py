"""SimCLR's views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aavae.augmentations import whole_batch
from aavae.augmentations.crops import crop_boxes, crop_draws
from aavae.augmentations.pipeline import Pipeline, coin, probability, uniform
from aavae.errors import UserError


class SimCLRViews(Pipeline):
    """SimCLR's pipeline per image: crop, flip, colour jitter in its own order, grayscale, blur (docs/reproduction.md).

    Every image has its own coin for each step. `strength` s scales the jitter to (.8s, .8s, .8s, .2s);
    `blur_p` > 0 blurs with an odd kernel of about a tenth of the image.
    """

    crops = True

    def __init__(
        self,
        strength: float,
        blur_p: float,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip_p: float = 0.5,
        jitter_p: float = 0.8,
        grayscale_p: float = 0.2,
        blur_sigma: Sequence[float] = (0.1, 2.0),
    ):
        if not 0 <= strength <= 1.25:
            raise UserError(f"augmentation.strength must lie between 0 and 1.25, not {strength}")
        for name, pair, most in (("scale", scale, 1.0), ("ratio", ratio, 1e3), ("blur_sigma", blur_sigma, 1e3)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise UserError(
                    f"augmentation.{name} must be two rising positive numbers up to {most:g}, not {list(pair)}"
                )
        self.strength, self.scale, self.ratio, self.blur_sigma = strength, scale, ratio, blur_sigma
        self.flip_p, self.jitter_p = probability("flip_p", flip_p), probability("jitter_p", jitter_p)
        self.grayscale_p, self.blur_p = probability("grayscale_p", grayscale_p), probability("blur_p", blur_p)

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Crop numbers, coins, jitter factors (columns: brightness, contrast, saturation, hue), order, blur sigma."""
        reach, (low, high) = 0.8 * self.strength, self.blur_sigma
        return {
            "crop": crop_draws(n, generator),
            "flip": coin(n, self.flip_p, generator),
            "jitter": coin(n, self.jitter_p, generator),
            "order": torch.rand(n, 4, generator=generator).argsort(1),
            "factors": torch.cat(
                [
                    uniform(3 * n, 1 - reach, 1 + reach, generator).view(n, 3),
                    uniform(n, -0.2 * self.strength, 0.2 * self.strength, generator).view(n, 1),
                ],
                1,
            ),
            "gray": coin(n, self.grayscale_p, generator),
            "blur": coin(n, self.blur_p, generator),
            "sigma": uniform(n, low, high, generator),
        }

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, 3, H, W)` of float images in [0, 1], in torchvision's order of operations."""
        height, width = images.shape[-2:]
        if cropped:
            whole = torch.tensor([[0.0, 0.0, height, width]]).expand(len(images), -1)
            return whole_batch.views(images, draws, whole.unbind(1), (height, width))
        boxes = crop_boxes(draws["crop"], height, width, self.scale, self.ratio)
        return whole_batch.views(images, draws, boxes, (width, width))

    def __str__(self) -> str:
        low, high = self.scale
        return f"SimCLR of strength {self.strength:g} ({low:g}–{high:g} of the area, blur p={self.blur_p:g})"


class ResizedCrops(SimCLRViews):
    """Random resized crops and flips: SimCLR's pipeline without colours, as classifiers are trained with."""

    def __init__(
        self, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3), flip_p: float = 0.5
    ):
        super().__init__(0.0, 0.0, scale, ratio, flip_p, jitter_p=0.0, grayscale_p=0.0)

    def __str__(self) -> str:
        low, high = self.scale
        return f"random resized crops ({low:g}–{high:g} of the area), flips p={self.flip_p:g}"
