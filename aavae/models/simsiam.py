"""SimSiam (Chen and He 2021): one view predicts the other, which gets no gradient."""

from torch import Tensor, nn
from torch.nn import functional as F

from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """−cos(p, z) of vectors `(B, D)`, mean over B, without a gradient to z (Chen and He, Eq. 1 and 2)."""
    return -F.cosine_similarity(full(p), full(z).detach(), dim=-1).mean()


class SimSiam(Pair):
    """Encoder, projection and predictor, whose learning rate stays constant; the loss lies between −1 and 1."""

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 2048,
        output_dim: int = 2048,
        predictor_dim: int = 512,
        together: bool = True,
    ):
        super().__init__()
        self.output_dim, self.together = output_dim, together
        self.encoder = encoder
        self.projection = mlp(
            encoder.output_dim, hidden_dim, hidden_dim, output_dim, bias=False, last_bias=True, last_norm=True
        )
        self.predictor = mlp(output_dim, predictor_dim, output_dim, bias=False, last_bias=True)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the sum over both directions."""
        z = self.project(views)
        p = self.of_each(self.predictor, z)
        return unit(z), {"loss": (negative_cosine(p[0], z[1]) + negative_cosine(p[1], z[0])) / 2}

    def groups(self) -> list[tuple[nn.Module, dict]]:
        """The predictor's learning rate does not follow the schedule (Chen and He, §4)."""
        return [(self.predictor, {"scheduled": False})]
