"""A step of learning by several processes: torch's DistributedDataParallel around `model.learn`."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aavae.models import Model
from aavae.runtime.processes import Processes

# Newer versions of torch warn of the older name.
NAMES = inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS: Any = {"forward_sync_buffers" if "forward_sync_buffers" in NAMES else "broadcast_buffers": False}
Learned = tuple[object, dict[str, Tensor]]


class Step(nn.Module):
    """`model.learn` as a forward pass, which is all that DistributedDataParallel follows."""

    def __init__(self, model: Model, learn: Callable[..., Learned]):
        super().__init__()
        self.model, self.learn = model, learn

    def forward(self, views: Tensor, x: Tensor, noise: Tensor | None) -> Learned:
        return self.learn(views, x, noise)


class Parallel:
    """`learn` of all processes, of batches in `parts`; gradients are averaged while the backward pass still runs.

    All parameters are made those of the first process. Buffers are not sent around: BatchNorm's running statistics do
    not enter a loss, and those of the first process are the ones that are saved, as in the released code.
    """

    def __init__(
        self, model: Model, learn: Callable[..., Learned], processes: Processes, device: torch.device, parts: int = 1
    ):
        self.learn, self.processes, self.parts = learn, processes, parts
        self.whole: Any = None
        if processes.world > 1:
            self.whole = DistributedDataParallel(
                Step(model, learn),
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Some parameters never get gradients. That these are always the same is less to search for, but cannot
                # be used where a batch is computed in parts.
                static_graph=parts == 1,
                find_unused_parameters=parts > 1,
                **NO_BUFFERS,
            )

    def __call__(self, views: Tensor, x: Tensor, noise: Tensor | None) -> Learned:
        return (self.learn if self.whole is None else self.whole)(views, x, noise)

    @contextlib.contextmanager
    def part(self, i: int) -> Iterator[None]:
        """Around the forward and backward pass of part `i` of a batch: only the last one has gradients averaged."""
        waits = self.whole is not None and i < self.parts - 1
        with self.processes.talking(), self.whole.no_sync() if waits else contextlib.nullcontext():
            yield
