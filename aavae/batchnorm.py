"""BatchNorm statistics measured anew, on a copy."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrated(
    module: nn.Module, images: Iterable[Tensor], forward: Callable[[nn.Module, Tensor], object] = nn.Module.__call__
) -> nn.Module:
    """A copy of `module` whose BatchNorm statistics are the cumulative average over batches of normalised `images`.

    Only the BatchNorm layers of the copy are in training mode; `module` itself is left as it is. `forward` says what
    the images pass through.
    """
    twin = copy.deepcopy(module).eval()
    layers = [m for m in twin.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    for batch in images if layers else ():
        forward(twin, batch)
    return twin.eval()
