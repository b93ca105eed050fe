"""A step of learning by several processes: torch's DistributedDataParallel around `model.learn`."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
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
        self.model, self.learn, self.processes = model, learn, processes
        self.device, self.parts = device, parts

    @cached_property
    def whole(self) -> Any:
        """The step of all processes, made when the first one is taken; None for one process."""
        if self.processes.world == 1:
            return None
        static = self.parts == 1 and self.model.steady
        return DistributedDataParallel(
            Step(self.model, self.learn),
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Some parameters never get gradients. That these are always the same is less to search for, but cannot be
            # used where a batch is computed in parts, or where some are frozen at first.
            static_graph=static,
            find_unused_parameters=not static,
            **NO_BUFFERS,
        )

    def __call__(self, views: Tensor, x: Tensor, noise: Tensor | None) -> Learned:
        return (self.learn if self.whole is None else self.whole)(views, x, noise)

    @contextlib.contextmanager
    def part(self, i: int) -> Iterator[None]:
        """Around the forward and backward pass of part `i` of a batch: only the last one has gradients averaged."""
        with self.processes.talking():
            waits = self.whole is not None and i < self.parts - 1
            with self.whole.no_sync() if waits else contextlib.nullcontext():
                yield
