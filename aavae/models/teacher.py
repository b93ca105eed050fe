"""A momentum network: a copy that follows the one that learns."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn


def teacher_of(*student: nn.Module) -> nn.Sequential:
    """A copy of modules that are applied one after the other, which no gradient reaches."""
    return copy.deepcopy(nn.Sequential(*student)).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: Iterable[nn.Module], momentum: float) -> None:
    """θ' ← m·θ' + (1 − m)·θ for all parameters; buffers, such as BatchNorm's statistics, are the teacher's own."""
    learned = [p.detach() for module in student for p in module.parameters()]
    torch._foreach_lerp_(list(teacher.parameters()), learned, 1 - momentum)


def momentum_at(step: int, total_steps: int, base: float, final: float) -> float:
    """From `base` at the start to `final` at the end, by half a cosine (Grill et al. 2020, §3.2)."""
    return final - (final - base) * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps)))) / 2
