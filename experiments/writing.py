"""An artefact's files: the table as Markdown, CSV and LaTeX, the figure as PNG and PDF."""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

from aavae.reports.jobs import JobReport
from aavae.reports.page import facts_of
from aavae.reports.tables import merged
from aavae.runs.provenance import checkout
from aavae.runs.start import NOTE
from aavae.runtime import files
from aavae.runtime.words import latex_escaped, latex_table, markdown_table
from experiments.runs import Group, Runs


class Sheet(NamedTuple):
    """What an artefact shows: a table, whose first column names its rows, a figure of matplotlib's, and sentences.

    `groups` are the runs that were shown.
    """

    head: list[str]
    rows: list[list[str]]
    caption: list[str]
    figure: Any
    groups: list[Group]


def write(folder: Path, name: str, title: str, sheet: Sheet, runs: Runs, command: str) -> list[Path]:
    """Write NAME.md, .csv, .tex, .png and .pdf into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = list({job.folder: job for group in sheet.groups for job in group.jobs}.values())
    right = range(1, len(sheet.head))
    caption = [*sheet.caption, *([NOTE] if any(job.start for job in jobs) else []), *_origin(jobs, runs)]
    done = sum(job.state == "done" for job in jobs)
    if done < len(jobs):
        caption.insert(0, f"**Not complete: {done} of {len(jobs)} runs are done.**")
    paths = [folder / f"{name}{end}" for end in (".md", ".csv", ".tex", ".png", ".pdf")]
    lines = [f"# {title}", "", markdown_table(sheet.head, sheet.rows, right), ""]
    lines += [line for sentence in caption for line in (sentence, "")]
    lines += [f"![{title}]({name}.png)", "", "Made by:", "", f"    {command}"]
    files.write(paths[0], "\n".join(lines) + "\n")
    files.write(paths[1], _csv(sheet))
    tex = [r"% needs \usepackage{booktabs}", f"% {command}", r"\begin{table}", r"\centering"]
    tex += [latex_table(sheet.head, sheet.rows, right)]
    tex += [rf"\caption{{{latex_escaped(' '.join([title + '.', *caption]).replace('**', ''))}}}", r"\end{table}"]
    files.write(paths[2], "\n".join(tex) + "\n")
    for path in paths[3:]:
        buffer = io.BytesIO()
        # Without a date, so that equal numbers give equal files.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else {}
        sheet.figure.savefig(buffer, format=path.suffix[1:], bbox_inches="tight", metadata=metadata)
        files.write(path, buffer.getvalue())
    return paths


def _csv(sheet: Sheet) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([sheet.head, *sheet.rows])
    return buffer.getvalue()


def _origin(jobs: list[JobReport], runs: Runs) -> list[str]:
    """Scale, seeds, dataset, protocol, versions and cost."""
    tested = [r for job in jobs for r in job.results if (r["probe"], r["split"]) == (runs.scale.probe, "test")]
    how = merged(f"{r['protocol']}; {r['n']} test images" for r in tested if r["feature"] == "h")
    known = [f"{name} {value}" for name, value in facts_of(jobs) if value]
    git = checkout(Path(__file__).parent)
    here = [f"drawn at commit {git.commit[:10]}{' with changes' if git.dirty else ''}"] if git else []
    said = [f"scale {runs.scale.name}", f"seeds {', '.join(map(str, runs.seed_values()))}", *known, *here]
    if runs.overrides:
        said.append(f"with {' '.join(runs.overrides)}")
    return [
        f"Test accuracy in %, mean ± sd (ddof 1) over seeds; probe: {how or 'none is done'}.",
        f"{'; '.join(said)}.",
    ]
