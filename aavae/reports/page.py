"""One HTML page of what a folder has found: self-contained, for offline reading, with interactive charts by Plotly."""

import base64
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from aavae.loggers.screen import PROBES, duration
from aavae.reports.charts import charts, label
from aavae.reports.jobs import JobReport, logged, one_line
from aavae.reports.means import Row, Summary
from aavae.reports.tables import UNDONE, as_cells, commands_of, counted_jobs, notes_of, numbers_from, protocols_of
from aavae.runs.provenance import sessions

PAGE = "sweep.html"
TAIL = 20  # lines of a log
LONGEST = 4000  # characters of them
WIDEST = 800  # pixels of a picture
ROOM = 600_000  # bytes for all pictures, so that a page of a hundred runs stays below 6 MB
PICTURES = ("reconstructions", "similarity", "embedding", "geometry")


def page(summary: Summary) -> str:
    """The page, as text. Its Content-Security-Policy allows its own two scripts and no request."""
    import jinja2

    lines = {i: logged(job.folder) for i, job in enumerate(summary.jobs)}
    own, plotly = _file("page.js"), _plotly()
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_file("page.html"))
    head, rows = as_cells(summary)
    pictures, left, unread = _pictures(summary)
    return template.render(
        policy=f"default-src 'none'; script-src {_hash(plotly)} {_hash(own)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        plotly=plotly,
        script=own,
        style=_file("page.css"),
        title=summary.folder.resolve().name,
        jobs=counted_jobs(summary),
        facts=_facts(summary),
        commands=commands_of(summary),
        head=head,
        numbers=numbers_from(head),
        rows=list(zip(summary.rows, rows, strict=True)),
        selected=_selected(summary),
        notes=notes_of(summary),
        charts=[(title, _json(chart)) for title, chart in charts(summary, lines).items()],
        undone=[(job, one_line(job.name), job.line, _tail(job.folder)) for job in summary.of(*UNDONE)],
        warned=[(one_line(job.name), job.warnings) for job in summary.jobs if job.warnings],
        problems=[*summary.problems, *unread],
        pictures=pictures,
        left=left,
        configs=_json(_configs(summary)),
        names=[f"{one_line(job.name)}, seed {job.seed}" for job in summary.jobs],
        protocols=[(PROBES.get(p, p), protocols_of(summary, p)) for p in summary.probes],
    )


def figures(summary: Summary) -> dict[str, Any]:
    """The charts as Plotly's own objects."""
    import plotly.graph_objects

    lines = {i: logged(job.folder) for i, job in enumerate(summary.jobs)}
    return {title: plotly.graph_objects.Figure(chart) for title, chart in charts(summary, lines).items()}


# ---- Parts ------------------------------------------------------------------------------------------------------


def _file(name: str) -> str:
    return (resources.files("aavae.reports") / name).read_text(encoding="utf-8")


def _plotly() -> str:
    script = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return script.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, default=str, ensure_ascii=True).replace("<", "\\u003c")


def _facts(summary: Summary) -> list[tuple[str, str]]:
    swept = "; ".join(f"{c.key}: {', '.join(_values(summary, i))}" for i, c in enumerate(summary.columns))
    return [("swept", swept), *facts_of(summary.jobs)]


def facts_of(jobs: list[JobReport]) -> list[tuple[str, str]]:
    """Where the numbers of jobs come from: dataset, commit, device, versions and cost; empty texts for the unknown."""
    entries = [session for job in jobs for session in sessions(job.folder)]
    commits = _different((s.get("git") or {}).get("commit") for s in entries)
    dirty = any((s.get("git") or {}).get("dirty") for s in entries)
    versions = [s["versions"] for s in entries if isinstance(s.get("versions"), dict)]
    said = [f"{k} {'/'.join(v)}" for k in ("torch", "aavae") if (v := _different(found.get(k) for found in versions))]
    datasets = _different(str(job.config.get("dataset._target_", "")).rpartition(".")[2] for job in jobs)
    flop = [n for job in jobs if (n := job.number("flop"))]
    hours = [n for job in jobs if (n := job.hours)]
    cost = [f"{sum(flop) / 1e15:.3g} PFLOP of training"] if flop else []
    cost += [f"{sum(hours):.3g} device-hours ({duration(3600 * sum(hours))})"] if hours else []
    return [
        ("dataset", ", ".join(datasets)),
        ("commit", ", ".join(c[:10] for c in commits) + (" with changes" if dirty else "")),
        ("device", ", ".join(_different(s.get("device") for s in entries))),
        ("versions", ", ".join(said)),
        ("cost", ", ".join(cost)),
    ]


def _values(summary: Summary, i: int) -> list[str]:
    shown = list(dict.fromkeys(one_line(str(row.values[i])) for row in summary.rows if row.feature == "h"))
    return shown if len(shown) <= 12 else [*shown[:12], "…"]


def _different(values) -> list[str]:
    return list(dict.fromkeys(one_line(str(value)) for value in values if value))


def _selected(summary: Summary) -> Row | None:
    """The row with the best score, which is measured on validation images; None where there is no choice."""
    scored = [row for row in summary.rows if row.score and row.feature == "h"]
    return max(scored, key=lambda row: row.score.mean if row.score else 0.0) if len(scored) > 1 else None


def _tail(folder: Path) -> str:
    path = folder / "log.txt"
    if not os.path.exists(path):
        return ""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - LONGEST))
            return "\n".join(handle.read().decode(errors="replace").splitlines()[-TAIL:])
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _configs(summary: Summary) -> dict:
    """The settings of all jobs: those of the first, and in what the others differ."""
    base = next((job.config for job in summary.jobs if job.config), {})
    rest = [
        {k: v for k in {**base, **job.config} if (v := job.config.get(k, "–")) != base.get(k, "–")}
        for job in summary.jobs
    ]
    return {"base": base, "jobs": rest}


def _pictures(summary: Summary) -> tuple[list[tuple[str, list[tuple[str, str]]]], int, list[str]]:
    """Pictures of the first finished run of each row as data URLs, by the row's name; how many had no room; and which
    cannot be read."""
    found, room, left, unread = [], ROOM, 0, list[str]()
    for row in (row for row in summary.rows if row.feature == "h"):
        job = next((job for job in row.jobs if job.state == "done"), None)
        shown: list[tuple[str, str]] = []
        for name, data in _small(job.folder, unread) if job else ():
            if len(data) <= room:
                room -= len(data)
                shown.append((name, data))
            else:
                left += 1
        if shown and job:
            found.append((f"{label(summary, row.values)}, seed {job.seed}", shown))
    return found, left, unread


def _small(folder: Path, unread: list[str]) -> Iterator[tuple[str, str]]:
    """Pictures of a run by name, as data URLs; `unread` gets a sentence for each that cannot be read."""
    from PIL import Image

    for path in sorted(folder.glob("*.png"), key=lambda p: (not p.stem.startswith(PICTURES[:2]), p.name)):
        if not path.stem.startswith(PICTURES):
            continue
        try:
            # PIL's word for an image whose pixels would take gigabytes: a warning, and an error from twice as many on.
            with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
                opened = Image.open(path)
            with opened:
                image = opened.convert("RGB")
            image.thumbnail((WIDEST, 4 * WIDEST))
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=60)
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            unread.append(f"the picture {path} cannot be read ({one_line(str(error))}); evaluate again, or delete it")
            continue
        yield path.stem, f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
