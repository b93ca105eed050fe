"""SimCLR (Chen et al. 2020): two views of an image attract, views of different images repel."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models import Model
from aavae.models.heads import mlp
from aavae.models.output import full
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


class SimCLR(Model):
    """Encoder and projection head, trained by NT-Xent over two views of each image in one forward pass.

    The head is Linear–BatchNorm–ReLU–Linear without a last bias: 4,462,592 parameters for a ResNet-50. Raises UserError
    for a temperature that is not positive.
    """

    n_views, per_image = 2, False

    def __init__(
        self, encoder: nn.Module, temperature: float = 0.5, hidden_dim: int | None = None, output_dim: int = 128
    ):
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"model.temperature must be positive, not {temperature}")
        self.temperature, self.output_dim = temperature, output_dim
        self.encoder = encoder
        width: Any = encoder.output_dim
        self.projection = mlp(width, width if hidden_dim is None else hidden_dim, output_dim)

    def about(self) -> str:
        """The size of the projection."""
        return f"projection {self.output_dim}"

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The unit vectors `(2, B, D)` of both views, and their loss over the batch of all processes."""
        h = self.encoder(views.flatten(0, 1))  # both views in one forward pass
        z = F.normalize(full(self.projection(h)), dim=-1).unflatten(0, (2, -1))
        return z, {"loss": nt_xent(self.processes.gather(z, 1), self.temperature)}

    def measure(self, output: Tensor, x: Tensor, clean, std: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """How alike the two views are (`cos_sim`), and the standard deviation of the projections' components times √D:
        near 1 when healthy, 0 when collapsed."""
        spread = output.flatten(0, 1).std(0).mean() * math.sqrt(output.shape[-1])
        return {"cos_sim": (output[0] * output[1]).sum(-1).mean(), "spread": spread}

    def validate(
        self, views: Tensor, x: Tensor, std: Tensor, samples: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], None]:
        """Loss and agreement of a held-out batch."""
        z, terms = self.learn(views, x, None)
        return terms | self.measure(z, x, None, std, generator), None
