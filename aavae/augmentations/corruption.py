"""Corrupted images, for denoising autoencoders: noise that knows nothing of the domain."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aavae.augmentations.pipeline import Pipeline, coin, probability
from aavae.errors import UserError
from aavae.runtime.device import send


class Corruption(Pipeline):
    """Gaussian noise of `noise` standard deviations of the dataset's pixels, and pixels that are replaced by its `mean`
    with probability `drop_p`, all channels at once (Vincent et al. 2010, §3.3)."""

    def __init__(self, noise: float, drop_p: float, mean: Sequence[float], std: Sequence[float]):
        if not noise >= 0:
            raise UserError(f"augmentation.noise must be 0 or more, not {noise}")
        self.noise, self.drop_p = noise, probability("drop_p", drop_p)
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))
        self.augments = noise > 0 or drop_p > 0

    def draw(self, n: int, size: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The noise of every value, in [0, 1] units, and which pixels are dropped."""
        return {
            "noise": self.noise * self.std * torch.randn(n, 3, size, size, generator=generator),
            "drop": coin(n * size * size, self.drop_p, generator).view(n, 1, size, size),
        }

    def apply(self, images: Tensor, draws: dict[str, Tensor], cropped: bool = False) -> Tensor:
        """The views `(B, 3, H, W)`, which may leave [0, 1]."""
        draws = {name: send(parameter, images.device) for name, parameter in draws.items()}
        mean = send(self.mean, images.device).to(images.dtype)
        return torch.where(draws["drop"], mean, images + draws["noise"])

    def __str__(self) -> str:
        return f"noise of {self.noise:g} standard deviations, {self.drop_p:.0%} of pixels dropped"
