"""Training images a second, from the released recipe upwards, one thing added at a time."""

import contextlib
import gc

import torch

from benchmarks import ladder
from benchmarks.bench import Bench
from benchmarks.book import Measured
from benchmarks.climb import Climb
from benchmarks.ladder import MODELS
from benchmarks.timing import interleave

PAPER_IMAGES = 45_000 * 3_200  # 3,200 epochs of CIFAR-10
NOTES = (
    "One step as a run does it: batch, view, forward, backward, optimizer, running means; without the validation and "
    "the diagnostics of every 50th step. Random weights, made-up images.",
    "TFLOP/s: products of forward and backward pass, clean pass included where there is one, over the time; % of peak: "
    "against the fastest of some large matrix products in the same precision, measured just before.",
    "Hours are those of the paper's run, 3,200 epochs of 45,000 images, at this speed.",
)
ON_CPU = "Peak memory is not shown: on a CPU the rungs are measured in turns in one process, which has one peak."
ON_GPU = "On a GPU the rungs are measured one after the other, each with the memory for itself."


def measure(bench: Bench) -> None:
    """Climb the ladder with each network and batch size."""
    for note in (*NOTES, ON_CPU if bench.on_cpu else ON_GPU):
        bench.book.note("step", note)
    peaks: dict[str, float] = {}
    asked = tuple(name for name in bench.models if name in MODELS)
    for name in asked or (("tiny",) if bench.quick else ladder.PAPER):
        small = bench.on_cpu or bench.quick
        for batch in bench.batches or ((MODELS[name].batch_on_cpu,) if small else ladder.ON_GPU):
            _climb(bench, name, batch, peaks)


def _climb(bench: Bench, name: str, batch: int, peaks: dict[str, float]) -> None:
    climbs = _climbs(bench, name, batch)
    for climb in climbs:
        climb.count(peaks, (64,) if bench.quick else None)
    for precision, peak in peaks.items():
        bench.book.note("step", f"Matrix products in {precision}: {peak / 1e12:.3g} TFLOP/s.")
    for together in [climbs] if bench.on_cpu else [[climb] for climb in climbs]:
        try:
            with contextlib.ExitStack() as stack:
                candidates = [candidate for climb in together if (candidate := climb.begin(stack))]
                interleave(candidates, bench.repeats, 0.0 if bench.quick else 1.0, bench.device)
                for climb in together:
                    climb.judge()
        finally:
            _free(bench.device)
            compare([climb.row for climb in climbs])
            bench.book.done(*(climb.row for climb in together))


def _climbs(bench: Bench, name: str, batch: int) -> list[Climb]:
    """The rungs that the device can do; the others are rows that say why not."""
    common = (*ladder.DATA, *MODELS[name].overrides, f"batch_size={batch}", f"dataset.size={max(16, 8 * batch)}")
    climbs = []
    for step in ladder.ladder_for(bench.device, bench.compile, MODELS[name].skips):
        row = bench.row("step", f"{name}, batch {batch}", step.name, note=step.left_out)
        if not step.left_out:
            climbs.append(Climb(row, step, (*common, f"device={bench.device}", *step.overrides), bench.device))
    return climbs


def compare(rows: list[Measured]) -> None:
    """What follows from the speeds of a ladder; each rung is compared with the last one below it that was measured."""
    first = before = None
    for row in rows:
        if not (speed := row.median):
            continue
        first = first or (speed if row.name == ladder.REFERENCE else None)
        flops = speed * row.facts["flop_per_image"]
        row.columns = {
            "× reference": speed / first if first else None,
            "× before": speed / before if before else None,
            "TFLOP/s": flops / 1e12,
            "% of peak": 100 * flops / row.facts["matrix_peak"],
            "hours": PAPER_IMAGES / speed / 3600,
        }
        if memory := row.facts.get("peak_memory"):
            row.columns["peak GiB"] = memory / 2**30
        before = speed


def _free(device: torch.device) -> None:
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
