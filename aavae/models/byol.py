"""BYOL (Grill et al. 2020): one view predicts what a momentum network makes of the other."""

from torch import Tensor, nn
from torch.nn import functional as F

from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.models.teacher import Teacher


def prediction_error(p: Tensor, z: Tensor) -> Tensor:
    """The squared distance of unit vectors, 2 − 2·cos(p, z), of vectors `(B, D)`, mean over B (Grill et al., Eq. 2)."""
    return 2 - 2 * F.cosine_similarity(full(p), full(z), dim=-1).mean()


class BYOL(Pair):
    """Encoder, projection and predictor; a teacher that follows the first two.

    The loss is the sum over both directions, 4 where nothing is known. Raises UserError for sizes below 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 4096,
        output_dim: int = 256,
        momentum: float = 0.99,
        final_momentum: float = 1.0,
        together: bool = True,
    ):
        super().__init__()
        self.output_dim, self.together = output_dim, together
        self.encoder = encoder
        self.projection = mlp(encoder.output_dim, hidden_dim, output_dim, last_bias=True)
        self.predictor = mlp(output_dim, hidden_dim, output_dim, last_bias=True)
        self.teacher = Teacher(encoder, self.projection, momentum=momentum, final_momentum=final_momentum)
        self.extendable = momentum == final_momentum

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Each view's prediction against the teacher's projection of the other view."""
        z = self.project(views)
        p = self.of_each(self.predictor, z)
        target = self.of_each(self.teacher, views)
        return unit(z), {"loss": prediction_error(p[0], target[1]) + prediction_error(p[1], target[0])}

    def after_step(self, step: int) -> None:
        """The teacher follows."""
        self.teacher.follow(self.encoder, self.projection, step=step, total_steps=self.total_steps)
