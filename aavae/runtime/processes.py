"""The processes that train together, as torchrun or Slurm's srun describes them."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aavae.errors import UserError, first_line, mark_told

# While one process validates, probes or writes, the others wait for it; what it does may take hours.
PATIENCE = timedelta(days=1000)
UNLIKE = (
    "the processes that train together were given different commands; for several runs use -m, or set WORLD_SIZE=1 in "
    "the environment of the tasks of srun"
)
LOST = "a process that trains with this one has ended, and so does this one; what it said is above"


@dataclass(frozen=True)
class Processes:
    """This process among those that train together (torchrun, srun); alone it is rank 0 of 1.

    What they decide together goes over the CPU, in a group whose waits do not time out; gradients and losses go over
    torch's default group. Where another process has ended, all methods raise UserError.
    """

    rank: int = 0
    world: int = 1
    control: Any = field(default=None, repr=False)
    store: Any = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict) -> "Processes":
        return self  # a model is copied, and its copy is trained by the same processes

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

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of `values` over all processes."""
        if self.world > 1:
            with self.talking():
                dist.all_reduce(values, op=dist.ReduceOp.SUM)
            values = values / self.world
        return values

    def largest(self, number: int) -> int:
        """The largest `number` of any process, so that all of them decide the same at the same step."""
        if self.world == 1:
            return number
        votes = torch.tensor(number)
        with self.talking():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return int(votes)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return bool(self.largest(int(flag)))

    def gather(self, values: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The `values` of all processes, joined along `dim` in the order of their ranks; gradients flow back.

        A loss of what is gathered is the same in every process. Each one's gradient is `world` times its part, so that
        their mean, which DistributedDataParallel computes, is that of the loss.
        """
        if self.world == 1:
            return values
        return torch.cat(_Gather.apply(values.contiguous(), self), dim)

    def wait(self) -> None:
        """Wait for every process, however long it takes."""
        if self.world > 1:
            with self.talking():
                dist.barrier(group=self.control)

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Let the end of another process be said in a sentence, by the first one that notices it."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not _is_lost(error):
                raise
            first = True
            with contextlib.suppress(RuntimeError):  # the store may have gone with the other process
                first = self.store.add("lost", 1) == 1
            lost = UserError(LOST)
            raise (lost if first else mark_told(lost)) from error


def _is_lost(error: RuntimeError) -> bool:
    """Whether it is a connection that broke; gloo and NCCL have no class of their own for that."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in said
        for word in ("connection closed by peer", "connection reset", "broken pipe", "gloo/transport", "nccl")
    )


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
    """Join the process group that torchrun or srun describes in the environment, if any, and leave it afterwards.

    Raises UserError where the processes do not find each other, and where their commands differ.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    try:
        store, rank, world = next(dist.rendezvous("env://"))
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"{os.environ['WORLD_SIZE']} processes are to train together, but this one cannot reach the others at "
            f"{where} ({first_line(error)}); MASTER_ADDR and MASTER_PORT name another place"
        ) from error
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world)
    try:
        several = Processes(
            rank, world, dist.new_group(backend="gloo", timeout=PATIENCE), dist.PrefixStore("aavae", store)
        )
        _refuse_unlike(several)
        yield several
    finally:
        dist.destroy_process_group()


def _refuse_unlike(several: Processes) -> None:
    # As where a task of srun has a seed of its own, by its number.
    told = hashlib.sha256("\0".join(sys.argv[1:]).encode(errors="surrogateescape")).digest()
    number = int.from_bytes(told[:7], "big")
    highest, lowest = several.largest(number), -several.largest(-number)
    if highest != lowest:
        raise UserError(UNLIKE) if several.leads else mark_told(UserError(UNLIKE))
