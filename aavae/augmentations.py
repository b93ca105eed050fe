"""Batched augmentations with one parameter per image; `pipelines` draws the parameters.

Operations are functions on float32 images `(B, C, H, W)` in [0, 1]; each equals torchvision's functional operation on
the same parameters. Those of colours live in `colors`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.colors import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, color_jitter, grayscale
from aavae.errors import UserError
from aavae.resampling import Lines, bilinear, gaussian, neighbours, planes_of, separable
from aavae.runtime import send

__all__ = (
    "adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation", "affine", "color_jitter", "crop_boxes",
    "crop_draws", "gaussian_blur", "grayscale", "horizontal_flip", "padded_crop", "resized_crop",
)  # fmt: skip


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int | tuple[int, int]
) -> Tensor:
    """Crop image b to rows [top, top+height) and columns [left, left+width), resized bilinearly to `size` (a number,
    or height and width).

    The box parameters are `(B,)`, in whole pixels. Meant for `size` no smaller than the crop: shrinking is not
    anti-aliased.
    """
    top, left, height, width = (t.to(images.device, torch.float32) for t in (top, left, height, width))
    tall, wide = (size, size) if isinstance(size, int) else size
    planes = planes_of(images)
    rows = bilinear(top, height, tall).of(planes, images.shape[-2])
    columns = bilinear(left, width, wide).of(planes, images.shape[-1])
    return separable(images, rows, columns).contiguous()


def padded_crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Crop image b, enlarged by `padding` reflected pixels on every side, back to its size at (`top[b]`, `left[b]`)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    rows = top.to(images.device)[:, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = left.to(images.device)[:, None] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror left and right the images whose `flip` (bool, `(B,)`) is set."""
    return torch.where(flip.view(-1, 1, 1, 1).bool(), images.flip(-1), images)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur image b with a Gaussian of `sigma[b]` pixels, cut to an odd `kernel_size`, borders reflected.

    Raises UserError for an even kernel, or one that reaches past the reflected border.
    """
    if kernel_size < 1 or kernel_size % 2 == 0 or kernel_size // 2 >= min(images.shape[-2:]):
        raise UserError(f"kernel_size must be odd, positive and less than twice the image size, not {kernel_size}")
    planes, weight = planes_of(images), gaussian(sigma, kernel_size)
    rows, columns = (
        Lines(send(neighbours(kernel_size, extent), images.device), weight).of(planes, extent)
        for extent in images.shape[-2:]
    )
    return separable(images, rows, columns).contiguous()


def affine(images: Tensor, angle: Tensor, translate: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Rotate by `angle` and shear by `shear` (radians, `(B,)`), scale, shift by `translate` (`(B, 2)`, fractions of the
    image, x then y) about the centre; bilinear, black outside."""
    cos, sin, tan = angle.cos() / scale, angle.sin() / scale, shear.tan()
    # Each output pixel looks up its source: the inverse of rotate ∘ shear ∘ scale. Written out, because the matrix
    # products of `affine_grid` would be rounded to 10 or 8 bits by TensorFloat-32 or autocast.
    height, width = images.shape[-2:]
    x, y = ((2 * torch.arange(n, device=images.device) + 1) / n - 1 for n in (width, height))
    x, y = x - 2 * translate[:, :1], y - 2 * translate[:, 1:]  # (B, W), (B, H), in [-1, 1] but for the shift
    source_x = (cos + tan * sin)[:, None, None] * x[:, None] + (sin - tan * cos)[:, None, None] * y[:, :, None]
    source_y = cos[:, None, None] * y[:, :, None] - sin[:, None, None] * x[:, None]
    return F.grid_sample(images, torch.stack([source_x, source_y], 3), align_corners=False)


# ---- Crop boxes ----------------------------------------------------------------------------------------------------

CROP_TRIES = 10


def crop_draws(n: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers `(n, 2·CROP_TRIES + 2)` from which `crop_boxes` makes boxes, whatever the image's size."""
    return torch.rand(n, 2 * CROP_TRIES + 2, generator=generator)


def crop_boxes(draws: Tensor, height: int, width: int, scale, ratio) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
