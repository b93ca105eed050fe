"""What a person sees: a banner, a progress bar on a terminal or plain lines elsewhere, a table of results."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aavae.runtime.output import spelt
from aavae.runtime.words import wrapped


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


def shown(path: Path) -> Path:
    """A path as a person would type it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def console(quiet: bool = False) -> Console:
    """Stdout as rich writes to it: plain text in a notebook too, and no escape codes at all where NO_COLOR is set."""
    return Console(
        file=sys.stdout,
        quiet=quiet,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        emoji=False,
        soft_wrap=True,
        force_jupyter=False,
    )


def moves(console: Console) -> bool:
    """Whether it can show what moves in its place: a terminal that is not dumb, and may get escape codes."""
    # A pipe is none, even if FORCE_COLOR wants it coloured.
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal and not console.no_color


def say(console: Console, text: str) -> None:
    """Print lines as they are: broken between words on a terminal, whole elsewhere."""
    text = spelt(text)
    console.print(wrapped(text) if console.is_terminal else text, markup=False, soft_wrap=True)


def show(console: Console, table: Table, folds: bool = False) -> None:
    """Print a table between its title and its caption, as wide as it must be: lines too long for a terminal are better
    than columns squeezed to nothing, unless it `folds` long words, and a file or a pipe has no edge."""
    title, caption, table.title, table.caption = table.title, table.caption, None, None
    least, most = console.measure(table, options=console.options.update(width=10_000))
    if title:
        say(console, str(title))
    wanted = most if not console.is_terminal else 0 if folds else least
    before, console.width = console.width, max(console.width, wanted)
    console.print(table)
    console.width = before
    if caption:
        say(console, str(caption))


class Reporter:
    """Tells how training goes: a bar that moves on a terminal, otherwise a plain line every `seconds` or so."""

    def __init__(self, quiet: bool = False, seconds: float = 10.0):
        self.quiet, self.seconds = quiet, seconds
        self.console = console(quiet)
        self._progress: Progress | None = None
        self._said = 0.0
        self.speed: float | None = None  # images per second
        self.left: float | None = None  # seconds

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one: broken between words on a terminal, whole elsewhere."""
        say(self.console, text)

    def show(self, tables: list[Table]) -> None:
        """Print tables."""
        for table in tables:
            show(self.console, table)

    def track(self, items: Iterable, total: int, what: str) -> Iterator:
        """The items, telling how many of `total` are done: a bar on a terminal, elsewhere a line now and then."""
        began = said = time.monotonic()
        with contextlib.ExitStack() as stack:
            bar = None
            if moves(self.console) and not self.quiet:
                columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
                bar = stack.enter_context(Progress(*columns, console=self.console, transient=True))
                task = bar.add_task(what, total=total)
            for done, item in enumerate(items, 1):
                yield item
                now = time.monotonic()
                if bar:
                    bar.update(task, completed=done)
                elif now - said >= self.seconds:
                    said = now
                    self.say(f"{what}  {done:,}/{total:,}  {duration((now - began) / done * (total - done))} left")

    def start(self, step: int, total: int) -> None:
        """Show the bar of a run of `total` steps that stands at `step`."""
        self._started, self._first, self._total, self._said = time.monotonic(), step, total, 0.0
        if moves(self.console) and not self.quiet and step < total:
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
        self.speed, self.left = images_per_second, elapsed / max(1, step - self._first) * (self._total - step)
        line = f"loss {metrics['train/loss']:.4g}  {images_per_second:,.0f} images/s  {duration(self.left)} left"
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


FEATURES = {
    "h": "h",
    "mu": "μ",
    "z": "z",
    "pixels": "raw pixels",
    "h_untrained": "untrained",
}
PROBES = {
    "few_label_1": "1-NN, 1 label",
    "few_label_5": "1-NN, 5 labels",
    "knn": "kNN",
    "linear_cached": "linear, cached",
    "linear": "linear",
    "online": "online",
    "finetune": "fine-tuned",
    "semi_1": "1 % labels",
    "semi_10": "10 % labels",
}
ACCURACIES = ("accuracy", "accuracy_sd")


def results_tables(records: list[dict]) -> list[Table]:
    """What a person wants to see of results: a table of test accuracies, and one of measures for each other probe."""
    tables: list[Table] = []
    measured: dict[tuple[str, str], list[dict]] = {}
    for r in records:
        if not r["metric"].startswith(("accuracy", "points")):
            measured.setdefault((r["probe"], r["split"]), []).append(r)
    if any(r["metric"] == "accuracy" and r["split"] == "test" for r in records):
        tables.append(accuracy_table(records))
    chosen = dict.fromkeys((r["probe"], r["feature"]) for r in records if r["metric"].startswith("points_"))
    tables += [choices_table([r for r in records if (r["probe"], r["feature"]) == of]) for of in chosen]
    return tables + [measures_table(f"{probe}, {split} images", found) for (probe, split), found in measured.items()]


def in_order(names: Iterable[str], known: dict[str, str]) -> list[str]:
    """The names without repetition: those in `known` in its order, then the others as they come."""
    order = list(known)
    return sorted(dict.fromkeys(names), key=lambda name: order.index(name) if name in order else len(order))


def accuracy_table(records: list[dict]) -> Table:
    """Test accuracies in percent, one row per probe, one column per representation, mean ± sd where there are draws."""
    test = {(r["probe"], r["feature"], r["metric"]): r["value"] for r in records if r["split"] == "test"}
    shown = [(probe, feature) for probe, feature, metric in test if metric in ACCURACIES]
    cells = {}
    for probe, feature in shown:
        value, sd = (test.get((probe, feature, metric)) for metric in ACCURACIES)
        assert value is not None  # no sd without it
        cells[probe, feature] = f"{100 * value:.1f}" + (f" ± {100 * sd:.1f}" if sd is not None else "")
    rows = {probe: PROBES.get(probe, probe) for probe in in_order((p for p, _ in shown), PROBES)}
    table = _table("Test accuracy, % (protocols in results.json)", "probe", rows, cells)
    for r in records:
        if (r["feature"], r["metric"]) == ("h", "accuracy_drop_last"):
            counted = f"of the first {r['n']:,} images, as the released code counted: {100 * r['value']:.2f}"
            table.caption = f"{PROBES.get(r['probe'], r['probe'])}, h, {counted}"
            table.caption_justify = "left"
    return table


def choices_table(records: list[dict]) -> Table:
    """The accuracies `accuracy_<row>` of a probe in percent, and what sets each apart from another row: `points_<row>`,
    whose protocol says what was changed, ± `points_se_<row>`."""
    found = {r["metric"]: r for r in records}
    first = records[0]
    feature = FEATURES.get(first["feature"], first["feature"])
    table = Table(title=f"{first['probe']}, {feature}, {first['n']:,} {first['split']} images", title_justify="left")
    table.add_column("protocol", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("points ± se", justify="right", no_wrap=True)
    table.add_column("what was changed")
    for metric, r in found.items():
        kind, _, row = metric.partition("_")
        if kind == "accuracy":
            points = found.get(f"points_{row}")
            apart = f"{points['value']:+.1f} ± {found[f'points_se_{row}']['value']:.1f}" if points else "–"
            table.add_row(row, f"{100 * r['value']:.1f}", apart, points["protocol"] if points else r["protocol"])
    return table


def measures_table(title: str, records: list[dict]) -> Table:
    """The values of one probe that are no accuracies: one row per metric, one column per representation."""
    cells = {(r["metric"], r["feature"]): f"{r['value']:.3g}" for r in records}
    return _table(title, "measure", {r["metric"]: r["metric"].replace("_", " ") for r in records}, cells)


def _table(title: str, corner: str, rows: dict[str, str], cells: dict[tuple[str, str], str]) -> Table:
    features = in_order((feature for _, feature in cells), FEATURES)
    table = Table(title=title, title_justify="left")
    table.add_column(corner, no_wrap=True)
    for feature in features:
        table.add_column(Text(spelt(FEATURES.get(feature, feature))), justify="right", no_wrap=True)
    for key, label in rows.items():
        table.add_row(*(Text(spelt(x)) for x in (label, *(cells.get((key, feature), "–") for feature in features))))
    return table
