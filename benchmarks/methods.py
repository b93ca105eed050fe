"""What a training image costs by method, measured and counted, relative to AAVAE's."""

import contextlib

from aavae import build
from benchmarks import ladder
from benchmarks.bench import Bench
from benchmarks.climb import Climb
from benchmarks.ladder import Step
from benchmarks.timing import interleave

REFERENCE = "aavae"
# What a method needs beside its name, for images of 32 pixels; `cpc` and `mae` have encoders of their own.
NEEDS = {
    "cpc": {"tiny": ("encoder=patches_tiny",), "resnet18": ("encoder=patches18",), "resnet50": ("encoder=patches50",)},
    "mae": {"tiny": ("encoder=vit_tiny",), "resnet18": ("encoder=vit_small",), "resnet50": ("encoder=vit_small",)},
}
QUEUES = ("moco", "swav")
NETWORKS = {"tiny": "_tiny", "resnet18": "18", "resnet50": "50"}
NOTES = (
    "One step as a run does it: batch, views, forward, backward, optimizer. Each method with the heads of its YAML and "
    "SimCLR's views; `mae` has a ViT instead of the ResNet.",
    "× counted: FLOP of products an image, relative to AAVAE's; × measured: seconds an image, relative to AAVAE's.",
)


def measure(bench: Bench) -> None:
    """Every method with each network, in turns."""
    for note in NOTES:
        bench.book.note("methods", note)
    asked = [name for name in bench.models if name in NETWORKS]
    for name in asked if bench.models else ["tiny"]:
        batch = bench.batches[0] if bench.batches else 32 if bench.on_cpu else 256
        group = f"{name}, batch {batch}"
        steps = [Step(method, _overrides(bench, name, method, batch)) for method in _methods(bench.quick)]
        rows = [bench.row("methods", group, step.name) for step in steps]
        climbs = [Climb(row, step, step.overrides, bench.device) for row, step in zip(rows, steps, strict=True)]
        _compare(bench, climbs)


def _overrides(bench: Bench, name: str, method: str, batch: int) -> tuple[str, ...]:
    words = [*ladder.DATA, "dataset.image_size=32", f"batch_size={batch}", f"dataset.size={8 * batch}"]
    words += [f"device={bench.device}", f"method={method}", "augmentation=simclr"]
    words += NEEDS.get(method, {}).get(name, [f"encoder=resnet{NETWORKS[name]}"])
    if "decoder" in build.compose([f"method={method}"]).model.takes:
        words.append(f"decoder=resnet{NETWORKS[name]}")
    return (*words, *([f"model.queue_size={64 * batch}"] if method in QUEUES else []))


def _compare(bench: Bench, climbs: list[Climb]) -> None:
    peaks: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        for climb in climbs:
            with climb.row.attempt():
                climb.count(peaks, (64,))
        whole = [climb for climb in climbs if not climb.row.failed]
        candidates = [candidate for climb in whole if (candidate := climb.begin(stack))]
        interleave(candidates, bench.repeats, 0.0 if bench.quick else 1.0, bench.device)
        for climb in whole:
            climb.judge()
    rows = {climb.row.name: climb.row for climb in climbs}
    first = rows[REFERENCE]
    for row in rows.values():
        if row.median and first.median:
            counted = row.facts["flop_per_image"] / first.facts["flop_per_image"]
            row.columns = {"× counted": counted, "× measured": first.median / row.median}
    bench.book.done(*rows.values())


def _methods(quick: bool) -> list[str]:
    if quick:
        return [REFERENCE, "simclr", "mae"]
    return [REFERENCE, *(m for m in build.options("method") if m != REFERENCE)]
