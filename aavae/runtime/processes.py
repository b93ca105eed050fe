"""The processes that train together, as torchrun describes them."""

import contextlib
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from aavae.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together (torchrun); alone it is rank 0 of 1."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """This process's rows of a global batch of `batch_size`, which `world` must divide."""
        if batch_size % self.world:
            raise UserError(f"batch_size={batch_size} does not divide among {self.world} processes")
        rows = batch_size // self.world
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def average_gradients(self, parameters) -> None:
        """Average the gradients over all processes, in place."""
        if self.world > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            everything = torch.cat([g.reshape(-1) for g in gradients])  # one message: hundreds of small ones are slow
            dist.all_reduce(everything, op=dist.ReduceOp.SUM)
            everything /= self.world
            for g, part in zip(gradients, everything.split([g.numel() for g in gradients]), strict=True):
                g.copy_(part.view_as(g))

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of `values` over all processes."""
        if self.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
            values = values / self.world
        return values

    def largest(self, number: int, device: torch.device) -> int:
        """The largest `number` of any process, so that all of them decide the same at the same step."""
        if self.world == 1:
            return number
        votes = torch.tensor(number, device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return int(votes)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is set in any process."""
        return bool(self.largest(int(flag), device))

    def gather(self, values: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The `values` of all processes, joined along `dim` in the order of their ranks; gradients flow back.

        A loss of what is gathered is the same in every process. Each one's gradient is `world` times its part, so that
        `average_gradients` gives that of the loss.
        """
        if self.world == 1:
            return values
        return torch.cat(_Gather.apply(values.contiguous(), self), dim)

    def wait(self) -> None:
        """Wait for every process."""
        if self.world > 1:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """The values of all processes; torch's own differentiable version is deprecated."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, processes: Processes) -> tuple[torch.Tensor, ...]:
        ctx.processes = processes
        parts = [torch.empty_like(values) for _ in range(processes.world)]
        dist.all_gather(parts, values)
        return tuple(parts)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor):  # type: ignore[override]
        everything = torch.stack(gradients)
        dist.all_reduce(everything, op=dist.ReduceOp.SUM)
        return everything[ctx.processes.rank], None


@contextlib.contextmanager
def processes(device: torch.device):
    """Join the process group torchrun describes in the environment, if any, and leave it afterwards."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
