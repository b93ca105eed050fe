"""Gradient checkpointing: what blocks compute is forgotten, and computed again in the backward pass."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from aavae.errors import UserError
from aavae.models import Model

LISTS = (nn.Sequential, nn.ModuleList)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that a network is a sequence of: what lies in a Sequential or ModuleList and has layers of its own."""
    found = []
    for child in module.children():
        if isinstance(module, LISTS) and not isinstance(child, LISTS) and any(True for _ in child.children()):
            found.append(child)
        else:
            found += blocks(child)
    return found


class Recompute:
    """While it is entered, the blocks of a model keep their inputs for the backward pass, and nothing else.

    Losses and gradients are the same, BatchNorm's running statistics too. Raises UserError for models that cannot
    compute a block again, or that have none.
    """

    def __init__(self, model: Model):
        name, encoder = type(model).__name__, type(model.encoder).__name__
        if not model.repeats:
            raise UserError(f"{name}, whose layers change while it learns, takes no trainer.grad_checkpointing=true")
        if not blocks(model.encoder):
            raise UserError(f"trainer.grad_checkpointing=true finds no blocks in the encoder, {encoder}; leave it out")
        self.forwards = {block: partial(_forward, block, block.forward) for block in blocks(model)}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            for block, forward in self.forwards.items():
                block.forward = forward
            yield
        finally:
            for block in self.forwards:
                vars(block).pop("forward", None)


def _forward(block: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():  # such as a teacher's
        return forward(*args, **kwargs)
    contexts = partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second time, BatchNorm's running statistics stay what the first time made them."""
    # Without `track_running_stats` torch would keep other tensors than the first time, and refuse.
    layers: list[Any] = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]
    before = [(layer, layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, batches in before:
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(batches)
