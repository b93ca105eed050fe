"""Views a second: ours, kornia's, torchvision's and PIL's."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from aavae.augmentations.simclr import SimCLRViews
from aavae.datasets import to_float
from aavae.runtime.randomness import generator_for
from benchmarks import rivals
from benchmarks.bench import Bench
from benchmarks.book import Measured
from benchmarks.timing import Candidate, interleave

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NOTES = (
    "From uint8 images in memory (PIL images for PIL) to normalised float32 views, draws included; not stacked into "
    "batches where it goes image by image.",
    "kornia: a draw per image, but one order of the colour operations for the whole batch.",
    "PIL blurs with its own filter, which is faster than torchvision's on PIL images.",
)


class Setting(NamedTuple):
    """What an image size asks for (docs/reproduction.md), and how many images a CPU is given at once."""

    size: int
    strength: float
    blur_p: float
    on_cpu: int


SETTINGS = (Setting(32, 0.5, 0.0, 256), Setting(96, 1.0, 0.5, 256), Setting(224, 1.0, 0.5, 32))
ON_GPU = (256, 1024, 4096)
QUICK = (4,)
ONE_BY_ONE = 64  # images of a call that takes them one by one


def measure(bench: Bench) -> None:
    """Fill the book with views a second."""
    for note in NOTES:
        bench.book.note("augmentation", note)
    for setting in SETTINGS:
        batches = bench.batches or (QUICK if bench.quick else (setting.on_cpu,) if bench.on_cpu else ON_GPU)
        candidates = _batched(bench, setting, batches) + _one_by_one(bench, setting, min(ONE_BY_ONE, *batches, 64))
        rows = [candidate.row for candidate in candidates]
        try:
            interleave(candidates, bench.repeats, 0.0 if bench.quick else 0.3, bench.device)
        finally:
            compare(rows)
            bench.book.done(*rows)


def compare(rows: list[Measured]) -> None:
    """Say of each how many times faster than PIL, which comes last, it is."""
    if base := rows[-1].median:
        for row in rows:
            row.columns |= {"× PIL": row.median / base} if row.samples else {}


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """So many threads of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batched(bench: Bench, setting: Setting, batches: tuple[int, ...]) -> list[Candidate]:
    ours = SimCLRViews(setting.strength, setting.blur_p)
    theirs = rivals.kornia(ours, setting.size, MEAN, STD)
    mean, std = (torch.tensor(c, device=bench.device).view(1, 3, 1, 1) for c in (MEAN, STD))
    generator = generator_for(0, "benchmark")
    several = torch.get_num_threads()
    counts = sorted({1, several}) if bench.on_cpu else [several]  # a GPU's parameters are drawn on the CPU
    candidates = []

    def mine(images: Tensor) -> Tensor:
        return (ours(to_float(images), generator) - mean) / std

    def other(images: Tensor) -> Tensor:
        return theirs(to_float(images))

    for batch in batches:
        images = _images(setting.size, batch).to(bench.device)
        for n in counts:
            row = _row(bench, setting, f"ours, {batch} at a time", n)
            candidates.append(Candidate(row, partial(mine, images), batch, partial(threads, n)))
        if theirs:
            row = _row(bench, setting, f"kornia, {batch} at a time", counts[0])
            candidates.append(Candidate(row, partial(other, images), batch, partial(threads, counts[0])))
    if not theirs:
        bench.row("augmentation", _group(setting), "kornia", note=rivals.MISSING)
    return candidates


def _one_by_one(bench: Bench, setting: Setting, n: int) -> list[Candidate]:
    ours, images = SimCLRViews(setting.strength, setting.blur_p), _images(setting.size, n)
    candidates = []
    for name, make, items in (
        ("torchvision v2, one by one", rivals.torchvision_v2, list(images)),
        ("PIL, one by one", rivals.pil, rivals.pictures(images)),
    ):
        view = make(ours, setting.size, MEAN, STD)
        row = bench.row("augmentation", _group(setting), f"{name}, one core of the CPU")
        candidates.append(Candidate(row, partial(_each, view, items), n, partial(threads, 1)))
    return candidates


def _each(view: Callable, items: list) -> list[Tensor]:
    return [view(item) for item in items]


def _row(bench: Bench, setting: Setting, name: str, n: int) -> Measured:
    where = (f"{n} threads" if n > 1 else "one core") + " of the CPU" if bench.on_cpu else "GPU"
    return bench.row("augmentation", _group(setting), f"{name}, {where}", facts={"size": setting.size, "threads": n})


def _group(setting: Setting) -> str:
    blur = f", blur p={setting.blur_p:g}" if setting.blur_p else ""
    return f"{setting.size}×{setting.size}, strength {setting.strength:g}{blur}"


def _images(size: int, n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator_for(0, "images"))
