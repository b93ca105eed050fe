"""VICReg (Bardes et al. 2022): views agree, components vary and do not covary."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.runtime.device import without_autocast

VARIANCES = {"mean": 0.5, "sum": 1.0}  # over the two views: the official code's, and solo-learn's


def vicreg_terms(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Invariance, variance (summed over views) and covariance of vectors `(B, D)` (Bardes et al., Eq. 1 to 5)."""
    a, b = full(a), full(b)
    short, other = (F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b))
    return {"invariance": F.mse_loss(a, b), "variance": short + other, "covariance": _covariance(a) + _covariance(b)}


def _covariance(z: Tensor) -> Tensor:
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


class VICReg(Pair):
    """Encoder and projection; the loss is the weighted sum of three terms, each of which is logged.

    Raises UserError for a `variance` that is neither `mean` nor `sum`.
    """

    per_image = False

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 2048,
        output_dim: int = 2048,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        variance: str = "mean",
        together: bool = True,
    ):
        super().__init__()
        if variance not in VARIANCES:
            raise UserError(f"model.variance must be {' or '.join(VARIANCES)}, not {variance!r}")
        self.output_dim, self.together = output_dim, together
        self.weights = {
            "invariance": invariance_weight,
            "variance": variance_weight * VARIANCES[variance],
            "covariance": covariance_weight,
        }
        self.encoder = encoder
        self.projection = mlp(encoder.output_dim, hidden_dim, hidden_dim, output_dim, last_bias=True)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Over the batch of all processes, in float32 whatever the networks compute in."""
        z = self.project(views)
        a, b = self.processes.gather(z, 1)
        with without_autocast(z.device):
            terms = vicreg_terms(a, b)
            loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        return unit(z), {"loss": loss} | {name: value.detach() for name, value in terms.items()}
