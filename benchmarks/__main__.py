"""`python -m benchmarks [what …] [options]`: what is measured, on what, and where it is written."""

import argparse
import importlib
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from aavae.errors import UserError
from aavae.runtime import exits
from aavae.runtime.typed import Parser

PARTS = ("augmentation", "step", "methods", "evaluation", "startup", "threads", "syncs")
EPILOG = (
    "what: all, augmentation (views/s), step and methods (training images/s), evaluation, startup, threads (on busy "
    "machines), syncs (what waits)"
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks", description="Measure speed on this machine.", epilog=EPILOG)
    parser.add_argument("what", nargs="*", metavar="what", choices=("all", *PARTS), default="all", help="parts; all")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, to see that it runs")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=_positive, help="of torch, on the CPU; all cores")
    parser.add_argument("--repeats", type=_positive, help="samples of everything; 5")
    parser.add_argument(
        "--models",
        type=_names,
        default=(),
        help="of step: resnet18,resnet50,resnet50-96,cpu,tiny; of threads: digits,resnet18",
    )
    parser.add_argument("--batch", type=_numbers, default=(), help="batch sizes, as 256,512; each part has its own")
    parser.add_argument("--compile", action="store_true", help="torch.compile on a CPU too (a minute for each network)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder; outputs/benchmarks")
    return parser


def measure(argv: Sequence[str]) -> int:
    """Measure what `argv` asks for; 0, or 1 if something failed. Raises UserError for what cannot be."""
    options = _parser().parse_args(argv)
    import torch

    from aavae.runtime.device import pick_device
    from benchmarks import ladder, machine, threads
    from benchmarks.bench import Bench
    from benchmarks.book import Book

    models = list(dict.fromkeys([*ladder.MODELS, *threads.MODELS]))
    if unknown := [name for name in options.models if name not in models]:
        raise UserError(f"--models knows {', '.join(models)}, not {unknown[0]!r}")
    device = pick_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    command = shlex.join(["python", "-m", "benchmarks", *argv])
    head = {"state": "interrupted", "command": command, "machine": machine.describe(device)}
    book = Book(options.out / time.strftime("%Y%m%d-%H%M%S"), head)
    bench = Bench(
        device,
        book,
        repeats=options.repeats or (2 if options.quick else 5),
        quick=options.quick,
        compile=options.compile,
        models=options.models,
        batches=options.batch,
    )
    parts = [part for part in PARTS if part in options.what or "all" in options.what]
    try:
        for part in parts:
            importlib.import_module(f"benchmarks.{part}").measure(bench)
        book.head["state"] = "done"
    finally:
        book.write()
        print(f"written to {book.stem}.md and {book.stem}.json", flush=True)
    return 1 if any(row.failed for row in book.rows) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 something failed, 2 bad input, 128 + n stopped by signal n; what was measured is
    written."""
    given = sys.argv[1:] if argv is None else argv
    return exits.run("benchmarks", lambda: measure(given), interrupted="interrupted; what was measured is kept")


if __name__ == "__main__":
    sys.exit(main())
