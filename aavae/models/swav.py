"""SwAV (Caron et al. 2020) with two views: a view names the cluster that the other is assigned to."""

import torch
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.models.prototypes import Prototypes, Queue
from aavae.runtime.device import without_autocast

ROUNDS = 3  # of Sinkhorn and Knopp's normalisation
SHARPNESS = 0.05


@torch.no_grad()
def assignments(scores: Tensor, counts: Tensor | None = None) -> Tensor:
    """Soft assignments `(N, K)`, of sum 1 for each image, which use all prototypes equally often, from scores `(N, K)`.

    exp(scores/0.05), whose columns and rows are normalised in turn three times (Caron et al. 2020, Eq. 5). Images for
    which `counts` `(N)` is 0 do not take part.
    """
    q = (full(scores) / SHARPNESS).exp()
    if counts is not None:
        q = q * counts[:, None]
    for _ in range(ROUNDS):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    return q


def swapped_loss(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """−Σ q·log softmax(s/τ) of scores and codes `(2, B, K)`, each view against the other's codes; mean, in nats."""
    return -(codes.flip(0) * (full(scores) / temperature).log_softmax(-1)).sum(-1).mean()


class SwAV(Pair):
    """Encoder, projection and prototypes; a queue of earlier vectors that take part in the assignments.

    The prototypes stay as they are for the part `frozen` of the training; the queue takes part from `queue_from` of it
    on. The loss is log K where nothing is known. Raises UserError for a temperature that is not positive.
    """

    per_image = False

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 2048,
        output_dim: int = 128,
        prototypes: int = 3000,
        temperature: float = 0.1,
        queue_size: int = 3840,
        queue_from: float = 0.05,
        frozen: float = 0.002,
        together: bool = True,
    ):
        super().__init__()
        if not temperature > 0:
            raise UserError(f"model.temperature must be positive, not {temperature}")
        self.temperature, self.output_dim, self.together = temperature, output_dim, together
        self.frozen, self.queue_from, self.queue_steps = frozen, queue_from, 0
        self.steady, self.extendable = frozen == 0, frozen == queue_from == 0
        self.encoder = encoder
        self.projection = mlp(encoder.output_dim, hidden_dim, output_dim, last_bias=True)
        self.prototypes = Prototypes(output_dim, prototypes)
        self.queue = Queue(2, queue_size, output_dim)
        self._vectors: Tensor | None = None  # of the last step, for the queue

    def begin(self, total_steps: int, batch_size: int) -> None:
        """Raises UserError where the batch does not divide the queue."""
        super().begin(total_steps, batch_size)
        self.queue.check(batch_size)
        self.prototypes.begin(round(self.frozen * total_steps))
        self.queue_steps = round(self.queue_from * total_steps)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Each view's scores against the assignments of the other view, which are those of the batch of all processes
        and the queue."""
        z = unit(self.project(views))
        scores = self.prototypes(z)
        with without_autocast(z.device), torch.no_grad():
            every = self.processes.gather(scores.detach(), 1)
            n, own = every.shape[1], self.processes.share(every.shape[1])
            known = torch.cat([every, self.prototypes(self.queue.vectors.to(z))], 1)
            queued = (self.prototypes.steps >= self.queue_steps).to(z)
            counts = torch.cat([z.new_ones(n), queued.expand(known.shape[1] - n)])
            codes = torch.stack([assignments(view, counts)[:n][own] for view in known])
        if self.training:
            self._vectors = z.detach().clone()
        return z, {"loss": swapped_loss(scores, codes, self.temperature)}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The vectors of all processes take the place of the oldest in the queue."""
        assert self._vectors is not None  # a step has been learned
        self.queue.push(self.processes.gather(self._vectors, 1))
        self._vectors = None
        self.prototypes.after_step(step)
