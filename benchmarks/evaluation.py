"""Seconds of judging a frozen encoder: features, kNN, linear probes."""

from typing import NamedTuple

import torch
from torch import Tensor

from aavae import build
from aavae.datasets import Dataset, Split
from aavae.probes.knn import KNN
from aavae.probes.linear import Linear
from aavae.probes.linear_cached import LinearCached
from aavae.probes.representations import Representation
from aavae.runtime.device import pick_precision
from aavae.runtime.randomness import generator_for
from benchmarks.bench import Bench
from benchmarks.book import Measured
from benchmarks.timing import Candidate, interleave

NOTES = (
    "kNN and the cached linear probe judge made-up features of ten classes; the others pass made-up 32² images through "
    "an untrained encoder, in the precision of precision=auto.",
    "The linear probe of the paper has 90 epochs; one was run, features of validation and test images included.",
)
CLASSES = 10


class Size(NamedTuple):
    """Features, images of each split (train, validation, test), and what passes through the encoder."""

    features: int
    judged: tuple[int, int, int]
    encoder: str
    encoded: tuple[int, int, int]


PAPER = (45_000, 5_000, 10_000)
ON_GPU = Size(2048, PAPER, "resnet50", PAPER)
ON_CPU = Size(2048, PAPER, "resnet50", (256, 32, 64))  # so many as take seconds
QUICK = Size(64, (90, 10, 20), "resnet_tiny", (32, 8, 8))


class Noise(Dataset):
    """Random 32² images with labels, as many in each split as asked for."""

    name, num_classes, image_size = "noise", CLASSES, 32
    mean, std = (0.5,) * 3, (0.25,) * 3

    def __init__(self, sizes: tuple[int, int, int]):
        super().__init__()
        self.sizes = sizes

    def read(self, device: torch.device) -> dict[str, Split]:
        """Three labelled splits."""
        generator, splits = generator_for(0, "images"), {}
        for name, n in zip(("train", "val", "test"), self.sizes, strict=True):
            images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
            splits[name] = Split(images.to(device), torch.arange(n) % CLASSES)
        return splits


class Remembered:
    """A representation whose features are there already: classes that overlap, never negative, as those of h are."""

    name = "h"

    def __init__(self, sizes: tuple[int, int, int], width: int, device: torch.device):
        generator = generator_for(0, "features")
        centres = 0.1 * torch.randn(CLASSES, width, generator=generator)
        self.splits = {}
        for name, n in zip(("train", "val", "test"), sizes, strict=True):
            labels = torch.arange(n) % CLASSES
            features = (centres[labels] + torch.randn(n, width, generator=generator)).relu()
            self.splits[name] = features.to(device), labels.to(device)

    def __call__(self, split: str) -> tuple[Tensor, Tensor]:
        return self.splits[split]


def measure(bench: Bench) -> None:
    """Fill the book with the seconds of each probe, and the images/s of the encoder."""
    for note in NOTES:
        bench.book.note("evaluation", note)
    scale = QUICK if bench.quick else ON_CPU if bench.on_cpu else ON_GPU
    for candidates in (_judging(bench, scale), _encoding(bench, scale)):
        rows = [candidate.row for candidate in candidates]
        try:
            interleave(candidates, min(bench.repeats, 2 if bench.on_cpu else 3), 0.0, bench.device)
        finally:
            bench.book.done(*rows)


def _judging(bench: Bench, scale: Size) -> list[Candidate]:
    n, validation, test = scale.judged
    group = f"{scale.features:,} features, {n:,} / {validation:,} / {test:,} images"
    encode, data = Remembered(scale.judged, scale.features, bench.device), Noise(scale.judged)
    probes = {"kNN": KNN(), "linear_cached: 4 weight decays, up to 100 steps each": LinearCached()}
    return [
        Candidate(_row(bench, group, name), lambda probe=probe: probe.run(encode, data), takes_long=bench.on_cpu)
        for name, probe in probes.items()
    ]


def _encoding(bench: Bench, scale: Size) -> list[Candidate]:
    n, validation, test = scale.encoded
    group = f"{scale.encoder}, 32×32, {n:,} / {validation:,} / {test:,} images"
    data, cfg = Noise(scale.encoded), build.compose([f"encoder={scale.encoder}", "dataset=synthetic"])
    encoder = build.model(cfg, data).encoder.to(bench.device, memory_format=torch.channels_last).eval()
    data.load(bench.device)

    def encode() -> Representation:  # another each time, since it remembers its features
        precision = pick_precision("auto", bench.device)
        return Representation(
            "h", lambda x, generator: encoder(x), data, bench.device, precision, batch_size=min(500, n)
        )

    def extract() -> None:
        representation = encode()
        for split in data.splits:
            representation(split)

    linear = Linear(epochs=1, batch_size=min(256, n))
    return [
        Candidate(_row(bench, group, "features of all splits", "images/s"), extract, sum(scale.encoded)),
        Candidate(_row(bench, group, "linear: 1 epoch"), lambda: linear.run(encode(), data)),
    ]


def _row(bench: Bench, group: str, name: str, unit: str = "s") -> Measured:
    return bench.row("evaluation", group, name, unit)
