"""Prototypes: directions that unit vectors are compared with, instead of with each other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.output import full
from aavae.models.pairs import unit
from aavae.runtime.device import without_autocast


class Prototypes(nn.Module):
    """Cosines `(…, K)` of vectors `(…, dim)` with K learned directions, in float32 or wider.

    They stay as they are for the first `frozen_steps`. Raises UserError for a number below 2.
    """

    steps: Tensor
    frozen_steps = 0
    frozen = False

    def __init__(self, dim: int, number: int):
        super().__init__()
        if not isinstance(number, int) or number < 2:
            raise UserError(f"model.prototypes must be a whole number of 2 or more, not {number}")
        self.weight = nn.Parameter(torch.empty(number, dim).uniform_(-(dim**-0.5), dim**-0.5))  # as of a linear layer
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(_went_on)

    def begin(self, frozen_steps: int) -> None:
        """Called before the first step."""
        self.frozen_steps, self.frozen = frozen_steps, frozen_steps > 0

    def after_step(self, step: int) -> None:
        """Called after each step."""
        self.steps.fill_(step)
        self.frozen = step < self.frozen_steps

    def forward(self, x: Tensor) -> Tensor:
        # Without a gradient the optimizer leaves them alone, its weight decay too.
        weight = self.weight.detach() if self.frozen else self.weight
        with without_autocast(x.device):
            return F.linear(unit(x), unit(weight))


def _went_on(prototypes: Prototypes, keys: Any) -> None:
    prototypes.frozen = int(prototypes.steps) < prototypes.frozen_steps


class Queue(nn.Module):
    """The newest unit vectors of each view, `(views, size, dim)`, which the oldest make room for; random at first."""

    vectors: Tensor
    place: Tensor

    def __init__(self, views: int, size: int, dim: int):
        super().__init__()
        if not isinstance(size, int) or size < 1:
            raise UserError(f"model.queue_size must be a whole number of 1 or more, not {size}")
        self.register_buffer("vectors", F.normalize(torch.randn(views, size, dim), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def check(self, batch_size: int) -> None:
        """Raises UserError where the batch does not divide the queue."""
        if self.vectors.shape[1] % batch_size:
            raise UserError(
                f"model.queue_size={self.vectors.shape[1]} is no multiple of batch_size={batch_size}, by which it moves"
            )

    @torch.no_grad()
    def push(self, vectors: Tensor) -> None:
        """Take in `(views, B, dim)`."""
        n, size = vectors.shape[1], self.vectors.shape[1]
        places = (self.place + torch.arange(n, device=vectors.device)) % size
        self.vectors[:, places] = full(vectors).to(self.vectors)
        self.place.copy_((self.place + n) % size)
