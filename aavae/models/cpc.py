"""CPC v2 (Hénaff et al. 2020): from the patches above, predict those some rows below."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models import Model
from aavae.models.diagnostics import cloud
from aavae.models.output import full
from aavae.models.pairs import unit
from aavae.runtime.device import without_autocast

UNITS = 5  # residual units of the context network
SCALE = 0.1  # of predictions
WEIGHTINGS = ("listing", "bolts")


def prediction_loss(prediction: Tensor, target: Tensor, offset: int) -> Tensor:
    """InfoNCE of predictions and targets `(B, D, H, W)`: row r predicts row r + `offset` of its column, among all
    positions of all images of the batch; in nats, mean over positions.

    Scores are inner products of targets with 0.1 times the predictions (the listing in the appendix of Hénaff et al.).
    """
    n, dim, height, width = target.shape
    candidates = target.permute(0, 2, 3, 1).reshape(-1, dim)  # (B·H·W, D)
    asked = prediction[:, :, : height - offset].permute(0, 2, 3, 1).reshape(-1, dim)
    place = torch.arange(n * height * width, device=target.device).view(n, height, width)[:, offset:]
    return F.cross_entropy(SCALE * asked @ candidates.T, place.flatten())


class Unit(nn.Module):
    """A residual unit that sees its own row, the row above, and a column to either side."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.narrow = nn.Conv2d(channels, hidden, 1)
        self.across = nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(hidden, hidden, (2, 1))
        self.widen = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.across(F.relu(self.narrow(x)))
        y = self.down(F.pad(y, (0, 0, 1, 0)))  # a row of zeros on top
        return x + self.widen(F.relu(y))


class CPC(Model):
    """An encoder of patches, a context network that sees the rows above, and a prediction for each offset.

    `offsets` are rows below. `weighting=listing` takes the mean over them; `bolts` the sum over all offsets from 2 on,
    offset d counted d − 1 times, with one prediction for all, as Lightning Bolts has it. At chance each is log(B·H·W).
    Raises UserError for an encoder without a `grid`, for offsets that leave it, and for an unknown weighting.
    """

    per_image = False

    def __init__(
        self,
        encoder: nn.Module,
        offsets: Sequence[int] = (3, 4, 5),
        hidden_dim: int = 256,
        output_dim: int = 64,
        weighting: str = "listing",
    ):
        super().__init__()
        if not hasattr(encoder, "grid"):
            raise UserError("cpc predicts patches of an image; choose encoder=patches18, patches50 or patches_tiny")
        if weighting not in WEIGHTINGS:
            raise UserError(f"model.weighting must be {' or '.join(WEIGHTINGS)}, not {weighting!r}")
        rows: Any = encoder.rows
        if not offsets or not all(isinstance(d, int) and 0 < d < rows for d in offsets):
            raise UserError(f"model.offsets must be rows below, 1 to {rows - 1} on this grid, not {list(offsets)}")
        every = weighting == "bolts"
        self.weights = {d: d - 1.0 for d in range(2, rows)} if every else {d: 1 / len(offsets) for d in offsets}
        self.encoder = encoder
        width: Any = encoder.output_dim
        self.context = nn.Sequential(*(Unit(width, hidden_dim) for _ in range(UNITS)), nn.ReLU())
        self.target = nn.Conv2d(width, output_dim, 1)
        self.predictions = nn.ModuleList(nn.Conv2d(width, output_dim, 1) for _ in ([0] if every else self.weights))

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over offsets, over the batch of all processes; with it the unit vectors of h."""
        grid = self.encoder.grid(views[0])  # type: ignore[operator]
        context, target = self.context(grid), self.processes.gather(full(self.target(grid)))
        losses = []
        for i, (offset, weight) in enumerate(self.weights.items()):
            prediction = full(self.predictions[i % len(self.predictions)](context))
            with without_autocast(x.device):
                losses.append(weight * prediction_loss(self.processes.gather(prediction), target, offset))
        return unit(grid.mean((2, 3))), {"loss": torch.stack(losses).sum()}

    def measure(self, output: Tensor, x: Tensor, clean, std: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """How h, at length 1, fills its space: `spread`, which is 0 when all images look alike, and `rank`."""
        return cloud(output)
