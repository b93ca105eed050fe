"""Whether a step waits for the device between two log points, and what the device is busy with."""

import gc
import itertools
from collections import Counter
from collections.abc import Iterator

import torch

from aavae import build
from benchmarks import ladder
from benchmarks.bench import Bench
from benchmarks.ladder import MODELS
from benchmarks.timing import wait

STEPS, WARM, PROFILED, SHOWN = 20, 15, 10, 15
WAITING = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
TO_HOST = "Memcpy DtoH"
DEFAULT = "trainer=default"
ON_META = (
    "Without CUDA the steps are taken on torch's meta device, where reading a value back is an error; copies from the "
    "host that wait are not noticed there."
)
ON_CUDA = (
    "CUDA: steps under torch.cuda.set_sync_debug_mode('error'), which raises where torch waits; then what the profiler "
    "saw of the same steps. cudaDeviceSynchronize is left out: the profiler itself calls it."
)


def measure(bench: Bench) -> None:
    """Take the steps between two log points, and note what waits."""
    name = (bench.models or (("tiny",) if bench.quick else ("resnet50",)))[0]
    on_cuda = bench.device.type == "cuda"
    bench.book.note("syncs", ON_CUDA if on_cuda else ON_META)
    batch = (bench.batches or ((8,) if bench.quick or not on_cuda else (256,)))[0]
    common = (*ladder.DATA, *MODELS[name].overrides, f"batch_size={batch}", f"dataset.size={8 * batch}")
    recipes = {DEFAULT: (), "trainer=default, clean pass off": ("trainer.clean_pass=off",)}
    if on_cuda and not bench.quick:
        recipes["the whole ladder"] = ladder.ladder_for(bench.device, skips=MODELS[name].skips)[-1].overrides
    for recipe, overrides in recipes.items():
        group = f"{name}, batch {batch}, {recipe}"
        if on_cuda:
            _on_cuda(bench, group, (*common, *overrides))
        else:
            _on_meta(bench, group, (*common, "device=cpu", *overrides))


def _steps(trainer) -> Iterator[None]:
    for epoch in itertools.count():
        for batch in trainer.loader.epoch(epoch):
            trainer.meter.add(trainer.train_step(batch))
            yield


def _take(steps: Iterator[None], n: int) -> None:
    for _ in range(n):
        next(steps)


# ---- Without CUDA -------------------------------------------------------------------------------------------------


def _on_meta(bench: Bench, group: str, overrides: tuple[str, ...]) -> None:
    n = 2 if bench.quick else STEPS
    row = bench.row("syncs", group, "steps on the meta device that read nothing back", "steps")
    with row.attempt():
        _take(_steps(build.trainer(build.compose(overrides), meta=True)), n)
        row.samples = [float(n)]
    bench.book.done(row)


# ---- On CUDA ------------------------------------------------------------------------------------------------------


def _on_cuda(bench: Bench, group: str, overrides: tuple[str, ...]) -> None:
    row = bench.row("syncs", group, "steps that wait for nothing", "steps")
    with row.attempt():
        trainer = build.trainer(build.compose([*overrides, f"device={bench.device}"]))
        trainer.model.train()
        steps = _steps(trainer)
        _take(steps, WARM)
        wait(bench.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            _take(steps, STEPS)
            row.samples = [float(STEPS)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    bench.book.done(row)
    if row.samples:
        _profile(bench, group, steps)
    steps = trainer = None
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _profile(bench: Bench, group: str, steps: Iterator[None]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        _take(steps, PROFILED)
        wait(bench.device)
    calls, busy = seen(profiler.events())
    rows = [bench.row("syncs", group, name, "calls a step", samples=[n / PROFILED]) for name, n in calls.items()]
    total = sum(busy.values())
    for name, microseconds in busy.most_common(SHOWN):
        row = bench.row("syncs", group, f"`{name[:80]}`", "ms a step", samples=[microseconds / 1e3 / PROFILED])
        row.columns = {"% of all": 100 * microseconds / total}
        rows.append(row)
    bench.book.done(*rows)


def seen(events) -> tuple[dict[str, int], Counter]:
    """Of a profiler's events: how often something waited, by name, and the microseconds of each kernel."""
    names = Counter(event.name for event in events)
    calls = {name: names[name] for name in WAITING}
    calls[TO_HOST] = sum(n for name, n in names.items() if name.startswith(TO_HOST))
    busy: Counter = Counter()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            busy[event.name] += event.time_range.elapsed_us()
    return calls, busy
