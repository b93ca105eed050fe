"""The bytes of an image file → 8-bit RGB: every bit depth scaled, or refused for a reason that can be named."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

LONGEST = 100  # times the shorter side: more than that would take gigabytes once the shorter side is resized
LIMIT = 300_000_000  # pixels; in RGB they take 0.9 GB
FILE_LIMIT = 2**30  # bytes of a file, or of what a zip says that it holds

# PIL's own limits are for images of strangers; it warns above this number of pixels.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, LIMIT)


class Unreadable(Exception):
    """Why an image cannot be used, as what follows its name in a sentence."""


def refuse_large(size: int) -> None:
    """Raise Unreadable for a file of too many bytes, before they are read."""
    if size > FILE_LIMIT:
        raise Unreadable(
            f"takes {size / 1e9:.1f} GB, more than the {FILE_LIMIT / 1e9:.1f} GB of the largest that is read"
        )


def rgb(data: bytes) -> Image.Image:
    """The image in RGB, 8 bits a channel, upright as its EXIF data says. Raises Unreadable.

    Of 16 bits the upper eight are kept; 32-bit integers and floats, whose range nobody knows, are refused.
    """
    if not data:
        raise Unreadable("is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        refuse_pixels(*image.size)
        shift = _shift(image)
        image.load()
        image = _upright(image)
        if shift is not None:
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> shift).clip(0, 255).astype(np.uint8))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(f"has more than the {LIMIT / 1e6:,.0f} megapixels of the largest that is read") from error
    except UnidentifiedImageError as error:
        raise Unreadable("is damaged, or of a kind that PIL does not read") from error
    except Exception as error:  # PIL's plugins raise some fifteen kinds
        raise Unreadable(f"is damaged ({str(error) or type(error).__name__})") from error


def refuse_pixels(width: int, height: int) -> None:
    """Raise Unreadable for an image of too many pixels, or all but a line, before they are decoded."""
    if width * height > LIMIT:
        size = f"{width * height / 1e6:,.0f} megapixels ({width:,}×{height:,})"
        raise Unreadable(f"has {size}, more than the {LIMIT / 1e6:,.0f} of the largest that is read")
    if max(width, height) > LONGEST * min(width, height):
        raise Unreadable(f"is {width:,}×{height:,} pixels, with one side more than {LONGEST} times the other")


def _shift(image: Image.Image) -> int | None:
    """By how many bits a grey image of more than eight is shifted to eight; None for the other kinds."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))  # of TIFF: some have 12
        return max(0, (bits[0] if isinstance(bits, tuple) else bits) - 8)
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # which PIL scales to 16 bits, or reads as such
        return 8
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "32-bit floats"
        raise Unreadable(f"holds {kind}, whose range of values is unknown; save it with 8 or 16 bits a channel")
    if image.mode == "LAB":
        raise Unreadable("is in the colour space LAB; save it in RGB")
    return None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, OverflowError, OSError):
        return image  # EXIF data that nobody can read says nothing; the pixels are whole


def torchvision_functional():
    """torchvision's operations on images."""
    from torchvision.transforms import functional  # takes seconds, which images of the right size need not wait

    return functional


def square(image: Image.Image, size: int, resize: int | None = None) -> Tensor:
    """The image resized (shorter side to `resize`, or `size`; bilinear), centre-cropped: uint8 `(3, size, size)`."""
    if image.size != (size, size) or (resize or size) != size:
        tvf = torchvision_functional()
        image = tvf.center_crop(tvf.resize(image, resize or size, antialias=True), [size, size])
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))
