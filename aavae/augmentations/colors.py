"""Colours of float32 images `(B, 3, H, W)` in [0, 1], with parameters per image.

Functions whose names end in `_` change the images that they are given; each of the others equals torchvision's
functional operation on the same parameters.
"""

import torch
from torch import Tensor

from aavae.runtime.device import send

GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, as torchvision rounds it
BRIGHTNESS, CONTRAST, SATURATION, HUE, NEVER = range(5)


def luma(images: Tensor) -> Tensor:
    """Gray levels `(B, 1, H, W)`."""
    red, green, blue = images.unbind(1)
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])[:, None]


def _blend(images: Tensor, reference: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(reference, images, factor.view(-1, 1, 1, 1).to(images.dtype)).clamp_(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale image b by `factor[b]` ≥ 0, clamped to [0, 1]."""
    return _blend(images, images.new_zeros(()), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend image b with its mean gray level: 0 gives that gray, 1 the image."""
    return _blend(images, luma(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend image b with its grayscale version: 0 gives grayscale, 1 the image."""
    return _blend(images, luma(images), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue of image b by `factor[b]` of the colour circle, factor in [-0.5, 0.5] (through HSV)."""
    turned = images.clone()
    _turn_hue_(turned, factor.view(-1, 1, 1).to(images.dtype))
    return turned


def grayscale(images: Tensor) -> Tensor:
    """The luma of each image, in all of its channels."""
    return luma(images).expand_as(images)


def color_jitter(images: Tensor, factors: Tensor, order: Tensor, chosen: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue by `factors` `(B, 4)`, in each image's own `order` `(B, 4)`.

    `factors`, `order` and `chosen` (bool, `(B,)`: whose turn it is at all) live on the CPU, so that the images of each
    turn are known without asking the device.
    """
    turns, arrangement = hue_turns(order, chosen).sort(stable=True)
    jittered = images.index_select(0, send(arrangement, images.device))
    factors, order = factors[arrangement].to(images.dtype), order[arrangement]
    blends, hue = send(blend_shares(factors, order), images.device), send(factors[:, HUE, None, None], images.device)
    jitter_(jittered, turns, blends, hue)
    return jittered.index_select(0, send(arrangement.argsort(), images.device))


# ---- In place -----------------------------------------------------------------------------------------------------


def luma_shares(chosen: Tensor) -> Tensor:
    """What `luma_` takes, `(B, 3, 1, 1)`: shares that make the luma of `chosen` images, and the red of the others."""
    return torch.where(chosen[:, None], torch.tensor(GRAY), torch.tensor([1.0, 0.0, 0.0]))[..., None, None]


def luma_(images: Tensor, shares: Tensor) -> None:
    """Put the luma of some images into their red channel; `shares` are `luma_shares`."""
    (red, green, blue), (r, g, b) = images.unbind(1), shares.unbind(1)
    red.mul_(r).addcmul_(green, g).addcmul_(blue, b)


def hue_turns(order: Tensor, chosen: Tensor) -> Tensor:
    """The turn, 0 to 3, at which each image's hue comes in its `order`; NEVER for images that are not `chosen`."""
    return torch.where(chosen, (order == HUE).int().argmax(1), NEVER)


def blend_shares(factors: Tensor, order: Tensor) -> Tensor:
    """What `jitter_` takes, `(B, 3, 3, 1, 1, 1)`: for each blend in its order the shares of the image, of its luma and
    of the mean of that."""
    blends = order[order != HUE].view(-1, 3)
    image = factors.gather(1, blends)
    gray = torch.where(blends == SATURATION, 1 - image, 0.0)
    mean = torch.where(blends == CONTRAST, 1 - image, 0.0)
    return torch.stack([image, gray, mean], 2)[..., None, None, None]


def jitter_(images: Tensor, turns: Tensor, blends: Tensor, hue: Tensor) -> None:
    """Jitter images that come in the order of their `hue_turns`; `blends` are `blend_shares`, `hue` is `(B, 1, 1)`.

    Brightness, contrast and saturation are blends, hue is the odd one out. Of an image's three blends, blend j comes
    before the hue if that has a later turn than j. So nothing is done twice, the hues are turned together, and images
    that share a step lie side by side.
    """
    ends = torch.searchsorted(turns, torch.arange(NEVER), right=True).tolist()  # of the images of each turn
    for j in range(3):
        _blend_(images[ends[j] : ends[-1]], blends[ends[j] : ends[-1], j])
    if ends[-1]:
        _turn_hue_(images[: ends[-1]], hue[: ends[-1]])
    for j in range(3):
        _blend_(images[: ends[j]], blends[: ends[j], j])


def _blend_(images: Tensor, shares: Tensor) -> None:
    if not len(images):
        return
    image, gray, mean = shares.unbind(1)
    reference = luma(images)
    mean = mean * reference.mean((2, 3), keepdim=True)
    torch.addcmul(reference.mul_(gray).add_(mean), images, image, out=images).clamp_(0, 1)


def _turn_hue_(images: Tensor, factor: Tensor) -> None:
    # Some thirty passes over planes: they share what memory they can, so that it stays in the cache.
    red, green, blue = images.unbind(1)
    value, low = torch.maximum(green, blue), torch.minimum(green, blue)
    torch.maximum(value, red, out=value)
    torch.minimum(low, red, out=low)
    chroma = value - low
    # Counted from red towards green, 6·hue = ±((V - R) + (G - m) + (B - m)) / C, where m is the lowest channel, and the
    # sign that of G - B. Gray has no chroma C, and any hue.
    sextants, spare = (value - red).add_(green).add_(blue).sub_(low, alpha=2), low
    sextants.copysign_(torch.sub(green, blue, out=spare))
    hue = torch.addcdiv(factor, sextants, torch.clamp(chroma, min=1e-12, out=spare), value=1 / 6, out=sextants)
    hue.sub_(torch.round(hue, out=spare))  # back to half a turn on either side
    # HSV → RGB: R = V - C·clamp(6·|hue| - 1, 0, 1), G and B = V - C·clamp(2 - 6·|hue ± 1/6|, 0, 1).
    distance = torch.abs(hue, out=spare).clamp_(1 / 6, 1 / 3)
    torch.addcmul(torch.add(value, chroma, out=red), chroma, distance, value=-6, out=red)
    value.sub_(chroma, alpha=2)
    torch.add(hue, 1 / 6, out=distance).abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(value, chroma, distance, value=6, out=green)
    torch.sub(hue, 1 / 6, out=distance).abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(value, chroma, distance, value=6, out=blue)
