"""Training images a second on an idle machine, beside a busy process, and of two runs at once, by how threads wait."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from aavae.runtime import threads
from benchmarks.bench import Bench

MODELS = {
    "digits": ("experiment=digits",),
    "resnet18": ("dataset=synthetic", "dataset.image_size=32", "encoder=resnet18", "decoder=resnet18", "batch_size=64"),
}
OWN = ("OMP_NUM_THREADS", threads.SHARED, *threads.WAITING)  # variables of the user's, which are not what is measured
GROUPS = (("idle", False, 1), ("busy", True, 1), ("two at once", False, 2))
NOTES = (
    "Each figure is a process of its own that trains for some seconds, without validation; of two at once, the sum.",
    "`settled` is what aavae-train does; two settled runs share the cores as two jobs of a sweep do (n_jobs=2). "
    "`busy`: beside one Python process that computes all the time.",
)


class Threading(NamedTuple):
    """Variables of the environment, and whether the process chooses its threads as aavae-train does."""

    name: str
    environment: dict[str, str]
    settles: bool = False


SETTINGS = (
    Threading("as torch comes", {}),
    *(
        Threading(f"all threads, spinning {turns}", {"GOMP_SPINCOUNT": turns})
        for turns in ("1000", "3000", "20000", "50000")
    ),
    Threading("one thread", {"OMP_NUM_THREADS": "1"}),
    Threading("settled", {}, True),
)


def measure(bench: Bench) -> None:
    """Fill the book with every setting, idle and busy, alone and two at once."""
    if not bench.on_cpu:
        bench.row("threads", "all", "left out", note="threads are measured on a CPU; say --device cpu")
        return
    for note in NOTES:
        bench.book.note("threads", note)
    names = bench.models or (("digits",) if bench.quick else tuple(MODELS))
    settings = SETTINGS[-1:] if bench.quick else SETTINGS
    for name in (n for n in names if n in MODELS):
        for group, busy, runs in GROUPS[:1] if bench.quick else GROUPS:
            rows = [bench.row("threads", f"{name}, {group}", setting.name) for setting in settings]
            for _ in range(1 if bench.quick else bench.repeats):  # in turns
                for row, setting in zip(rows, settings, strict=True):
                    with row.attempt(), company() if busy else contextlib.nullcontext():
                        row.samples.append(speed(MODELS[name], setting, runs, 0.2 if bench.quick else 6.0))
            bench.book.done(*rows)


@contextlib.contextmanager
def company() -> Iterator[None]:
    """Another process that keeps a core busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def speed(overrides: tuple[str, ...], setting: Threading, runs: int, seconds: float) -> float:
    """Images a second of so many processes together. Raises RuntimeError if one fails."""
    environment = {k: v for k, v in os.environ.items() if k not in OWN} | setting.environment
    if runs > 1 and setting.settles:
        environment |= {"OMP_NUM_THREADS": str(max(1, len(threads.cores()) // runs)), threads.SHARED: "1"}
    command = [sys.executable, "-m", "benchmarks.paced", str(seconds), str(setting.settles), *overrides]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(runs)]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"a process that trained {' '.join(overrides)} failed")
    return sum(float(line) for line in said)
