"""A momentum network: a copy that follows the one that learns."""

import copy
import math

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of modules that are applied one after the other, which no gradient reaches and which follows them.

    After each step θ' ← m·θ' + (1 − m)·θ for all parameters, m from `momentum` at the start to `final_momentum` at the
    end by half a cosine (Grill et al. 2020, §3.2); buffers, such as BatchNorm's statistics, are the teacher's own.
    """

    def __init__(self, *student: nn.Module, momentum: float, final_momentum: float):
        super().__init__()
        self.network = copy.deepcopy(nn.Sequential(*student)).requires_grad_(False)
        self.momentum, self.final_momentum = momentum, final_momentum

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def momentum_at(self, step: int, total_steps: int) -> float:
        """m of a step."""
        progress = min(1.0, step / max(1, total_steps))
        return self.final_momentum - (self.final_momentum - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def follow(self, *student: nn.Module, step: int, total_steps: int) -> None:
        """Move towards the `student`, the same modules in the same order."""
        learned = [p.detach() for module in student for p in module.parameters()]
        torch._foreach_lerp_(list(self.network.parameters()), learned, 1 - self.momentum_at(step, total_steps))
