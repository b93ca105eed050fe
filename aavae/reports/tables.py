"""A summary on the screen, as Markdown, and as a table of all jobs for other programs (CSV)."""

import csv
import io
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from aavae.errors import UserError
from aavae.loggers.screen import FEATURES, PROBES, duration, say, show, shown
from aavae.reports.columns import ABSENT, text, varying
from aavae.reports.jobs import one_line, read_sweep
from aavae.reports.means import Row, Spread, Summary, counted, tested
from aavae.runs import status
from aavae.runs.results import RESULTS, name_of
from aavae.runs.start import NOTE, marked
from aavae.runtime import files
from aavae.runtime.output import spelt
from aavae.runtime.words import count, latex_escaped, latex_table, markdown_table

CSV, MARKDOWN, LATEX = "sweep.csv", "sweep.md", "sweep.tex"
NUMBERS = ("epoch", "step", "score", "seconds", "flop")
UNDONE = ("failed", "dead", "damaged", "interrupted")


def tell(summary: Summary, console: Console) -> None:
    """Print the table, then what failed and why, with the path of its log."""
    say(console, f"{shown(summary.folder.absolute())}: {counted_jobs(summary)}")
    for table in screen(summary, console):
        show(console, table)
    where = RESULTS if is_run(summary.folder) else MARKDOWN
    say(console, " ".join([*notes_of(summary), *([f"Protocols: {where}."] if summary.probes else [])]))
    for job in summary.of(*UNDONE):
        say(console, f"{job.state:<12}{one_line(job.name)}: {_short(job.line)}")
        if os.path.exists(log := job.folder / "log.txt"):  # Path.exists raises in a closed folder
            say(console, f"{'':<12}{shown(log.absolute())}")
    for problem in summary.problems:
        say(console, problem)


def write(summary: Summary) -> None:
    """Write sweep.csv, sweep.md and sweep.tex into the folder; a folder that is a run itself gets none.

    Raises UserError where they cannot be written.
    """
    if not is_run(summary.folder):
        files.write(summary.folder / CSV, as_csv(summary).encode(errors="replace"))
        files.write(summary.folder / MARKDOWN, markdown(summary).encode(errors="replace"))
        files.write(summary.folder / LATEX, latex(summary).encode(errors="replace"))


def is_run(folder: Path) -> bool:
    """Whether the folder is that of a single run."""
    return os.path.exists(folder / status.STATUS)


# ---- Means, for people ------------------------------------------------------------------------------------------


def as_cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text."""
    settings = [c.name for c in summary.columns]
    # A baseline that has nothing to say of the first setting stands there under its name.
    features = any(row.feature != "h" and row.values[0] != "" for row in summary.rows)
    score = ["score"] if any(row.score for row in summary.rows) else []
    flop = ["PFLOP"] if any(row.flop is not None for row in summary.rows) else []
    time = ["time"] if any(row.seconds is not None for row in summary.rows) else []
    head = [*settings, *(["features"] if features else []), "seeds", "state"]
    head += [*(PROBES.get(p, p) for p in summary.probes), *score, *flop, *time]
    body = []
    for row in summary.rows:
        feature = FEATURES.get(row.feature, row.feature)
        cells = [text(v) for v in row.values] + ([feature] if features else [])
        if row.values[0] == "" and not features:
            cells[0] = feature
        cells[0] = marked(cells[0], row.start)
        cells += [str(row.seeds), row.states if row.feature == "h" else ""]
        cells += [percent(row.accuracies.get(probe), row) for probe in summary.probes]
        cells += [_score(row.score)] if score else []
        cells += ["" if row.flop is None else f"{row.flop / 1e15:.3g}"] if flop else []
        cells += ["" if row.seconds is None else duration(row.seconds)] if time else []
        body.append(cells)
    return head, body


def numbers_from(head: list[str]) -> int:
    """The first column that holds measurements."""
    return head.index("state") + 1


def percent(spread: Spread | None, row: Row) -> str:
    """Mean ± sd in percent, marked where not all seeds or not one protocol entered."""
    if spread is None:
        return ABSENT
    sd = "" if spread.sd is None else f" ± {100 * spread.sd:.1f}"
    few = f" ({spread.n})" if spread.n < row.seeds else ""
    return f"{100 * spread.mean:.1f}{sd}{'†' if spread.mixed else ''}{few}"


def _score(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:.4g}" + ("" if spread.sd is None else f" ± {spread.sd:.2g}")


def _short(line: str, longest: int = 240) -> str:
    return line if len(line) <= longest else f"{line[:longest]}…"


def notes_of(summary: Summary) -> list[str]:
    """What must be known to read the table."""
    found = [(spread, row) for row in summary.rows for spread in row.accuracies.values()]
    notes = ["Test accuracy in %, mean ± sd (ddof 1) over seeds."] if found else []
    if any(r["metric"] == "accuracy_sd" for job in summary.jobs for r in job.results):
        notes.append("Of a probe that draws several times its mean enters.")
    if any(spread.n < row.seeds for spread, row in found):
        notes.append("(n): of n seeds only.")
    if any(spread.mixed for spread, _ in found):
        notes.append("†: not all by one protocol.")
    if any(row.score for row in summary.rows):
        notes.append(
            "score: the validation accuracy of h that a sweep selects on, as a fraction; without labels minus the loss."
        )
    if any(row.start for row in summary.rows):
        notes.append(NOTE)
    for column in summary.columns:
        if along := [key for key in column.along if not key.startswith(_parts(column.key))]:
            more = f" and {len(along) - 5} more" if len(along) > 5 else ""
            notes.append(f"With {column.name} change {', '.join(along[:5])}{more}.")
    return notes


def _parts(key: str) -> tuple[str, ...]:
    """Whose settings come with the value of `key`, as everyone knows."""
    if key == "method":
        return ("augmentation.", "loss.")
    return (key.rpartition(".")[0] + ".",) if key.endswith(("._target_", ".name")) else ()


def screen(summary: Summary, console: Console) -> list[Table]:
    """The means as a table; as several, of some measurements each, where a terminal is too narrow for one."""
    head, body = as_cells(summary)
    first = numbers_from(head)
    tables, chosen = [], list(range(first))
    for i in range(first, len(head)):
        if len(chosen) > first and console.is_terminal and not _fits(_table([*chosen, i], head, body), console):
            tables.append(_table(chosen, head, body))
            chosen = list(range(first))
        chosen.append(i)
    return [*tables, _table(chosen, head, body)]


def _fits(table: Table, console: Console) -> bool:
    # Drawn rather than measured: rich's measure knows nothing of the box's edges.
    drawn = "".join(segment.text for segment in console.render(table, console.options)).splitlines()
    return max(map(cell_len, drawn)) <= console.width


def _table(chosen: list[int], head: list[str], body: list[list[str]]) -> Table:
    """The `chosen` columns. Measurements stay in one piece; of long settings, every word but the longest ones."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    numbers = numbers_from(head)
    for i in chosen:
        name, cells = spelt(head[i]), [spelt(row[i]) for row in body]
        longest = max(map(len, [*cells, ""]))
        whole = i < numbers - 1 and max(longest, len(name)) <= 24
        words = [len(word) for cell in [name, *cells] for word in cell.split()]
        least = max(longest, *map(len, name.split())) if i >= numbers else min(max([*words, 0]), 12)
        justify: JustifyMethod = "right" if i >= numbers else "left"
        table.add_column(
            Text(name), justify=justify, overflow="fold", no_wrap=whole, min_width=None if whole else least
        )
    for row in body:
        table.add_row(*(Text(spelt(row[i])) for i in chosen))
    return table


def counted_jobs(summary: Summary) -> str:
    """How many jobs there are, and how they stand."""
    return f"{count(len(summary.jobs), 'job')}, {counted(summary.jobs)}"


def markdown(summary: Summary) -> str:
    """The means, their protocols, what is not done and why, and the commands that made it."""
    head, body = as_cells(summary)
    lines = [f"# {summary.folder.resolve().name}", "", f"{counted_jobs(summary)}.", ""]
    lines += [markdown_table(head, body, range(numbers_from(head), len(head))), ""]
    lines += [line for note in notes_of(summary) for line in (note, "")]
    if summary.probes:
        lines += ["Protocols:", "", *(f"- {PROBES.get(p, p)}: {protocols_of(summary, p)}" for p in summary.probes), ""]
    if undone := summary.of(*UNDONE):
        lines += ["Not done:", "", *(f"- {job.state}: {_code(job.name)}, {_code(job.line)}" for job in undone), ""]
    lines += [f"- {problem}" for problem in summary.problems]
    if commands := commands_of(summary):
        lines += ["Made by:", "", *(f"    {command}" for command in commands)]
    return "\n".join(lines) + "\n"


def latex(summary: Summary) -> str:
    """The means as a LaTeX table with the rules of booktabs, its notes as the caption."""
    head, body = as_cells(summary)
    notes = [one_line(note) for note in notes_of(summary)]
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    lines += [latex_table(head, body, range(numbers_from(head), len(head)))]
    lines += [rf"\caption{{{latex_escaped(f'{counted_jobs(summary)}. ' + ' '.join(notes))}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _code(line: str) -> str:
    return "`" + one_line(line).replace("`", "'") + "`"


def protocols_of(summary: Summary, probe: str) -> str:
    """How the probe measured."""
    records = [r for job in summary.jobs for r in tested(job) if r["probe"] == probe]
    return merged(f"{r.get('protocol', 'unknown')}; {r.get('n')} test images" for r in records)


def merged(protocols: Iterable[str]) -> str:
    """Protocols as one text; those that differ in numbers only are one, with the variants of each number."""
    alike: dict[str, list[list[str]]] = {}
    for protocol in dict.fromkeys(map(one_line, protocols)):
        alike.setdefault(re.sub(r"\d+(\.\d+)?(e-?\d+)?", "0", protocol), []).append(re.split(r"([,;]? )", protocol))
    return "; or ".join(
        "".join("/".join(dict.fromkeys(w)) for w in zip(*several, strict=True)) for several in alike.values()
    )


def commands_of(summary: Summary, most: int = 20) -> list[str]:
    """The commands that the jobs were launched by."""
    try:
        sweep = read_sweep(summary.folder)
    except UserError:  # which the summary says
        sweep = None
    if sweep:
        launches = ((launch.get("config_dir"), launch["overrides"]) for launch in sweep["launches"])
        commands = [
            shlex.join(["aavae-train", "-m", *(["--config-dir", where] if where else []), *overrides])
            for where, overrides in launches
        ]
    else:
        commands = [str(job.said["command"]) for job in summary.jobs if job.said.get("command")]
    commands = list(dict.fromkeys(map(one_line, commands)))
    return commands[:most] + ([f"… and {len(commands) - most} more"] if len(commands) > most else [])


# ---- Every job, for programs ------------------------------------------------------------------------------------


def as_csv(summary: Summary) -> str:
    """A row per job: where and how it stands, every setting that varies, and everything it has measured."""
    settings = {c.key: c.values for c in summary.columns}
    settings |= {c.key: c.values for c in varying(summary.jobs) if c.key not in settings}
    rows = []
    for i, job in enumerate(summary.jobs):
        row: dict[str, Any] = {"folder": _relative(job.folder, summary.folder), "name": job.name, "state": job.state}
        row["reason"] = job.line if job.state in UNDONE and job.reason is None else job.reason
        row |= {key: text(values[i]) for key, values in settings.items() if values[i] != ABSENT}
        row |= {"start": job.start} if any(other.start for other in summary.jobs) else {}
        row |= {"seed": job.seed, "epochs": job.config.get("epochs", (job.overrides or {}).get("epochs"))}
        row |= {key: job.number(key) for key in NUMBERS} | {"device_hours": job.hours}
        rows.append(row | {name_of(r): r["value"] for r in job.results})
    first = ["folder", "name", "state", "reason", *settings, "seed", "epochs", *NUMBERS, "device_hours"]
    handle = io.StringIO()
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    table = csv.DictWriter(handle, list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return handle.getvalue()


def _relative(folder: Path, top: Path) -> str:
    return folder.relative_to(top).as_posix() if folder.is_relative_to(top) else str(folder)
