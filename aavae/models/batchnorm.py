"""BatchNorm statistics measured anew, on a copy."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Moments:
    """A forward hook on a BatchNorm layer that collects the mean and unbiased variance `(C,)` of each batch."""

    def __init__(self, layer: _BatchNorm):
        self.layer, self.momentum = layer, layer.momentum
        self.counts: list[int] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []
        layer.momentum = 1.0  # the running statistics become those of the batch
        self.handle = layer.train().register_forward_hook(self)

    def __call__(self, layer: _BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.counts.append(inputs[0].numel() // inputs[0].shape[1])
        assert layer.running_mean is not None and layer.running_var is not None  # it tracks them
        self.means.append(layer.running_mean.clone())
        self.variances.append(layer.running_var.clone())

    def pool(self) -> None:
        """Give the layer the statistics of all batches, as if they had been one, and its momentum back."""
        self.handle.remove()
        self.layer.momentum = self.momentum
        if not self.counts:  # the images do not pass it
            return
        counts = torch.tensor(self.counts, dtype=torch.float64)[:, None]
        means, variances = (torch.stack(t).cpu().double() for t in (self.means, self.variances))
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        squares = ((counts - 1) * variances + counts * (means - mean) ** 2).sum(0)
        layer = self.layer
        assert layer.running_mean is not None and layer.running_var is not None
        assert layer.num_batches_tracked is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(squares / (total - 1))
        layer.num_batches_tracked.fill_(len(self.counts))


@torch.no_grad()
def recalibrated(
    module: nn.Module, images: Iterable[Tensor], forward: Callable[[nn.Module, Tensor], object] = nn.Module.__call__
) -> nn.Module:
    """A copy of `module` whose BatchNorm statistics are those of normalised `images`, given in batches of any sizes.

    Each layer gets the mean and the unbiased variance of its inputs over all images, pooled in float64, so that every
    image counts the same. What it gets as input was normalised batch by batch in the layers before it: of one batch,
    the statistics are exact; of several, the first layer's are. Only the BatchNorm layers of the copy are in training
    mode; `module` itself is left as it is. `forward` says what the images pass through.
    """
    twin = copy.deepcopy(module).eval()
    layers = [_Moments(m) for m in twin.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for batch in images if layers else ():
        forward(twin, batch)
    for layer in layers:
        layer.pool()
    return twin.eval()
