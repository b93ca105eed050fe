"""SimCLR's views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aavae.augmentations import whole_batch
from aavae.augmentations.crops import crop_boxes, crop_draws
from aavae.augmentations.operations import solarize
from aavae.augmentations.pipeline import Pipeline, coin, probability, uniform
from aavae.errors import UserError
from aavae.runtime.device import send


class SimCLRViews(Pipeline):
    """SimCLR's pipeline per image: crop, flip, colour jitter in its own order, grayscale, blur, and solarisation
    (docs/reproduction.md).

    Every image has its own coin for each step. `strength` s scales the jitter to (.8s, .8s, .8s, .2s) of brightness,
    contrast, saturation and hue, unless `jitter` gives the four; `blur_p` > 0 blurs with an odd kernel of about a tenth
    of the image. `blur_p` and `solarize_p` may be lists: a probability for each of several views.
    """

    crops = True

    def __init__(
        self,
        strength: float,
        blur_p: float | Sequence[float],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip_p: float = 0.5,
        jitter_p: float = 0.8,
        grayscale_p: float = 0.2,
        blur_sigma: Sequence[float] = (0.1, 2.0),
        jitter: Sequence[float] | None = None,
        solarize_p: float | Sequence[float] = 0.0,
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
        self.grayscale_p = probability("grayscale_p", grayscale_p)
        self.blur_p, self.solarize_p = blur_p, solarize_p
        self._by_view = _of_views("blur_p", blur_p), _of_views("solarize_p", solarize_p)
        self.jitter = [0.8 * strength] * 3 + [0.2 * strength] if jitter is None else list(jitter)
        if len(self.jitter) != 4 or not all(0 <= reach <= 1 for reach in self.jitter) or self.jitter[3] > 0.5:
            raise UserError(
                "augmentation.jitter must be four numbers up to 1, the last one (of the hue) up to 0.5, or null; not "
                f"{self.jitter}"
            )

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The parameters of the first view; of several: `draws`."""
        return self._draw(n, generator, 0)

    def draws(self, n: int, size: int, generators: Sequence[torch.Generator]) -> list[dict[str, Tensor]]:
        """The parameters of several views of each image, each with probabilities of its own."""
        return [self._draw(n, generator, v) for v, generator in enumerate(generators)]

    def _draw(self, n: int, generator: torch.Generator | None, view: int) -> dict[str, Tensor]:
        """Crop numbers, coins, jitter factors (columns: brightness, contrast, saturation, hue), order, blur sigma."""
        low, high = self.blur_sigma
        blur_p, solarize_p = (p[view % len(p)] for p in self._by_view)
        draws = {
            "crop": crop_draws(n, generator),
            "flip": coin(n, self.flip_p, generator),
            "jitter": coin(n, self.jitter_p, generator),
            "order": torch.rand(n, 4, generator=generator).argsort(1),
            "factors": self._factors(n, generator),
            "gray": coin(n, self.grayscale_p, generator),
            "blur": coin(n, blur_p, generator),
            "sigma": uniform(n, low, high, generator),
        }
        if solarize_p:
            draws["solarize"] = coin(n, solarize_p, generator)
        return draws

    def _factors(self, n: int, generator: torch.Generator | None) -> Tensor:
        *reaches, hue = self.jitter
        drawn = torch.rand(3 * n, generator=generator).view(n, 3).unbind(1)
        factors = [(1 - reach) + ((1 + reach) - (1 - reach)) * t for reach, t in zip(reaches, drawn, strict=True)]
        return torch.stack([*factors, uniform(n, -hue, hue, generator)], 1)

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, 3, H, W)` of float images in [0, 1], in torchvision's order of operations."""
        height, width = images.shape[-2:]
        draws = dict(draws)
        inverted = draws.pop("solarize", None)
        if cropped:
            whole = torch.tensor([[0.0, 0.0, height, width]]).expand(len(images), -1)
            views = whole_batch.views(images, draws, whole.unbind(1), (height, width))
        else:
            boxes = crop_boxes(draws["crop"], height, width, self.scale, self.ratio)
            views = whole_batch.views(images, draws, boxes, (width, width))
        return views if inverted is None else solarize(views, send(inverted, views.device))

    def __str__(self) -> str:
        low, high = self.scale
        blur = "/".join(f"{p:g}" for p in dict.fromkeys(self._by_view[0]))
        return f"SimCLR of strength {self.strength:g} ({low:g}–{high:g} of the area, blur p={blur})"


def _of_views(name: str, p: float | Sequence[float]) -> tuple[float, ...]:
    """A probability for each view, the last ones for all that follow in turn."""
    given = tuple(p) if isinstance(p, Sequence) else (p,)
    if not given:
        raise UserError(f"augmentation.{name} must be a probability, or one for each view")
    return tuple(probability(name, value) for value in given)


class ResizedCrops(SimCLRViews):
    """Random resized crops and flips: SimCLR's pipeline without colours, as classifiers are trained with."""

    def __init__(
        self, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3), flip_p: float = 0.5
    ):
        super().__init__(0.0, 0.0, scale, ratio, flip_p, jitter_p=0.0, grayscale_p=0.0)

    def __str__(self) -> str:
        low, high = self.scale
        return f"random resized crops ({low:g}–{high:g} of the area), flips p={self.flip_p:g}"
