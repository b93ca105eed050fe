"""Measurements, as plain data, as the Markdown that a person reads."""

from itertools import groupby

from aavae.runtime.words import markdown_table


def number(value: float) -> str:
    """Three digits that matter: `1,230,000`, `45.6`, `0.0789`."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def spread(row: dict) -> str:
    """The median and, of several samples, the lowest and the highest."""
    several = f" ({number(row['low'])} – {number(row['high'])})" if len(row["samples"]) > 1 else ""
    return number(row["median"]) + several


def markdown(plain: dict) -> str:
    """The whole book: a line about the machine, and for each part its tables and notes."""
    lines = ["# Benchmarks", "", *_head(plain), ""]
    for part, of_part in groupby(plain["rows"], lambda row: row["part"]):
        lines += [f"## {part}", ""]
        for (group, unit), rows in groupby(of_part, lambda row: (row["group"], row["unit"])):
            lines += [_table(group, unit, list(rows)), ""]
        lines += [f"- {note}" for note in plain["notes"].get(part, [])]
        lines += [""] if plain["notes"].get(part) else []
    return "\n".join(lines)


def _head(plain: dict) -> list[str]:
    machine, git = plain["machine"], plain["machine"]["git"]
    commit = f"{git['commit'][:9]}{' with changes' if git['dirty'] else ''}" if git else "unknown"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        f"{machine['date']}, commit {commit}; {machine['device']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, load {machine['load']:.1f} before it began; {versions}.",
        f"`{plain['command']}`; medians of interleaved samples, lowest and highest in brackets.",
    ]
    return [*lines, f"**{plain['state']}.**"] if plain["state"] != "done" else lines


def _table(group: str, unit: str, rows: list[dict]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    noted = any(row["note"] for row in rows)
    head = [group, unit, *columns, *([""] if noted else [])]
    lines = []
    for row in rows:
        cells = [_cell(row["columns"].get(name)) for name in columns]
        measured = spread(row) if row["samples"] else "–"
        lines.append([row["name"], measured, *cells, *([row["note"]] if noted else [])])
    return markdown_table(head, lines, right=range(1, 2 + len(columns)))


def _cell(value) -> str:
    return "–" if value is None else value if isinstance(value, str) else number(value)
