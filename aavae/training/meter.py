"""Means and speed between two log points, kept on the device until they are read."""

import math
import time

import torch
from torch import Tensor

from aavae.runtime.processes import Processes


class Meter:
    """Sums loss terms step by step; `read` gives their means over all processes, and starts anew.

    Of the terms named in `overflows` only finite values count: those of the steps that fp16's gradient scaler takes.
    """

    def __init__(self, processes: Processes, overflows: tuple[str, ...] = ()):
        self.processes, self.overflows = processes, overflows
        self._sums: dict[str, tuple[Tensor, Tensor | int]] = {}
        self.restart(0)

    def restart(self, step: int) -> None:
        """Measure the speed from now and `step` on."""
        self._mark = (time.monotonic(), step)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count the scalars of one step; a name may be missing from some steps."""
        for name, term in terms.items():
            value = term.detach()
            counts: Tensor | int = 1
            if name in self.overflows:
                finite = value.isfinite()
                value, counts = torch.where(finite, value, 0.0), finite.int()  # booleans would not add up
            if name in self._sums:
                total, count = self._sums[name]
                value, counts = total + value, count + counts
            self._sums[name] = (value, counts)

    def read(self, step: int) -> tuple[dict[str, float], int, float]:
        """Means by name, the number of steps they are over, and steps per second. Waits for the device."""
        values = torch.stack([(total / count).float() for total, count in self._sums.values()])
        means = dict(zip(self._sums, self.processes.average(values).tolist(), strict=True))
        steps = max(count for _, count in self._sums.values() if isinstance(count, int))
        means = {name: mean for name, mean in means.items() if not (name in self.overflows and math.isnan(mean))}
        self._sums = {}
        then, before = self._mark
        speed = (step - before) / max(1e-9, time.monotonic() - then)
        self.restart(step)
        return means, steps, speed
