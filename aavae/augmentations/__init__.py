"""Views of an image, a draw per image: the batched operations that distributions over views are made of.

Operations are functions on float32 images `(B, C, H, W)` in [0, 1]; each equals torchvision's functional operation on
the same parameters.
"""

from aavae.augmentations.colors import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    grayscale,
)
from aavae.augmentations.crops import crop_boxes, crop_draws, padded_crop
from aavae.augmentations.operations import affine, gaussian_blur, horizontal_flip, resized_crop, solarize

__all__ = (
    "adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation", "affine", "color_jitter", "crop_boxes",
    "crop_draws", "gaussian_blur", "grayscale", "horizontal_flip", "padded_crop", "resized_crop", "solarize",
)  # fmt: skip
