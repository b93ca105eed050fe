"""What a run would take, measured on a few steps (`dry_run=true`)."""

import resource
import sys
import time

import torch

from aavae.datasets.loader import Batch
from aavae.datasets.rehearsal import bytes_not_made
from aavae.loggers.screen import Reporter, duration
from aavae.runtime.words import count
from aavae.training.trainer import Trainer

STAND_IN = "{} is not here, and a dry run downloads nothing: random images of its size and number stand in"


def estimate(trainer: Trainer, repeats: int = 2, most: int = 64) -> dict[str, float]:
    """Steps, seconds of training, and peak memory in bytes of the process that needs most, from a warm-up step and
    `repeats` timed ones.

    On a CPU they may have been on `rows` images, `most` at most, `of` a larger batch.

    Spends the trainer: its weights have moved afterwards.
    """
    trainer.model.train()
    batch = next(iter(trainer.loader.epoch(0)))
    whole = len(batch.clean)
    if trainer.device.type == "cpu" and whole > most and trainer.settings.accumulate == 1:
        # A CPU is slow enough to be timed on a part of the batch, and too slow for more.
        part = trainer.settings.virtual_batch or 1
        most = max(part, most // part * part)
        batch = Batch(batch.clean[:most], batch.source[:most], batch.cropped)
    rows = len(batch.clean)
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        trainer.train_step(batch)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    # ru_maxrss counts KiB, on macOS bytes.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if trainer.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    memory = trainer.processes.largest(memory + bytes_not_made(trainer.dataset))
    per_step = min(seconds[1:]) * whole / rows
    steps = trainer.total_steps
    return {"steps": steps, "seconds": per_step * steps, "memory": memory, "rows": rows, "of": whole}


def print_estimate(trainer: Trainer) -> float:
    """Say what the run would take, without validation and final evaluation; returns the seconds."""
    found = estimate(trainer)
    world = trainer.processes.world
    where = "on the GPU" if trainer.device.type == "cuda" else "of main memory"
    where += f" in each of {world} processes" if world > 1 else ""
    where += f", measured with {found['rows']} of {count(found['of'], 'image')}" if found["rows"] < found["of"] else ""
    say = Reporter(quiet=not trainer.processes.leads).say
    parameters = sum(p.numel() for p in trainer.model.parameters())
    data = trainer.dataset
    say(f"dataset     {data.name}: {count(len(trainer.loader.split), 'image')} for pretraining, {data.image_size}²")
    if data.rehearsed:
        say(f"images      {STAND_IN.format(data.name)}{'' if data.in_memory else '; without the time to decode files'}")
    say(f"model       {count(parameters, 'parameter')}")
    every = f"{count(trainer.settings.epochs, 'epoch')} of {trainer.loader.steps_per_epoch:,}"
    say(f"steps       {found['steps']:,} ({every})")
    say(f"time        about {duration(found['seconds'])} of training on {trainer.device}, {trainer.precision.name}")
    say(f"memory      {found['memory'] / 2**30:.1f} GiB {where}")
    say("dry run: nothing was written")
    return found["seconds"]
