"""`python -m benchmarks.paced SECONDS SETTLES OVERRIDE …` prints the images/s of steps, in a process of their own.

It imports torch only when its threads are settled, or not, as they are for a command.
"""

import sys
import time

from aavae.runtime import threads


def train(seconds: float, settles: bool, overrides: list[str]) -> float:
    """Images a second of steps that take so many seconds."""
    if settles:
        threads.settle()
    from aavae import build

    trainer = build.trainer(build.compose([*overrides, "device=cpu", "probe=[]"]))
    trainer.model.train()
    batches = (batch for epoch in range(10**9) for batch in trainer.loader.epoch(epoch))
    for _ in range(3):
        trainer.train_step(next(batches))
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        trainer.train_step(next(batches))
        steps += 1
    return steps * trainer.loader.batch_size / (time.perf_counter() - began)


if __name__ == "__main__":
    print(train(float(sys.argv[1]), sys.argv[2] == "True", sys.argv[3:]))
