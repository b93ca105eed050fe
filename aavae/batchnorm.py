"""BatchNorm statistics measured anew, on a copy."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrated(encoder: nn.Module, images: Iterable[Tensor]) -> nn.Module:
    """A copy of `encoder` whose BatchNorm statistics are the cumulative average over batches of normalised `images`.

    Only the BatchNorm layers of the copy are in training mode; `encoder` itself is left as it is.
    """
    twin = copy.deepcopy(encoder).eval()
    layers = [m for m in twin.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    for batch in images if layers else ():
        twin(batch)
    return twin.eval()
