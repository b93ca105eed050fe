"""SimCLR (Chen et al. 2020): two views of an image attract, views of different images repel."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.runtime.device import without_autocast


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """The normalised-temperature cross entropy of unit vectors `(2, B, D)`, the mean over all 2B, in nats.

    For vector i with positive i⁺: −s(i, i⁺)/τ + log Σ_{j≠i} exp(s(i, j)/τ) (Chen et al. 2020, Eq. 1), in float32 or
    wider: half precision would lose the small similarities in the sum.
    """
    z = full(z.flatten(0, 1))
    with without_autocast(z.device):
        logits = z @ z.T / temperature
    n = len(z) // 2
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


class SimCLR(Pair):
    """Encoder and projection head, trained by NT-Xent over two views of each image.

    The head is Linear–BatchNorm–ReLU–Linear without a last bias: 4,462,592 parameters for a ResNet-50. Raises UserError
    for a temperature that is not positive.
    """

    per_image = False

    def __init__(
        self,
        encoder: nn.Module,
        temperature: float = 0.5,
        hidden_dim: int | None = None,
        output_dim: int = 128,
        together: bool = True,
    ):
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"model.temperature must be positive, not {temperature}")
        self.temperature, self.output_dim, self.together = temperature, output_dim, together
        self.encoder = encoder
        self.projection = mlp(encoder.output_dim, encoder.output_dim if hidden_dim is None else hidden_dim, output_dim)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The unit vectors `(2, B, D)` of both views, and their loss over the batch of all processes."""
        z = unit(self.project(views))
        return z, {"loss": nt_xent(self.processes.gather(z, 1), self.temperature)}
