"""How much a training step computes, and how fast the device multiplies matrices at best."""

import time
from functools import cache

import torch

from aavae import build
from aavae.runtime.device import pick_precision
from aavae.training.flops import training_flop
from benchmarks.timing import wait

# They change how something is computed, and not how much.
MEANS = (
    "precision", "trainer.compile", "trainer.cuda_graphs", "trainer.channels_last", "optimizer.kwargs.fused",
    "optimizer.kwargs.foreach", "dataset.size", "device",
)  # fmt: skip
SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16384)}
TRIES = 5


def flop_per_image(overrides: tuple[str, ...]) -> float:
    """FLOP of a training step by image, without the augmentation.

    1 multiplication with its addition is 2 FLOP; the clean pass counts where there is one.
    """
    return _counted(tuple(o for o in overrides if o.lstrip("+").partition("=")[0] not in MEANS))


@cache
def _counted(overrides: tuple[str, ...]) -> float:
    cfg = build.compose([*overrides, "dataset.size=4"])
    data = build.dataset(cfg)
    with torch.device("meta"):
        model = build.model(cfg, data)
    flop = training_flop(model, data.image_size, cfg.trainer.clean_pass == "every_step", cfg.batch_size)
    assert flop is not None  # all that is measured here can be counted
    return flop


def matrix_peak(precision: str, device: torch.device, sizes: tuple[int, ...] | None = None) -> float:
    """FLOP/s of the best of several large matrix products in a precision of aavae's."""
    pick_precision(precision, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    best = 0.0
    for n in sizes or SIZES.get(device.type, SIZES["cpu"]):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        a @ b
        for _ in range(TRIES):
            wait(device)
            began = time.perf_counter()
            for _ in range(3):
                a @ b
            wait(device)
            best = max(best, 3 * 2 * n**3 / (time.perf_counter() - began))
    return best
