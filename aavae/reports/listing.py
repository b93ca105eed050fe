"""Runs as a table that fits the terminal, and as plain data."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from aavae.loggers.screen import duration, say, shown
from aavae.reports.columns import ABSENT, columns_of, same, text
from aavae.reports.shelf import Run
from aavae.runs.results import name_of
from aavae.runs.tidy import KINDS, Surplus
from aavae.runtime.output import spelt
from aavae.runtime.words import count

# What a row has anyway, by the keys from which it comes.
SAID = ("method", "dataset", "dataset._target_", "epochs", "experiment", "seed")
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "dead": "red", "damaged": "red"}
GAP = 2  # between columns


class Listed(NamedTuple):
    """A column: its head, a cell for each run, and whether they are numbers."""

    head: str
    cells: list[str]
    right: bool = False

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max(map(len, (self.head, *self.cells)))


def show(runs: Sequence[Run], console: Console) -> None:
    """Print the runs; what is too wide for a terminal is left out, and named below."""
    columns = [Listed(spelt(c.head), [*map(spelt, c.cells)], c.right) for c in _columns(runs)]
    left_out: list[str] = []
    if console.is_terminal:
        columns, left_out = _fitting(columns, console.width)
    console.print(_table(columns), soft_wrap=True)
    scored = any(run.get("score") is not None for run in runs)
    about = " The score is that of validation images, by which sweeps select." if scored else ""
    say(console, f"{count(len(runs), 'run')}.{about}")
    if left_out:
        say(console, f"Too wide for this terminal: {', '.join(left_out)}; --json has all.")


def _table(columns: list[Listed]) -> Text:
    """The table; rich's own takes a second for some hundred runs."""

    widths = [c.width for c in columns]

    def line(cells: Iterable[str]) -> str:
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        return (" " * GAP).join(padded).rstrip() + "\n"

    state = next(i for i, c in enumerate(columns) if c.head == "state")
    begin = sum(widths[:state]) + GAP * state
    lines = [line(c.head for c in columns), "─" * (sum(widths) + GAP * (len(widths) - 1)) + "\n"]
    colours, place = [], sum(map(len, lines))
    for row in zip(*(c.cells for c in columns), strict=True):
        lines.append(line(row))
        colours.append((COLOURS.get(row[state], ""), place + begin, place + begin + len(row[state])))
        place += len(lines[-1])
    table = Text("".join(lines).rstrip("\n"))
    table.stylize("bold", 0, len(lines[0]))
    for colour in colours:
        table.stylize(*colour)
    return table


def _columns(runs: Sequence[Run]) -> list[Listed]:
    """All columns, those first that say most."""
    varied = [c for c in columns_of([run.job for run in runs]) if c.key not in SAID and len({*map(same, c.values)}) > 1]
    seeds = [run.job.seed for run in runs]
    found = [
        Listed("run", [str(shown(run.folder.absolute())) for run in runs]),
        Listed("age", [_age(run.age) for run in runs], True),
        Listed("state", [run.job.state for run in runs]),
        Listed("score", [_number(run.get("score")) for run in runs], True),
        Listed("method", [run.method for run in runs]),
        Listed("dataset", [run.dataset for run in runs]),
        Listed("epochs", [_epochs(run) for run in runs], True),
        *([Listed("seed", [text(seed) for seed in seeds], True)] if len({*map(same, seeds)}) > 1 else []),
        *(Listed(c.name, [text(v) for v in c.values]) for c in varied),
    ]
    if any(run.notes.tags for run in runs):
        found.insert(4, Listed("tags", [" ".join(run.notes.tags) for run in runs]))
    if any(run.notes.notes for run in runs):
        found.append(Listed("note", [run.notes.notes[-1][1] if run.notes.notes else "" for run in runs]))
    return found


def _fitting(columns: list[Listed], width: int) -> tuple[list[Listed], list[str]]:
    """The columns that fit, and the names of the others; folders lose what they share where that helps."""
    first, *others = columns
    if first.width > width // 3:
        first = first._replace(cells=[cell.rpartition("/")[2] for cell in first.cells])
    kept, left_out, used = [first], [], first.width
    for column in others:
        if used + GAP + column.width <= width:
            kept.append(column)
            used += GAP + column.width
        else:
            left_out.append(column.head)
    return kept, left_out


def _age(seconds: float | None) -> str:
    return ABSENT if seconds is None else duration(seconds).split(" ")[0]


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ABSENT


def _epochs(run: Run) -> str:
    done, asked = run.get("epoch"), run.get("epochs")
    whole = text(asked) if asked is not None else ABSENT
    if run.job.state == "done" or not isinstance(done, int | float):
        return whole
    return f"{done:.3g}/{whole}"


def as_data(run: Run) -> dict:
    """What is known of a run, as plain data."""
    said = run.job.said
    return {
        "folder": str(run.folder),
        "state": run.job.state,
        "reason": run.job.reason,
        "method": run.method,
        "dataset": run.dataset,
        "seed": run.job.seed,
        **{key: said.get(key) for key in ("started", "updated", "ended", "epoch", "step", "score", "seconds", "flop")},
        "command": said.get("command"),
        "config": run.job.config,
        "results": {name_of(r): r["value"] for r in run.job.results},
        "tags": run.notes.tags,
        "notes": [{"time": time, "text": said} for time, said in run.notes.notes],
    }


def sizes(found: Sequence[Surplus], removed: bool, console: Console) -> None:
    """Print what of runs can go, or is gone, and how much room that makes."""
    total: dict[Path, dict[str, int]] = {}
    for surplus in found:
        total.setdefault(surplus.folder, {})[surplus.kind] = surplus.size
    for folder, kinds in total.items():
        said = ", ".join(f"{KINDS[kind]} ({_mib(size)})" for kind, size in kinds.items())
        say(console, f"{shown(folder.absolute())}: {said}")
    whole = _mib(sum(surplus.size for surplus in found))
    if not found:
        console.print("Nothing was removed." if removed else "There is nothing to remove.")
    elif removed:
        console.print(f"{whole} freed.")
    else:
        console.print(f"{whole} in {count(len(total), 'run')}; nothing was removed: add --yes.")


def _mib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
