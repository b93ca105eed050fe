"""Masked images: patches that are hidden, and the error of what is said of them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from aavae.errors import UserError
from aavae.models import Model
from aavae.models.diagnostics import cloud
from aavae.models.output import full
from aavae.models.pairs import unit


def patches(x: Tensor, size: int) -> Tensor:
    """Images `(B, C, H, W)` → patches `(B, L, size²·C)`, row by row, in a patch pixel by pixel."""
    b, c, height, width = x.shape
    grid = x.reshape(b, c, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size * size * c)


def images(p: Tensor, size: int) -> Tensor:
    """Patches `(B, L, size²·C)` of square images → `(B, C, H, W)`."""
    rows = round(p.shape[1] ** 0.5)
    grid = p.reshape(len(p), rows, rows, size, size, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(p), -1, rows * size, rows * size)


def moments(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, `(B, L, 1)`: √(unbiased variance + 10⁻⁶)."""
    return target.mean(-1, keepdim=True), (target.var(-1, keepdim=True) + 1e-6).sqrt()


def masked_error(predicted: Tensor, target: Tensor, hidden: Tensor, normalised: bool) -> Tensor:
    """The squared error of patches `(B, L, D)`, the mean over those that are `hidden` `(B, L)` (He et al. 2022, §3).

    `normalised`: of a target with mean 0 and variance 1 in each patch. It is near 1 then where nothing is known.
    """
    if normalised:
        mean, std = moments(target)
        target = (target - mean) / std
    return ((predicted - target).square().mean(-1) * hidden).sum() / hidden.sum()


class Masked(Model):
    """Most patches of a view are hidden, and are reconstructed from the others.

    A subclass calls `divide`, and defines `predict`. The target is the view itself.
    """

    judged_by = "x_hat"
    whole = False
    patch_size: int
    kept: int  # patches of an image that are seen
    norm_pixels = True

    def divide(
        self, image_size: int, patch_size: int, mask_ratio: float, whole: Callable[[float], int] = math.floor
    ) -> None:
        """Set how images fall into patches, and how many are seen, a number made `whole`.

        Raises UserError where they do not, or where nothing is left to see or to hide.
        """
        if not 1 <= patch_size <= image_size or image_size % patch_size:
            raise UserError(f"images of {image_size} pixels cannot be divided into patches of {patch_size}")
        n = (image_size // patch_size) ** 2
        self.kept = whole(round(n * (1 - mask_ratio), 6))
        if not 0 < self.kept < n:
            raise UserError(
                f"model.mask_ratio={mask_ratio} of {n} patches must leave some to see and some to hide; smaller "
                "patches help"
            )
        self.patch_size, self.noise_dim = patch_size, n

    def predict(self, view: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What the patches of `view` `(B, 3, H, W)` may be, `(B, L, D)`, from those whose places are `seen`
        `(B, kept)`; normalised if `norm_pixels`. With them h of what is seen, `(B, output_dim)`."""
        raise NotImplementedError

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The error where the view is hidden: the patches with the largest noise, in float32 or wider.

        Returns h of what is seen, of length 1, and the loss.
        """
        assert noise is not None  # the trainer draws noise_dim numbers an image
        seen = noise.argsort(1)[:, : self.kept]
        predicted, h = self.predict(views[0], seen)
        target = patches(full(views[0]), self.patch_size)
        return unit(h), {"loss": masked_error(full(predicted), target, self._hidden(seen), self.norm_pixels)}

    def measure(self, output: Tensor, x: Tensor, clean, std: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """How h, at length 1, fills its space: `spread`, which is 0 when all images look alike, and `rank`."""
        return cloud(output)

    def about(self) -> str:
        """How much is seen."""
        return f"{self.kept} of {self.noise_dim} patches seen"

    def picture(self, view: Tensor) -> dict[str, Tensor]:
        """What is seen of the views, and the same with the predictions in the gaps; the mask is always the same."""
        noise = torch.rand(len(view), self.noise_dim, generator=torch.Generator().manual_seed(0)).to(view.device)
        seen = noise.argsort(1)[:, : self.kept]
        target, hidden = patches(view.float(), self.patch_size), self._hidden(seen)[..., None]
        predicted = full(self.predict(view, seen)[0])
        if self.norm_pixels:
            mean, std = moments(target)
            predicted = predicted * std + mean
        rows = {"seen": target * ~hidden, "reconstruction": torch.where(hidden, predicted, target)}
        return {name: images(row, self.patch_size) for name, row in rows.items()}

    def _hidden(self, seen: Tensor) -> Tensor:
        every = torch.ones(len(seen), self.noise_dim, dtype=torch.bool, device=seen.device)
        return every.scatter(1, seen, False)
