"""A trainer on one rung of the ladder, ready to be timed."""

import contextlib
import itertools
import math
from collections.abc import Iterator

import torch

from aavae import build
from aavae.runtime.device import pick_precision
from benchmarks import ladder
from benchmarks.arithmetic import flop_per_image, matrix_peak
from benchmarks.book import Measured
from benchmarks.ladder import Step
from benchmarks.reference import reference
from benchmarks.timing import Candidate


class Climb:
    """A trainer on one rung, from `begin` to the end of the stack it is given."""

    def __init__(self, row: Measured, step: Step, overrides: tuple[str, ...], device: torch.device):
        self.row, self.step, self.overrides, self.device = row, step, overrides, device
        self.cfg = build.compose(overrides)

    def count(self, peaks: dict[str, float], sizes: tuple[int, ...] | None) -> None:
        """Note what a step computes, and the device's peak in the same precision, which `peaks` remembers."""
        precision = self.cfg.precision
        if precision not in peaks:
            peaks[precision] = matrix_peak(precision, self.device, sizes)
        self.row.facts |= {
            "batch": self.cfg.batch_size,
            "precision": precision,
            "overrides": list(self.overrides),
            "flop_per_image": flop_per_image(self.overrides),
            "matrix_peak": peaks[precision],
        }

    def begin(self, stack: contextlib.ExitStack) -> Candidate | None:
        """Build it; None if that fails, which the row says then."""
        stack.callback(self._let_go)
        self._before = self._memory()
        with self.row.attempt():
            if self.step.name == ladder.REFERENCE:
                self.trainer, self.batches = reference(self.cfg, self.device)
                self.row.facts["workers"] = len(self.batches.processes)
                stack.callback(self.batches.close)
            else:
                self.trainer = build.trainer(self.cfg)
                self.batches = itertools.chain.from_iterable(map(self.trainer.loader.epoch, itertools.count()))
            self.trainer.model.train()
            return Candidate(self.row, self._step, self.cfg.batch_size, self._running)
        return None

    def _step(self) -> None:
        self.trainer.meter.add(self.trainer.train_step(next(self.batches)))

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        pick_precision(self.cfg.precision, self.device)  # torch's settings for float32 belong to the process
        with getattr(self.batches, "running", contextlib.nullcontext)():
            yield

    def judge(self) -> None:
        """Note memory and loss; a loss that is not finite makes the speed worth nothing."""
        if not self.row.samples:
            return
        means, _, _ = self.trainer.meter.read(self.trainer.step)
        self.row.facts["loss"] = means["loss"] if math.isfinite(means["loss"]) else None
        if self.row.facts["loss"] is None:
            self.row.note, self.row.failed = "failed: the loss is not finite", True
        if self.device.type == "cuda":
            self.row.facts["peak_memory"] = torch.cuda.max_memory_allocated() - self._before

    def _let_go(self) -> None:
        self.trainer = self.batches = None

    def _memory(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
