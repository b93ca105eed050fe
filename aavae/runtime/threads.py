"""How many threads a CPU run computes with, and how long they spin: chosen by how busy the machine is at the start.

OpenMP's threads meet after every operation, and wait there by spinning. Beside another busy process the one that waits
takes the core from the one that is waited for: a tiny network was measured 40 times slower. So there are no more
threads than idle cores, and they spin for a short time only (docs/performance.md has the figures).
"""

import math
import os
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from aavae.runtime.words import count

SPIN = "20000"  # turns of libgomp's waiting loop before a thread sleeps; its default is 300,000
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # how threads wait, where the user has said so
SHARED = "AAVAE_SHARED_CORES"  # set where a sweep has chosen OMP_NUM_THREADS for its job
STAT = Path("/proc/stat")
WINDOW = 0.3  # seconds in which the load is measured, at least; /proc/stat counts in hundredths
SLACK = 0.3  # of a core: what the rest of a desktop does now and then is no busy process


class Clock(NamedTuple):
    """A moment: seconds, seconds that our cores have been idle in all, and seconds that this process has computed."""

    time: float
    idle: float | None  # None where nobody knows
    own: float


def cores() -> list[int]:
    """The cores that this process may run on, which a job scheduler may have cut down."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def quota() -> float:
    """How many cores' time a container may use (Linux's cgroup v2); infinite where there is no limit."""
    with suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(limit) / float(period)  # ValueError: the limit is the word "max"
    return math.inf


def now() -> Clock:
    """This moment."""
    idle = None
    with suppress(OSError, ValueError, IndexError):  # not Linux
        rows = [line.split() for line in STAT.read_text().splitlines()]
        ours = {f"cpu{n}" for n in cores()}
        ticks = sum(int(row[4]) + int(row[5]) for row in rows if row[0] in ours)  # idle, and waiting for a disk
        idle = ticks / os.sysconf("SC_CLK_TCK")
    return Clock(time.monotonic(), idle, time.process_time())


_BEGAN = now()


def free_cores(began: Clock, ended: Clock) -> float:
    """How many cores this process could have had between two moments; all of them where nobody knows."""
    most, seconds = min(len(cores()), quota()), ended.time - began.time
    if began.idle is None or ended.idle is None or seconds <= 0:
        return most
    return min(most, (ended.idle - began.idle + ended.own - began.own) / seconds)


class Settled(NamedTuple):
    """How many threads there are, and in words that the machine was busy, None if it was not."""

    threads: int
    busy: str | None = None


def chosen() -> bool:
    """Whether the user has said how many threads there are; what a sweep hands to its jobs is not the user's word."""
    return "OMP_NUM_THREADS" in os.environ and SHARED not in os.environ


@cache
def settle() -> Settled:
    """Import torch and give it as many threads as there are idle cores, one at least; once in a process.

    What the user has chosen is kept, and so is everything if torch is there already.
    """
    if "torch" in sys.modules:
        return Settled(sys.modules["torch"].get_num_threads())
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPIN  # read once, when the library is loaded
    time.sleep(max(0.0, _BEGAN.time + WINDOW - time.monotonic()))
    free, several = free_cores(_BEGAN, now()), len(cores())
    import torch

    if not chosen():
        torch.set_num_threads(max(1, min(torch.get_num_threads(), math.floor(free + SLACK))))
    busy = f"the machine is busy: about {max(0.0, free):.1f} of {count(several, 'core')} are free"
    return Settled(torch.get_num_threads(), busy if free + SLACK < several else None)
