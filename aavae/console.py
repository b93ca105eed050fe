"""What a person sees: a banner, a progress bar on a terminal or plain lines elsewhere, a table of results."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table


def duration(seconds: float) -> str:
    """`45s`, `3m 05s`, `2h 10m` or `4d 03h`."""
    seconds = round(seconds)
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02d}h"
    if hours:
        return f"{hours}h {m:02d}m"
    return f"{minutes}m {s:02d}s" if minutes else f"{s}s"


class Reporter:
    """Tells how training goes: a bar that moves on a terminal, otherwise a plain line every `seconds` or so."""

    def __init__(self, quiet: bool = False, seconds: float = 10.0):
        self.quiet, self.seconds = quiet, seconds
        self.console = Console(file=sys.stdout, highlight=False, emoji=False, quiet=quiet, soft_wrap=True)
        self._progress: Progress | None = None
        self._said = 0.0

    def say(self, text: str) -> None:
        """Print a line (above the bar, if there is one)."""
        self.console.print(text, markup=False)

    def start(self, step: int, total: int) -> None:
        """Show the bar of a run of `total` steps that stands at `step`."""
        self._started, self._first, self._total, self._said = time.monotonic(), step, total, 0.0
        if self.console.is_terminal and not self.quiet:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%  {task.fields[line]}"),
                console=self.console,
            )
            self._task = self._progress.add_task("", total=total, completed=step, epoch="", line="")
            self._progress.start()

    def update(self, step: int, epoch: str, metrics: dict[str, float], images_per_second: float) -> None:
        """Tell step, epoch, loss, images/s and time left."""
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, step - self._first) * (self._total - step)
        line = f"loss {metrics['train/loss']:.4g}  {images_per_second:,.0f} images/s  {duration(left)} left"
        if self._progress:
            self._progress.update(self._task, completed=step, epoch=epoch, line=line)
        elif time.monotonic() - self._said >= self.seconds or step == self._total:
            self._said = time.monotonic()
            self.say(f"epoch {epoch}  step {step:,}/{self._total:,}  {line}")

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress:
            self._progress.stop()
            self._progress = None


FEATURES = {"h": "h (this run)", "pixels": "raw pixels", "h_untrained": "untrained encoder"}
PROBES = {"few_label_1": "1-NN, 1 label", "few_label_5": "1-NN, 5 labels", "knn": "kNN", "linear_cached": "linear"}


def results_table(records: list[dict]) -> Table:
    """Test accuracies in percent, one row per representation, one column per probe, mean ± sd where there are draws."""
    test = [r for r in records if r["split"] == "test"]
    spread = {(r["probe"], r["feature"]): r["value"] for r in test if r["metric"].endswith("_sd")}
    values = {(r["probe"], r["feature"]): r["value"] for r in test if not r["metric"].endswith("_sd")}
    probes = list(dict.fromkeys(p for p, _ in values))
    table = Table(title="Test accuracy, % (protocols in results.json)", title_justify="left")
    table.add_column("features", no_wrap=True)
    for probe in probes:
        table.add_column(PROBES.get(probe, probe), justify="right", no_wrap=True)
    for feature in dict.fromkeys(f for _, f in values):
        cells = []
        for probe in probes:
            value, sd = values.get((probe, feature)), spread.get((probe, feature))
            cell = "–" if value is None else f"{100 * value:.1f}"
            cells.append(cell + (f" ± {100 * sd:.1f}" if sd is not None else ""))
        table.add_row(FEATURES.get(feature, feature), *cells)
    return table
