"""Random crops: boxes as torchvision draws them, and crops from padded images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.augmentations.operations import horizontal_flip
from aavae.augmentations.pipeline import Pipeline, coin, probability
from aavae.errors import UserError
from aavae.runtime.device import send


def padded_crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Crop image b, enlarged by `padding` reflected pixels on every side, back to its size at (`top[b]`, `left[b]`)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    rows = top.to(images.device)[:, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = left.to(images.device)[:, None] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


CROP_TRIES = 10


def crop_draws(n: int, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers `(n, 2·CROP_TRIES + 2)` from which `crop_boxes` makes boxes, whatever the image's size."""
    return torch.rand(n, 2 * CROP_TRIES + 2, generator=generator)


def crop_boxes(
    draws: Tensor, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes (top, left, height, width), each `(n,)` in pixels, as torchvision's RandomResizedCrop draws them.

    Ten tries at an area in `scale` (of the image's) and a log-uniform aspect in `ratio`; the first that fits is taken,
    else the largest centred box with an aspect in `ratio`.
    """
    area, aspect = draws[:, :CROP_TRIES], draws[:, CROP_TRIES : 2 * CROP_TRIES]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * aspect)
    w, h = torch.round((area * aspect).sqrt()), torch.round((area / aspect).sqrt())
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    whole = min(max(width / height, ratio[0]), ratio[1])
    fallback_w = width if width / height <= whole else round(height * whole)
    fallback_h = height if width / height >= whole else round(width / whole)
    found = fits.any(1)
    w = torch.where(found, w.gather(1, first)[:, 0], float(fallback_w))
    h = torch.where(found, h.gather(1, first)[:, 0], float(fallback_h))
    u, v = draws[:, -2], draws[:, -1]
    top = torch.where(found, (u * (height - h + 1)).floor(), ((height - h) / 2).floor())
    left = torch.where(found, (v * (width - w + 1)).floor(), ((width - w) / 2).floor())
    return torch.minimum(top, height - h), torch.minimum(left, width - w), h, w


class Crops(Pipeline):
    """Crops from the image enlarged by `padding` reflected pixels, and flips (the released linear evaluation's)."""

    def __init__(self, padding: int = 4, flip_p: float = 0.5):
        if padding < 0:
            raise UserError(f"augmentation.padding must be 0 or more, not {padding}")
        self.padding, self.flip_p = padding, probability("flip_p", flip_p)

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The corner of each crop in the enlarged image, and a coin for the flip."""
        if self.padding >= size:
            raise UserError(f"augmentation.padding must be less than the images' {size} pixels, not {self.padding}")
        corner = torch.randint(2 * self.padding + 1, (n, 2), generator=generator)
        return {"corner": corner, "flip": coin(n, self.flip_p, generator)}

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, C, H, W)` of float images in [0, 1]."""
        top, left = send(draws["corner"].T.contiguous(), images.device)
        images = padded_crop(images, top, left, self.padding)
        return horizontal_flip(images, send(draws["flip"], images.device))

    def __str__(self) -> str:
        return f"crops from images padded by {self.padding} reflected pixels, flips p={self.flip_p:g}"
