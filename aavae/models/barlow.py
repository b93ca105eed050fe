"""Barlow Twins (Zbontar et al. 2021): the correlations between the views' components become the identity."""

import torch
from torch import Tensor, nn

from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.runtime.device import without_autocast


def cross_correlation_loss(a: Tensor, b: Tensor, redundancy: float) -> Tensor:
    """Σ_d (C_dd − 1)² + λ·Σ_{d≠e} C_de² of vectors `(B, D)`, C the correlation of their components over the batch
    (Zbontar et al., Eq. 1 and 2), with a biased variance and 10⁻⁵ as in BatchNorm."""
    a, b = (_standardised(full(z)) for z in (a, b))
    correlation = a.T @ b / len(a)
    error = (correlation - torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)).square()
    on = error.diagonal().sum()
    return on + redundancy * (error.sum() - on)


def _standardised(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()


class BarlowTwins(Pair):
    """Encoder and projection; `scale` multiplies the loss, which is near D at the start."""

    per_image = False

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 2048,
        output_dim: int = 2048,
        redundancy: float = 0.005,
        scale: float = 0.1,
        together: bool = True,
    ):
        super().__init__()
        self.output_dim, self.together = output_dim, together
        self.redundancy, self.scale = redundancy, scale
        self.encoder = encoder
        self.projection = mlp(encoder.output_dim, hidden_dim, hidden_dim, output_dim, last_bias=True)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Over the batch of all processes, in float32 whatever the networks compute in."""
        z = self.project(views)
        a, b = self.processes.gather(z, 1)
        with without_autocast(z.device):
            return unit(z), {"loss": self.scale * cross_correlation_loss(a, b, self.redundancy)}
