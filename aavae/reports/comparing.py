"""One run in all that is known of it, and two of them beside each other."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aavae.loggers.screen import duration, results_tables, say, shown
from aavae.loggers.screen import show as show_table
from aavae.reports.columns import ABSENT, same, text
from aavae.reports.shelf import Run
from aavae.runs.provenance import sessions
from aavae.runs.results import measured_by, name_of
from aavae.runtime.output import spelt
from aavae.runtime.words import count, folded

APART = "†"  # instead of a difference that would mean nothing


def show(run: Run, preset: dict[str, object], name: str, console: Console) -> None:
    """Print a run: how it stands, in what it differs from its `preset`, which has a `name`, and what it found."""
    for label, line in _facts(run):
        say(console, f"{label:<12}{line}")
    if config := run.job.config:
        differ = [key for key in dict.fromkeys([*preset, *config]) if same(config.get(key)) != same(preset.get(key))]
        rows = [[key, *(text(c.get(key, ABSENT)) for c in (config, preset))] for key in differ if key != "seed"]
        _table(console, f"What differs from {name}", ["setting", "here", name], rows, f"nothing differs from {name}")
    for table in results_tables(run.job.results, run.job.start):
        show_table(console, table)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    job, said = run.job, run.job.said
    yield "folder", str(shown(run.folder.absolute()))
    state = job.state if job.state in ("done", "running", "pending") else f"{job.state}: {job.line}"
    yield "state", state
    if run.started:
        took = f", {duration(job.number('seconds') or 0)} of work" if job.number("seconds") is not None else ""
        yield "began", f"{run.started:%A %Y-%m-%d %H:%M}{took}"
    if job.config:
        yield "trained", f"{run.method} on {run.dataset}, seed {job.seed}, {_epochs(run)}"
    if job.start:
        yield "start", f"{job.start}, not random weights"
    if (score := job.number("score")) is not None:
        yield "score", f"{score:.4g}, on validation images"
    for warning in job.warnings:
        yield "warning", warning
    if command := said.get("command"):
        yield "command", folded(str(command), 12)
    for session in sessions(run.folder)[-1:]:
        yield "code", _code(session)
        yield "machine", f"{session.get('device')}, {count(session.get('threads') or 0, 'thread')}"
    weights = sorted(run.folder.glob("*.pt")) + sorted(run.folder.glob("*.safetensors"))
    if weights:
        yield "weights", ", ".join(f"{path.name} {path.stat().st_size / 2**20:,.1f} MiB" for path in weights)
    if run.notes.tags:
        yield "tags", " ".join(run.notes.tags)
    for time, note in run.notes.notes:
        yield "note", f"{time[:10]}: {note}"


def _epochs(run: Run) -> str:
    done, asked = run.job.number("epoch") or 0, run.job.config.get("epochs")
    return f"{done:.4g} of {asked} epochs"


def _code(session: dict) -> str:
    git, versions = session.get("git"), session.get("versions") or {}
    commit = "no commit" if not git else f"{str(git.get('commit'))[:10]}{' with changes' if git.get('dirty') else ''}"
    return f"{commit}, aavae {versions.get('aavae')}, torch {versions.get('torch')}"


def compare(first: Run, second: Run, console: Console) -> int:
    """Print in what two runs differ: settings, results, code; the number of settings."""
    names = [str(shown(run.folder.absolute())) for run in (first, second)]
    if names[0].rpartition("/")[2] != names[1].rpartition("/")[2]:
        names = [name.rpartition("/")[2] for name in names]
    configs = [run.job.config for run in (first, second)]
    keys = [k for k in dict.fromkeys([*configs[0], *configs[1]]) if same(configs[0].get(k)) != same(configs[1].get(k))]
    rows = [[key, *(text(config.get(key, ABSENT)) for config in configs)] for key in keys]
    _table(console, "Settings", ["setting", *names], rows, "all settings that decide the weights are equal")
    found = [{name_of(r): r for r in run.job.results} for run in (first, second)]
    values = [
        [
            name,
            *(_value(f[name]["value"] if name in f else None) for f in found),
            _difference(*(f.get(name) for f in found)),
        ]
        for name in found[0] | found[1]
    ]
    _table(console, "Results", ["result", *names, "difference"], values, "neither has results")
    if any(row[-1] == APART for row in values):
        say(console, f"{APART}: measured by different protocols or on different numbers of images (results.json)")
    facts = [_of_code(run) for run in (first, second)]
    code = [[key, *(fact.get(key, ABSENT) for fact in facts)] for key in facts[0] | facts[1]]
    code = [row for row in code if row[1] != row[2]]
    _table(console, "Code and machine", ["", *names], code, "code and machine are the same")
    return len(keys)


def _of_code(run: Run) -> dict[str, str]:
    for session in sessions(run.folder)[-1:]:
        versions = {f"version of {k}": str(v) for k, v in (session.get("versions") or {}).items()}
        git = session.get("git") or {}
        commit = {"commit": str(git.get("commit", ""))[:10], "changed files": str(git.get("dirty"))} if git else {}
        return {**commit, **versions, "device": str(session.get("device")), "images": str(session.get("data"))[:16]}
    return {}


def _difference(before: dict | None, after: dict | None) -> str:
    if before is None or after is None:
        return ""
    return f"{after['value'] - before['value']:+.4g}" if measured_by(before) == measured_by(after) else APART


def _value(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"


def _table(console: Console, title: str, head: list[str], rows: list[list[str]], nothing: str) -> None:
    if not rows:
        say(console, f"{nothing[0].upper()}{nothing[1:]}.")
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(Text(spelt(name)), overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(spelt(cell)) for cell in row))
    show_table(console, table, folds=True)
