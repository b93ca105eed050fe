"""SimCLR's augmentation as others offer it: PIL and torchvision image by image, kornia in batches."""

import random
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from aavae.augmentations.simclr import SimCLRViews

Numbers = tuple[float, float, float]
MISSING = "not installed (pip install -e '.[bench]')"


def pictures(images: Tensor) -> list[Image.Image]:
    """uint8 images `(N, 3, H, W)` as PIL images in memory."""
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]


def _strengths(ours: SimCLRViews) -> tuple[float, float, float, float]:
    return (0.8 * ours.strength,) * 3 + (0.2 * ours.strength,)


def _kernel(size: int) -> int:
    return int(0.1 * size) // 2 * 2 + 1


class Blur:
    """PIL's own Gaussian blur: faster than torchvision's, which would turn the image into a tensor and back."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


def pil(ours: SimCLRViews, size: int, mean: Numbers, std: Numbers) -> Callable[[Image.Image], Tensor]:
    """The released order on a PIL image (docs/reproduction.md) → a normalised tensor `(3, size, size)`."""
    steps = [
        transforms.RandomResizedCrop(size, ours.scale, ours.ratio),
        transforms.RandomHorizontalFlip(ours.flip_p),
        transforms.RandomApply([transforms.ColorJitter(*_strengths(ours))], ours.jitter_p),
        transforms.RandomGrayscale(ours.grayscale_p),
    ]
    if ours.blur_p:
        steps.append(transforms.RandomApply([Blur(*ours.blur_sigma)], ours.blur_p))
    return transforms.Compose([*steps, clean(mean, std)])


def clean(mean: Numbers, std: Numbers) -> Callable[[Image.Image], Tensor]:
    """A PIL image → a normalised tensor."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])


def torchvision_v2(ours: SimCLRViews, size: int, mean: Numbers, std: Numbers) -> Callable[[Tensor], Tensor]:
    """A uint8 tensor `(3, H, W)` → a normalised one: torchvision draws once for what it is given, so one by one."""
    steps = [
        v2.RandomResizedCrop(size, ours.scale, ours.ratio),
        v2.RandomHorizontalFlip(ours.flip_p),
        v2.RandomApply([v2.ColorJitter(*_strengths(ours))], ours.jitter_p),
        v2.RandomGrayscale(ours.grayscale_p),
    ]
    if ours.blur_p:
        steps.append(v2.RandomApply([v2.GaussianBlur(_kernel(size), ours.blur_sigma)], ours.blur_p))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def kornia(ours: SimCLRViews, size: int, mean: Numbers, std: Numbers) -> Callable[[Tensor], Tensor] | None:
    """Float images `(B, 3, H, W)` in [0, 1] → normalised views, a draw per image; None without kornia.

    Crops are resampled in a batch; kornia's other way cuts them out one by one, no faster on a CPU.
    """
    try:
        from kornia import augmentation as K
    except ImportError:
        return None
    steps = [
        K.RandomResizedCrop((size, size), ours.scale, ours.ratio, align_corners=False, cropping_mode="resample"),
        K.RandomHorizontalFlip(p=ours.flip_p),
        K.ColorJitter(*_strengths(ours), p=ours.jitter_p),
        K.RandomGrayscale(p=ours.grayscale_p),
    ]
    if ours.blur_p:
        steps.append(K.RandomGaussianBlur((_kernel(size),) * 2, ours.blur_sigma, p=ours.blur_p))
    return K.AugmentationSequential(*steps, K.Normalize(mean, std), data_keys=["input"], same_on_batch=False)
