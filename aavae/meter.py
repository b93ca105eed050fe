"""Means and speed between two log points, kept on the device until they are read."""

import time

import torch
from torch import Tensor

from aavae.runtime import Processes


class Meter:
    """Sums loss terms step by step; `read` gives their means over all processes, and starts anew."""

    def __init__(self, processes: Processes):
        self.processes = processes
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self.restart(0)

    def restart(self, step: int) -> None:
        """Measure the speed from now and `step` on."""
        self._mark = (time.monotonic(), step)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count the scalars of one step; a name may be missing from some steps."""
        for name, value in terms.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value.detach(), count + 1)

    def read(self, step: int) -> tuple[dict[str, float], int, float]:
        """Means by name, the number of steps they are over, and steps per second. Waits for the device."""
        values = torch.stack([(total / count).float() for total, count in self._sums.values()])
        means = dict(zip(self._sums, self.processes.average(values).tolist(), strict=True))
        steps = max(count for _, count in self._sums.values())
        self._sums = {}
        then, before = self._mark
        speed = (step - before) / max(1e-9, time.monotonic() - then)
        self.restart(step)
        return means, steps, speed
