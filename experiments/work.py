"""What a training image costs, and the epochs in which a method computes as much as AAVAE."""

import sys
from functools import cache

import torch

from aavae import build
from aavae.errors import UserError
from aavae.training.flops import training_flop
from experiments.runs import Runs

REFERENCE = "method=aavae"


def epochs_of_equal_work(runs: Runs, dataset: str, fixed: tuple[str, ...]) -> int:
    """The whole number of epochs, 1 or more, in which the setting computes most nearly what AAVAE computes in its own.

    Raises UserError where the work cannot be counted.
    """
    if not flop_of_an_image.cache_info().currsize:
        print("counting what each method computes", file=sys.stderr, flush=True)
    reference = tuple(runs.words(dataset, (REFERENCE,)))
    ratio = flop_of_an_image(reference) / flop_of_an_image(tuple(runs.words(dataset, fixed)))
    return max(1, round(build.compose(list(reference)).epochs * ratio))


@cache
def flop_of_an_image(words: tuple[str, ...]) -> float:
    """FLOP of one training image under these overrides."""
    cfg = build.compose(list(words))
    data = build.dataset(cfg)
    with torch.device("meta"):
        model = build.model(cfg, data)
    flop = training_flop(model, data.image_size, cfg.trainer.clean_pass == "every_step", cfg.batch_size)
    if flop is None:
        raise UserError(f"the work of {cfg.method} cannot be counted, so that it cannot be compared at equal work")
    return flop
