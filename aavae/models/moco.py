"""MoCo v2+ (Chen et al. 2020): a view finds the other one's key among those of many earlier images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.heads import mlp
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.models.prototypes import Queue
from aavae.models.teacher import Teacher
from aavae.runtime.device import without_autocast


def queue_loss(q: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """−q·k/τ + log Σ over the own key and the queue of exp(q·k'/τ), of unit vectors `(B, D)` and `(K, D)`, mean over B
    (He et al. 2020, Eq. 1), in nats."""
    q, key, queue = full(q), full(key), full(queue)
    logits = torch.cat([(q * key).sum(-1, keepdim=True), q @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


class MoCo(Pair):
    """Encoder and projection, a teacher that makes keys, and a queue of keys for each view.

    The loss is the mean over both directions, log(1 + `queue_size`) where nothing is known. Raises UserError for a
    queue that the batch does not divide, and for a temperature that is not positive.
    """

    per_image = False  # the keys of a whole batch enter the queue

    def __init__(
        self,
        encoder: nn.Module,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        queue_size: int = 32768,
        temperature: float = 0.2,
        momentum: float = 0.99,
        final_momentum: float = 0.999,
        together: bool = True,
    ):
        super().__init__()
        if not temperature > 0:
            raise UserError(f"model.temperature must be positive, not {temperature}")
        self.output_dim, self.together, self.temperature = output_dim, together, temperature
        self.encoder = encoder
        self.projection = mlp(encoder.output_dim, hidden_dim, output_dim, norm=False, last_bias=True)
        self.teacher = Teacher(encoder, self.projection, momentum=momentum, final_momentum=final_momentum)
        self.extendable = momentum == final_momentum
        self.queue = Queue(2, queue_size, output_dim)
        self._keys: Tensor | None = None  # of the last step, for the queue

    def begin(self, total_steps: int, batch_size: int) -> None:
        """Raises UserError where the batch does not divide the queue."""
        super().begin(total_steps, batch_size)
        self.queue.check(batch_size)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Each view's query against the teacher's key of the other view and that view's queue."""
        q = unit(self.project(views))
        keys = unit(self.of_each(self.teacher, views))
        with without_autocast(q.device):
            losses = [queue_loss(q[i], keys[1 - i], self.queue.vectors[1 - i], self.temperature) for i in (0, 1)]
        if self.training:
            self._keys = keys.detach().clone()
        return q, {"loss": (losses[0] + losses[1]) / 2}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The teacher follows, and the keys of all processes take the place of the oldest."""
        self.teacher.follow(self.encoder, self.projection, step=step, total_steps=self.total_steps)
        assert self._keys is not None  # a step has been learned
        self.queue.push(self.processes.gather(self._keys, 1))
        self._keys = None
