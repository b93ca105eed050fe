"""Operations on the geometry and the sharpness of a batch of images, one parameter per image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.augmentations.resampling import Lines, bilinear, gaussian, neighbours, planes_of, separable
from aavae.errors import UserError
from aavae.runtime.device import send


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


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror left and right the images whose `flip` (bool, `(B,)`) is set."""
    return torch.where(flip.view(-1, 1, 1, 1).bool(), images.flip(-1), images)


def solarize(images: Tensor, invert: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert the pixels at or above `threshold` in the images whose `invert` (bool, `(B,)`) is set."""
    return torch.where(invert.view(-1, 1, 1, 1) & (images >= threshold), 1 - images, images)


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
