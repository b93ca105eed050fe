"""Candidates measured side by side: in turns, so that what else happens on the machine meets all of them."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.book import Measured

MOST = 10_000  # calls of a sample
PATIENCE = 5.0  # seconds without a word


@dataclass
class Candidate:
    """What `run` does on `images` images at a time, for the samples of a `row`: images/s, or seconds of a call.

    `running` makes a context for each sample, outside its time, which sets what only this candidate wants. One that
    `takes_long` is called once a sample, and is not warmed up.
    """

    row: Measured
    run: Callable[[], object]
    images: int = 0
    running: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    takes_long: bool = False

    def seconds(self, calls: int, device: torch.device) -> float:
        """Seconds of `calls` calls, to the end of what they began on the device."""
        with self.running():
            wait(device)
            began = time.perf_counter()
            for _ in range(calls):
                self.run()
            wait(device)
            return time.perf_counter() - began

    def sample(self, calls: int, device: torch.device) -> None:
        """Measure once."""
        seconds = self.seconds(calls, device) / calls
        self.row.samples.append(self.images / seconds if self.row.unit == "images/s" else seconds)


def wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize()


def interleave(candidates: list[Candidate], repeats: int, at_least: float, device: torch.device) -> None:
    """`repeats` samples of each candidate, of `at_least` seconds each, in turns; those that fail say so and drop out.

    Whatever a candidate needs to find its speed (compilation, caches, a queue to fill) comes before the first sample.
    """
    calls, still = {}, Still()
    for candidate in candidates:
        with candidate.row.attempt():
            calls[id(candidate)] = 1 if candidate.takes_long else warm_up(candidate, at_least, device)
            still.say(candidate.row, "is warm")
    ready = [candidate for candidate in candidates if id(candidate) in calls]
    for done in range(repeats):
        for candidate in list(ready):
            still.say(candidate.row, f"{done} of {repeats} samples")
            with candidate.row.attempt():
                candidate.sample(calls[id(candidate)], device)
                continue
            ready.remove(candidate)


def warm_up(candidate: Candidate, at_least: float, device: torch.device) -> int:
    """How many calls take `at_least` seconds: found by calling until as many have taken so long, which warms up."""
    candidate.row.facts["first_call_seconds"] = candidate.seconds(1, device)
    calls = 1
    while at_least and (seconds := candidate.seconds(calls, device)) < at_least and calls < MOST:
        calls = min(MOST, 10 * calls, max(2 * calls, math.ceil(1.1 * calls * at_least / seconds)))
    return calls


class Still:
    """Says how far it is, where nothing was said for some seconds."""

    def __init__(self):
        self.said = time.monotonic()

    def say(self, row: Measured, text: str) -> None:
        """Say it, if it is time."""
        if time.monotonic() - self.said > PATIENCE:
            self.said = time.monotonic()
            print(f"{row.part}  {row.group}  {row.name}: {text}", flush=True)
