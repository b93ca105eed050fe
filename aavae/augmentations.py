"""Batched augmentations with one parameter per image; `pipelines` draws the parameters.

Operations are functions on float32 images `(B, C, H, W)` in [0, 1]; each equals torchvision's functional operation on
the same parameters.
"""

import contextlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.runtime import send

GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, as torchvision rounds it


def _per_image(parameter: Tensor) -> Tensor:
    return parameter.reshape(-1, 1, 1, 1)


@contextlib.contextmanager
def _full_precision():
    # Pixels are interpolated by matrix products, which TensorFloat-32 or autocast would round to 10 or 8 bits.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one linear map per image to its rows `(B, h, H)` and one to its columns `(B, w, W)`."""
    b, c, height, width = images.shape
    with _full_precision(), torch.autocast(images.device.type, enabled=False):
        wide = images.reshape(b, c * height, width) @ columns.transpose(1, 2)  # (B, C·H, w)
        wide = wide.view(b, c, height, -1)
        return rows[:, None] @ wide  # (B, C, h, w)


def _interpolation(start: Tensor, length: Tensor, size: int, extent: int) -> Tensor:
    """Matrices `(B, size, extent)` that resample [start, start+length) of a line of `extent` pixels bilinearly."""
    grid = torch.arange(size, device=start.device, dtype=torch.float32)
    source = (grid + 0.5) * (length[:, None] / size) - 0.5  # pixel centres, relative to the crop
    # Clamped to the crop box: what lies outside the crop must not bleed in at its border.
    source = torch.minimum(source.clamp(min=0), length[:, None] - 1) + start[:, None]
    pixels = torch.arange(extent, device=start.device, dtype=torch.float32)
    return (1 - (source[:, :, None] - pixels).abs()).clamp(min=0)


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int | tuple[int, int]
) -> Tensor:
    """Crop image b to rows [top, top+height) and columns [left, left+width), resized bilinearly to `size` (a number,
    or height and width).

    The box parameters are `(B,)`, in pixels. Meant for `size` no smaller than the crop: shrinking is not anti-aliased.
    """
    top, left, height, width = (t.to(images.device, torch.float32) for t in (top, left, height, width))
    tall, wide = (size, size) if isinstance(size, int) else size
    rows = _interpolation(top, height, tall, images.shape[-2])
    return _separable(images, rows, _interpolation(left, width, wide, images.shape[-1]))


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
    return torch.where(_per_image(flip).bool(), images.flip(-1), images)


def _luma(images: Tensor) -> Tensor:
    r, g, b = images.unbind(1)
    return (GRAY[0] * r + GRAY[1] * g + GRAY[2] * b).unsqueeze(1)  # (B, 1, H, W)


def _blend(images: Tensor, reference: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(reference, images, _per_image(factor).to(images.dtype)).clamp_(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale image b by `factor[b]` ≥ 0, clamped to [0, 1]."""
    return _blend(images, images.new_zeros(()), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend image b with its mean gray level: 0 gives that gray, 1 the image."""
    return _blend(images, _luma(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend image b with its grayscale version: 0 gives grayscale, 1 the image."""
    return _blend(images, _luma(images), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue of image b by `factor[b]` of the colour circle, factor in [-0.5, 0.5] (through HSV)."""
    value, low = images.amax(1), images.amin(1)  # (B, H, W)
    r, g, b = images.unbind(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    sextant = sextant + 6 * factor.view(-1, 1, 1).to(images.dtype)
    # HSV → RGB: channel n loses chroma by how far its own hue lies from the pixel's.
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(sextant + n, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def grayscale(images: Tensor) -> Tensor:
    """The luma of each image, in all of its channels."""
    return _luma(images).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur image b with a Gaussian of `sigma[b]` pixels, cut to an odd `kernel_size`, borders reflected.

    Raises UserError for an even kernel, or one that reaches past the reflected border.
    """
    if kernel_size < 1 or kernel_size % 2 == 0 or kernel_size // 2 >= min(images.shape[-2:]):
        raise UserError(f"kernel_size must be odd, positive and less than twice the image size, not {kernel_size}")
    offsets = torch.arange(kernel_size, device=images.device) - kernel_size // 2
    weights = torch.exp(-0.5 * (offsets / sigma.view(-1, 1).to(images.dtype)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # (B, k)

    def matrix(extent: int) -> Tensor:
        position = torch.arange(extent, device=images.device)[:, None] + offsets  # (extent, k)
        position = (extent - 1 - (extent - 1 - position.abs()).abs()).expand(len(weights), -1, -1)  # reflected
        blank = images.new_zeros(len(weights), extent, extent)
        return blank.scatter_add_(2, position, weights[:, None].expand_as(position).to(images.dtype))

    return _separable(images, matrix(images.shape[-2]), matrix(images.shape[-1]))


def affine(images: Tensor, angle: Tensor, translate: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Rotate by `angle` and shear by `shear` (radians, `(B,)`), scale, shift by `translate` (`(B, 2)`, fractions of the
    image, x then y) about the centre; bilinear, black outside."""
    cos, sin, tan = angle.cos() / scale, angle.sin() / scale, shear.tan()
    # Each output pixel looks up its source: the inverse of rotate ∘ shear ∘ scale.
    top = torch.stack([cos + tan * sin, sin - tan * cos], 1)
    inverse = torch.stack([top, torch.stack([-sin, cos], 1)], 1)  # (B, 2, 2)
    with _full_precision(), torch.autocast(images.device.type, enabled=False):
        shift = -(inverse @ (2 * translate)[:, :, None])
        grid = F.affine_grid(torch.cat([inverse, shift], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def color_jitter(images: Tensor, factors: Tensor, order: Tensor, chosen: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue by `factors` `(B, 4)`, in each image's own `order` `(B, 4)`.

    `factors`, `order` and `chosen` (bool, `(B,)`: whose turn it is at all) live on the CPU, so that the images of each
    turn are known without asking the device.
    """
    device = images.device
    order = torch.where(chosen[:, None], order, -1)
    # The factor of each turn's blend; 1 leaves an image as it is: where it has no turn, and where hue has its turn.
    blends = torch.where((order >= 0) & (order != HUE), factors.gather(1, order.clamp(min=0)), 1.0)
    operations, blends = send(order, device), send(blends, device)
    for turn in range(4):
        operation = _per_image(operations[:, turn])
        gray = _luma(images)
        reference = torch.where(operation == CONTRAST, gray.mean((2, 3), keepdim=True), gray)
        reference = torch.where(operation == BRIGHTNESS, 0.0, reference)
        images = _blend(images, reference, blends[:, turn])
        turned = (order[:, turn] == HUE).nonzero()[:, 0]
        if len(turned):
            where, factor = send(turned, device), send(factors[turned, HUE], device)
            images = images.index_copy(0, where, adjust_hue(images[where], factor))
    return images


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
