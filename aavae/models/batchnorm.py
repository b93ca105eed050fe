"""Of which images BatchNorm takes its statistics: those of all processes, of a part of a batch, or many, on a copy."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from aavae.errors import UserError
from aavae.models.output import full
from aavae.runtime.processes import Processes


def share(module: nn.Module, processes: Processes, images: int | None = None) -> None:
    """Let the BatchNorm layers in `module` normalise with the statistics of the batch of all `processes`, or of
    `images` images at a time. In eval mode they are what they were; their tensors and names do not change.

    Raises UserError for a kind of BatchNorm that this cannot be done with.
    """
    if processes.world == 1 and images is None:
        return
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, _Shared):
            layer.__class__ = _shared(type(layer))  # the same layer: optimizers and other modules hold on to it
        if isinstance(layer, _Shared):
            layer.processes, layer.images = processes, images


def pooled(mean: Tensor, variance: Tensor, n: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance `(C,)` over all processes, and the numbers per channel they are of, from those of each;
    gradients flow back."""
    if processes.world == 1:
        return mean, variance, n
    means, variances, counts = processes.gather(torch.stack([mean, variance, n.expand_as(mean)])[None]).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean).square())).sum(0) / total, total


class _Shared(_BatchNorm):
    """A BatchNorm layer that `share` has changed."""

    processes: Processes
    images: int | None

    def __deepcopy__(self, memo: dict) -> "_Shared":
        # A copy is looked at, or fine-tuned, by one process; the others would never take part.
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin.processes, twin.images = Processes(), None
        return twin

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return self._of_all(x) if self.processes.world > 1 else self._in_parts(x)

    def _of_all(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        wide = full(x)
        variance, mean = torch.var_mean(wide, dims, correction=0)
        mean, variance, n = pooled(mean, variance, mean.new_full((), x.numel() // x.shape[1]), self.processes)
        self._remember(mean, variance * n / (n - 1))
        y = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _in_parts(self, x: Tensor) -> Tensor:
        # The running statistics are those of the first part, as several processes keep those of the first one.
        first, *others = x.split(self.images or len(x))
        parts = [F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps) for part in others]
        return torch.cat([super().forward(first), *parts])

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        # Without a momentum torch takes the mean of all batches.
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """BatchNorm1d with the statistics of the batch of all processes, or of a part of it."""


class SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """BatchNorm2d with the statistics of the batch of all processes, or of a part of it."""


class SharedBatchNormAct2d(_Shared, nn.BatchNorm2d):
    """timm's BatchNorm2d with dropout and activation behind it, in the same way."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


SHARED: dict[type, type] = {nn.BatchNorm1d: SharedBatchNorm1d, nn.BatchNorm2d: SharedBatchNorm2d}
TIMM = "timm.layers.norm_act"  # not imported here: it takes seconds


def _shared(kind: type) -> type:
    if kind in SHARED:
        return SHARED[kind]
    if (kind.__module__, kind.__name__) == (TIMM, "BatchNormAct2d"):
        return SharedBatchNormAct2d
    raise UserError(
        f"the statistics of {kind.__module__}.{kind.__name__} can be neither those of all processes nor of a part of a "
        "batch; say trainer.sync_batchnorm=false, leave out trainer.virtual_batch, or choose another encoder"
    )


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
