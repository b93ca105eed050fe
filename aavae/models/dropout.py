"""Dropout of several processes: each drops of its images what one process would drop of them."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.runtime.processes import Processes

# Layers that multiply what they are given by random numbers, by module and name: importing them all takes seconds.
LAYERS = {
    ("torch.nn.modules.dropout", name) for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")
} | {
    ("timm.layers.drop", "DropPath"),
    ("timm.layers.drop", "DropBlock2d"),
    ("torchvision.ops.stochastic_depth", "StochasticDepth"),
}  # fmt: skip
RATES = ("p", "drop_prob")  # their names for it


def share(module: nn.Module, processes: Processes, rows: int) -> None:
    """Let the dropout layers in `module` draw for the batch of all `processes`, each of which has `rows` images of it
    at once, and keep the numbers of their own images. Torch's generator must be seeded alike on all of them.

    Alone, in eval mode, and in copies they are what they were. Raises UserError for dropout inside attention, which
    torch draws where nobody can choose the numbers.
    """
    if processes.world == 1:
        return
    for layer in module.modules():
        _refuse(layer)
        known = any((base.__module__, base.__name__) in LAYERS for base in type(layer).__mro__)
        if known and not isinstance(layer, _Shared):
            kind: Any = type(layer)
            layer.__class__ = _shared(kind)  # the same layer: other modules hold on to it
        if isinstance(layer, _Shared):
            layer.processes, layer.rows = processes, rows


class _Shared(nn.Module):
    """A layer that `share` has changed."""

    processes: Processes
    rows: int

    def __deepcopy__(self, memo: dict) -> "_Shared":
        # A copy is looked at, or fine-tuned, by one process.
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin.processes = Processes()
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """What is left of `x` `(N, …)`, where N is a multiple of the images; raises UserError for another N."""
        if not self.training or self.processes.world == 1 or not any(getattr(self, name, 0) for name in RATES):
            return super().forward(x)
        times, left = divmod(len(x), self.rows)  # several views of the images, say, one after the other
        if left:
            raise UserError(
                f"dropout of {len(x)} rows cannot be divided among {self.processes.world} processes of {self.rows} "
                "images each; leave it out, or train in one process"
            )
        world, rank = self.processes.world, self.processes.rank
        # Numbers are drawn in the order of the memory, which one process would have in this way.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        shape = (times * world * self.rows, *x.shape[1:])
        whole = torch.empty_permuted(shape, order, dtype=x.dtype, device=x.device).fill_(1)
        drawn = super().forward(whole).unflatten(0, (times, world, self.rows))[:, rank]
        return x * drawn.flatten(0, 1)


@cache
def _shared(kind: type) -> type:
    return type(f"Shared{kind.__name__}", (_Shared, kind), {})


def _refuse(layer: Any) -> None:
    inside = 0.0
    if isinstance(layer, nn.MultiheadAttention):
        inside = layer.dropout
    elif getattr(layer, "fused_attn", False):  # timm's
        inside = getattr(getattr(layer, "attn_drop", None), "p", 0.0)
    if inside or isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout):
        raise UserError(
            f"{type(layer).__name__} has dropout that several processes cannot draw as one would; set its rate to 0, "
            "or train in one process"
        )
