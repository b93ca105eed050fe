"""A run as it goes on: each line that it logs, until it ends."""

from collections.abc import Callable, Iterator
from pathlib import Path

from aavae.errors import UserError
from aavae.loggers.screen import duration
from aavae.reports.jobs import one_line
from aavae.runs import status
from aavae.runtime import files

METRICS = "metrics.jsonl"
BEFORE = 10  # lines that were there already
NAMES = ("train/loss", "val/loss", "val/knn", "score")


def follow(folder: Path, pause: float, sleep: Callable[[float], None]) -> int:
    """Print what the run in `folder` logs until it has ended; 0 if it is done, or 1.

    Raises UserError where its status cannot be read.
    """
    lines = _Lines(folder / METRICS)
    earlier = list(lines.new())
    for entry in earlier[-BEFORE:]:
        print(_line(entry), flush=True)
    while True:
        said = status.read(folder)
        if said is None:
            raise UserError(f"{folder} has not begun")
        state = status.state_of(said)
        for entry in lines.new():
            left = said.get("seconds_left")
            print(_line(entry) + (f"  {duration(left)} left" if left and state == "running" else ""), flush=True)
        if state != "running":
            reason = f": {one_line(str(said['reason']))}" if said.get("reason") else ""
            print(f"{state}{reason}", flush=True)
            return 0 if state == "done" else 1
        sleep(pause)


class _Lines:
    """The entries of a file that another process writes, each as soon as its line is whole."""

    def __init__(self, path: Path):
        self.path, self.place = path, 0

    def new(self) -> Iterator[dict]:
        """Those that have come since the last call."""
        try:
            with open(self.path, "rb") as handle:
                if handle.seek(0, 2) < self.place:  # it was begun anew
                    self.place = 0
                handle.seek(self.place)
                text = handle.read()
        except OSError:  # not begun
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.place += len(whole)
        for line in whole.splitlines():
            try:
                entry = files.parsed(line)
            except ValueError:  # damaged
                continue
            if isinstance(entry, dict):
                yield entry


def _line(entry: dict) -> str:
    named = {name: entry[name] for name in NAMES if isinstance(entry.get(name), int | float)}
    if not named:
        found = [(k, v) for k, v in entry.items() if isinstance(v, int | float) and k not in ("step", "epoch")]
        named = dict(found[:3])
    values = "  ".join(f"{name} {value:.4g}" for name, value in named.items())
    epoch, step = (n if isinstance(n := entry.get(key), int | float) else 0 for key in ("epoch", "step"))
    return f"epoch {epoch:.4g}  step {step:,}  {values}"
