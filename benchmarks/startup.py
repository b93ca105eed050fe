"""Seconds from the typed command to what it shows, and what a sweep adds to each of its jobs."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.book import Measured

ONE_STEP = ("trainer=debug", "trainer.max_steps=1", "probe=[]")
JOBS = 3
TICK = 0.005  # seconds between two looks at a process
NOTES = (
    "Commands as processes of their own, `python -m aavae.train …`, from start to end; the first step is "
    f"seen by its line in metrics.jsonl. One step: {' '.join(ONE_STEP)}.",
    "A job over a single run: the sweep, less its check beforehand (dry_run=true), by job, less a whole single run.",
)


def measure(bench: Bench) -> None:
    """Fill the book with the seconds of a user's commands."""
    for note in NOTES:
        bench.book.note("startup", note)
    names = ("--help", "--cfg job", "one step: to the first step", "one step: the whole run")
    shown, config, first, whole = (bench.row("startup", "command", name, "s") for name in names)
    for _ in range(1 if bench.quick else min(bench.repeats, 3)):
        with shown.attempt():
            shown.samples.append(_seconds("--help"))
        with config.attempt():
            config.samples.append(_seconds("--cfg", "job"))
        with first.attempt():
            began, ended = _one_step(bench.device.type)
            first.samples.append(began)
            whole.samples.append(ended)
    bench.book.done(shown, config, first, whole)
    _sweep(bench, whole)


def _sweep(bench: Bench, whole: Measured) -> None:
    left_out = "left out by --quick" if bench.quick else ""
    names = (f"a sweep of {JOBS} such runs", "its check beforehand", "a job of it, over a single run")
    sweep, check, over = (bench.row("startup", "sweep", name, "s", note=left_out) for name in names)
    for _ in range(0 if bench.quick else min(bench.repeats, 2)):
        with sweep.attempt(), tempfile.TemporaryDirectory() as folder:
            grid = [f"seed={','.join(str(seed) for seed in range(JOBS))}", f"hydra.sweep.dir={folder}/sweep"]
            grid = ["-m", *ONE_STEP, *grid, "hydra.launcher.n_jobs=1", f"device={bench.device.type}"]
            checked = _seconds(*grid, "dry_run=true")
            swept = _seconds(*grid)
            check.samples.append(checked)
            sweep.samples.append(swept)
            if whole.samples:
                over.samples.append(overhead(swept, checked, JOBS, statistics.median(whole.samples)))
    bench.book.done(sweep, check, over)


def overhead(sweep: float, check: float, jobs: int, single: float) -> float:
    """Seconds that a job of a sweep takes longer than a run of its own."""
    return (sweep - check) / jobs - single


def _one_step(device: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        arguments = (*ONE_STEP, f"device={device}", f"hydra.run.dir={run}")
        return _run(arguments, run / "metrics.jsonl")


def _seconds(*arguments: str) -> float:
    return _run(arguments)[1]


def _run(arguments: tuple[str, ...], watched: Path | None = None) -> tuple[float, float]:
    """Seconds until `watched` has content, and until the command ends. Raises RuntimeError if it fails."""
    seen = None
    with tempfile.NamedTemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "aavae.train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(os.environ),
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if seen is None and watched and watched.exists() and watched.stat().st_size:
                    seen = time.perf_counter() - began
                time.sleep(TICK)
            ended = time.perf_counter() - began
        finally:
            while process.poll() is None:  # interrupted
                process.send_signal(signal.SIGTERM)
                time.sleep(1)
        if process.returncode:
            last = Path(log.name).read_text(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"aavae-train {' '.join(arguments)} ended with {process.returncode}: {last}")
    return ended if seen is None else seen, ended
