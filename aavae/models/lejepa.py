"""LeJEPA (Balestriero and LeCun 2025): views agree, and their vectors look like a standard normal from every side."""

import torch
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.runtime.device import without_autocast

KNOTS, LARGEST = 17, 3.0  # frequencies of the characteristic function, and the largest one


def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """How far vectors `(V, N, D)`, seen along unit `directions` `(S, D)`, are from standard normal ones; the mean over
    views and directions.

    N·∫ |φ(t) − e^{−t²/2}|² e^{−t²/2} dt over [−3, 3], φ the empirical characteristic function (Epps and Pulley 1983),
    by the trapezoidal rule.
    """
    t = torch.linspace(0, LARGEST, KNOTS, dtype=z.dtype, device=z.device)
    normal = (-t.square() / 2).exp()
    angles = (z @ directions.T)[..., None] * t  # (V, N, S, knots)
    error = (angles.cos().mean(-3) - normal).square() + angles.sin().mean(-3).square()
    return 2 * z.shape[-2] * torch.trapezoid(error * normal, t).mean()  # both signs of t


class LeJEPA(Pair):
    """Encoder and projection; the loss is λ·SIGReg + (1 − λ)·(mean squared distance of the views to their mean).

    `weight` is λ; `directions` are drawn anew for each step. Raises UserError for a weight outside [0, 1].
    """

    per_image = False

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 2048,
        output_dim: int = 128,
        weight: float = 0.05,
        directions: int = 1024,
        together: bool = True,
    ):
        super().__init__()
        if not 0 <= weight <= 1:
            raise UserError(f"model.weight must lie between 0 and 1, not {weight}")
        if not isinstance(directions, int) or directions < 1:
            raise UserError(f"model.directions must be a whole number of 1 or more, not {directions}")
        self.output_dim, self.weight, self.together = output_dim, weight, together
        self.directions = directions
        self.encoder = encoder
        self.projection = mlp(encoder.output_dim, hidden_dim, output_dim, last_bias=True)
        self.noise_dim = 4 * output_dim  # as many directions an image as a batch of 256 needs; see `begin`

    def begin(self, total_steps: int, batch_size: int) -> None:
        """See `Model.begin`."""
        super().begin(total_steps, batch_size)
        self.noise_dim = -(-self.directions // batch_size) * self.output_dim

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Over the batch of all processes, in float32 or wider; both terms are logged."""
        assert noise is not None  # the trainer draws noise_dim numbers an image
        own = self.project(views)
        z = self.processes.gather(own, 1)
        directions = unit(self.processes.gather(full(noise)).reshape(-1, self.output_dim))[: self.directions]
        with without_autocast(z.device):
            terms = {"sigreg": sigreg(z, directions), "invariance": (z - z.mean(0)).square().mean()}
            loss = self.weight * terms["sigreg"] + (1 - self.weight) * terms["invariance"]
        return unit(own), {"loss": loss} | {name: value.detach() for name, value in terms.items()}
