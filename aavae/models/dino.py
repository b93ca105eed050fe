"""DINO (Caron et al. 2021) with two views: a view names the prototypes that a momentum network sees in the other."""

import math

import torch
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.models.prototypes import Prototypes
from aavae.models.teacher import Teacher

CENTRE_MOMENTUM = 0.9


def cross_entropy(
    student: Tensor, teacher: Tensor, centre: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """−Σ softmax((t − c)/τ_t)·log softmax(s/τ) of scores `(2, B, K)`, each view against the other's teacher; the mean
    over both and B, in nats (Caron et al., Eq. 2)."""
    target = ((full(teacher) - centre) / teacher_temperature).softmax(-1)
    predicted = (full(student) / temperature).log_softmax(-1)
    return -(target.flip(0) * predicted).sum(-1).mean()


class DINO(Pair):
    """Encoder, a head with GELUs, prototypes; a teacher that follows all three, and the centre of its scores.

    The prototypes stay as they are for the part `frozen` of the training. The loss is log K where nothing is known.
    Raises UserError for temperatures that are not positive.
    """

    per_image = False  # the teacher's scores of a whole batch move the centre
    centre: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        prototypes: int = 4096,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        momentum: float = 0.9995,
        final_momentum: float = 1.0,
        frozen: float = 0.001,
        together: bool = True,
    ):
        super().__init__()
        if not all(0 < t < math.inf for t in (temperature, teacher_temperature)):
            raise UserError(
                f"model.temperature and teacher_temperature must be positive, not {temperature}, {teacher_temperature}"
            )
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.output_dim, self.together, self.frozen = output_dim, together, frozen
        self.encoder = encoder
        self.projection = mlp(
            encoder.output_dim, hidden_dim, hidden_dim, output_dim, norm=False, last_bias=True, gelu=True
        )
        for layer in self.projection.modules():  # as published
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(output_dim, prototypes)
        student = (encoder, self.projection, self.prototypes)
        self.teacher = Teacher(*student, momentum=momentum, final_momentum=final_momentum)
        self.steady, self.extendable = frozen == 0, frozen == 0 and momentum == final_momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self._mean: Tensor | None = None  # of the teacher's scores in the last step, for the centre

    def begin(self, total_steps: int, batch_size: int) -> None:
        """See `Model.begin`."""
        super().begin(total_steps, batch_size)
        self.prototypes.begin(round(self.frozen * total_steps))

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Each view's scores against the teacher's of the other view."""
        z = self.project(views)
        scores, known = self.of_each(self.prototypes, z), self.of_each(self.teacher, views)
        if self.training:
            self._mean = known.detach().mean((0, 1))
        loss = cross_entropy(scores, known, self.centre, self.temperature, self.teacher_temperature)
        return unit(z), {"loss": loss}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The teacher follows, and the centre its scores, those of all processes."""
        self.teacher.follow(self.encoder, self.projection, self.prototypes, step=step, total_steps=self.total_steps)
        assert self._mean is not None  # a step has been learned
        mean, self._mean = self.processes.gather(self._mean[None]).mean(0), None
        self.centre.lerp_(mean.to(self.centre), 1 - CENTRE_MOMENTUM)
        self.prototypes.after_step(step)
