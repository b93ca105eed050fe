"""Interactive charts of a sweep, as Plotly reads them: plain data, so that a report need not import Plotly."""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from aavae.loggers.screen import PROBES
from aavae.reports.columns import Column, same, text
from aavae.reports.jobs import JobReport
from aavae.reports.means import Row, Spread, Summary, accuracies
from aavae.reports.palette import CIVIDIS, DASHES, colour_of

Chart = dict[str, Any]
HEADLINE = ("linear", "linear_cached", "knn", "few_label_5", "few_label_1")  # which accuracy a chart is of
GROUPS = 10  # that a legend still tells apart
POINTS, ALL_POINTS = 100, 5000  # of a learning curve, and of all curves of a chart
CURVES = {  # metric → title, axis, factor
    "val/knn": ("kNN on validation images, while training", "accuracy (%)", 100),
    "val/loss": ("validation loss, while training", "loss (each method has its own)", 1),
    "train/loss": ("training loss", "loss", 1),
}
AGAINST = {"epochs": "epochs", "pflop": "PFLOP of training", "hours": "device-hours"}


def charts(summary: Summary, logged: dict[int, list[dict]]) -> dict[str, Chart]:
    """The charts of a summary by title; `logged` are lines of `metrics.jsonl` by the number of the job."""
    found: dict[str, Chart] = {}
    probe, rows = headline(summary), [row for row in summary.rows if row.feature == "h"]
    if probe:
        varied = [c for c in summary.columns if len({same(v) for v in c.values}) > 1]
        for column in varied:
            found[f"effect of {column.name}"] = effect(summary, rows, column, probe)
        if len(varied) > 1:
            found["all settings at once"] = parallel(summary, varied, probe)
        if len(varied) == 2:
            found[f"{varied[0].name} × {varied[1].name}"] = heat_map(summary, rows, varied, probe)
    for metric, (title, axis, factor) in CURVES.items():
        if metric == "train/loss" and any("val/loss" in line for lines in logged.values() for line in lines):
            continue
        if chart := curves(summary, rows, logged, metric, axis, factor):
            found[title] = chart
    if probe and any(job.number("flop") for job in summary.jobs):
        found["accuracy against compute"] = compute(summary, rows, probe)
    return found


def headline(summary: Summary) -> str | None:
    """The probe that charts are of: the strictest that the jobs share, None if there is none."""
    trained = {probe for row in summary.rows if row.feature == "h" for probe in row.accuracies}
    return next((probe for probe in (*HEADLINE, *PROBES) if probe in trained), None)


def label(summary: Summary, values: Sequence[object], columns: Iterable[Column] | None = None) -> str:
    """A row in words, `beta=0.1 latent_dim=64`, of some of its columns."""
    chosen = list(summary.columns if columns is None else columns)
    cells = [(c.name, text(v)) for c, v in zip(summary.columns, values, strict=True) if c in chosen]
    return " ".join(value if name == "method" else f"{name}={value}" for name, value in cells) or "all"


# ---- Charts -----------------------------------------------------------------------------------------------------


def effect(summary: Summary, rows: list[Row], column: Column, probe: str) -> Chart:
    """Accuracy by the value of one column: mean and sd, every seed a dot, a colour for what else is swept."""
    others = [c for c in summary.columns if c is not column]
    i = summary.columns.index(column)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(summary, row.values, others), []).append(row)
    traces: list[Chart] = []
    for n, (name, own) in enumerate(groups.items()):
        colour, shown = colour_of(name, n), len(groups) > 1 and n < GROUPS
        measured = [(row, spread) for row in own if (spread := row.accuracies.get(probe))]
        x = [text(row.values[i]) for row, _ in measured]
        dots = [
            (text(row.values[i]), 100 * seed.mean, job)
            for row, _ in measured
            for job in row.jobs
            if (seed := accuracies([job], "h").get(probe))
        ]
        common: Chart = {"legendgroup": name, "name": name, "type": "scatter"}
        traces.append(
            common
            | {
                "x": x,
                "y": [100 * spread.mean for _, spread in measured],
                "error_y": {"type": "data", "array": [100 * (s.sd or 0) for _, s in measured], "thickness": 1.5},
                "mode": "lines+markers" if _ordered(column) else "markers",
                "marker": {"color": colour, "size": 9, "symbol": "diamond"},
                "line": {"color": colour, "dash": DASHES[n // GROUPS % len(DASHES)]},
                "showlegend": shown,
            }
        )
        traces.append(
            common
            | {
                "x": [x for x, _, _ in dots],
                "y": [y for _, y, _ in dots],
                "text": [f"{job.name} seed={job.seed}" for _, _, job in dots],
                "mode": "markers",
                "marker": {"color": colour, "size": 7, "symbol": "circle-open"},
                "showlegend": False,
            }
        )
    axis = {"title": {"text": column.key}, "type": "category", "categoryorder": "array"}
    values = sorted({same(v): v for v in column.values}.values(), key=_order)
    return _chart(traces, axis | {"categoryarray": [text(v) for v in values]}, _accuracy_axis(probe))


def parallel(summary: Summary, columns: list[Column], probe: str) -> Chart:
    """A line per job over all swept keys and its accuracy, whose colour it has."""
    measured = [(i, 100 * s.mean) for i, job in enumerate(summary.jobs) if (s := accuracies([job], "h").get(probe))]
    values = [value for _, value in measured] or [0.0]
    low, high = min(values), max(values)
    ticks = [sorted({same(v): v for v in c.values}.values(), key=_order) for c in columns]
    places = [{same(v): _share(n, len(own)) for n, v in enumerate(own)} for own in ticks]
    names = [*(c.name for c in columns), f"{_named(probe)} (%)"]
    traces: list[Chart] = []
    for i, value in measured:
        height = (value - low) / (high - low) if high > low else 0.5
        y = [place[same(c.values[i])] for place, c in zip(places, columns, strict=True)]
        job = summary.jobs[i]
        traces.append(
            {
                "type": "scatter",
                "x": list(range(len(names))),
                "y": [*y, height],
                "mode": "lines",
                "line": {"color": _shade(height), "width": 2},
                "opacity": 0.8,
                "hoverinfo": "text",
                "text": f"{job.name} seed={job.seed}: {value:.1f} %",
                "showlegend": False,
            }
        )
    marks = [(n, places[n][same(v)], text(v)) for n, own in enumerate(ticks) for v in own]
    marks += [(len(columns), 0.0, f"{low:.1f}"), (len(columns), 1.0, f"{high:.1f}")]
    traces.append(
        {
            "type": "scatter",
            "x": [x for x, _, _ in marks],
            "y": [y for _, y, _ in marks],
            "text": [mark for _, _, mark in marks],
            "mode": "markers+text",
            "textposition": "middle left",
            "marker": {"color": "black", "size": 4},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    )
    lines = [{"type": "line", "x0": n, "x1": n, "y0": 0, "y1": 1, "line": {"width": 1}} for n in range(len(names))]
    x = {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.6, len(names) - 0.6], "showgrid": False}
    chart = _chart(traces, x, {"visible": False})
    chart["layout"] |= {"shapes": lines, "hovermode": "closest"}
    return chart


def heat_map(summary: Summary, rows: list[Row], columns: list[Column], probe: str) -> Chart:
    """Mean accuracy over seeds by two keys."""
    across, down = columns
    x, y = (sorted({same(v): v for v in c.values}.values(), key=_order) for c in (across, down))
    i, j = summary.columns.index(across), summary.columns.index(down)
    found: dict[tuple[str, str], Spread | None] = {
        (same(row.values[i]), same(row.values[j])): row.accuracies.get(probe) for row in rows
    }
    spreads = [[found.get((same(a), same(b))) for a in x] for b in y]
    trace = {
        "type": "heatmap",
        "x": [text(v) for v in x],
        "y": [text(v) for v in y],
        "z": [[None if s is None else 100 * s.mean for s in line] for line in spreads],
        "text": [["" if s is None else _spread(s) for s in line] for line in spreads],
        "texttemplate": "%{text}",
        "colorscale": [[n / (len(CIVIDIS) - 1), colour] for n, colour in enumerate(CIVIDIS)],
        "colorbar": {"title": {"text": "%"}},
    }
    axes = ({"title": {"text": c.key}, "type": "category"} for c in (across, down))
    return _chart([trace], *axes)


def curves(
    summary: Summary, rows: list[Row], logged: dict[int, list[dict]], metric: str, axis: str, factor: float
) -> Chart | None:
    """A curve per job, against epochs, PFLOP or device-hours by choice; None if none has logged the metric."""
    numbers = {job.folder: i for i, job in enumerate(summary.jobs)}
    most = min(POINTS, max(10, ALL_POINTS // len(summary.jobs)))
    traces, lengths = [], dict[str, list[list[float | None]]]({name: [] for name in AGAINST})
    for n, row in enumerate(rows):
        for k, job in enumerate(row.jobs):
            own = [line for line in logged.get(numbers[job.folder], ()) if line.get(metric) is not None]
            own = own[:: max(1, -(-len(own) // most))]
            if not own:
                continue
            epochs = [float(line["epoch"]) for line in own]
            for name in AGAINST:
                lengths[name].append([_brief(progress(name, job, epoch)) for epoch in epochs])
            name = label(summary, row.values)
            traces.append(
                {
                    "type": "scatter",
                    "x": epochs,
                    "y": [_brief(factor * line[metric]) for line in own],
                    "mode": "lines+markers" if len(own) < 8 else "lines",
                    "line": {"color": colour_of(name, n), "dash": DASHES[n // GROUPS % len(DASHES)], "width": 1.5},
                    "name": name,
                    "legendgroup": name,
                    "showlegend": k == 0 and len(rows) > 1 and n < 2 * GROUPS,
                    "text": f"{job.name} seed={job.seed}",
                }
            )
    if not traces:
        return None
    chart = _chart(traces, {"title": {"text": "epochs"}, "rangemode": "tozero"}, {"title": {"text": axis}})
    buttons = [
        {"label": title, "method": "update", "args": [{"x": lengths[name]}, {"xaxis.title.text": title}]}
        for name, title in AGAINST.items()
    ]
    chart["layout"]["updatemenus"] = [
        {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.18, "buttons": buttons}
    ]
    return chart


def compute(summary: Summary, rows: list[Row], probe: str) -> Chart:
    """Accuracy by the PFLOP of training, every job a dot."""
    traces = []
    for n, row in enumerate(rows):
        found = [
            (job, flop / 1e15, 100 * spread.mean)
            for job in row.jobs
            if (spread := accuracies([job], "h").get(probe)) and (flop := job.number("flop"))
        ]
        name = label(summary, row.values)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [x for _, x, _ in found],
                "y": [y for _, _, y in found],
                "text": [f"{job.name} seed={job.seed}" for job, _, _ in found],
                "marker": {"color": colour_of(name, n), "size": 9, "symbol": n // GROUPS % 4},
                "name": name,
                "showlegend": len(rows) > 1 and n < 2 * GROUPS,
            }
        )
    return _chart(traces, {"title": {"text": AGAINST["pflop"]}, "rangemode": "tozero"}, _accuracy_axis(probe))


# ---- What they share --------------------------------------------------------------------------------------------


def _chart(traces: list[Chart], x: Chart, y: Chart) -> Chart:
    grid = {"gridcolor": "#e5e5e5", "zeroline": False, "linecolor": "black", "automargin": True}
    layout = {
        "xaxis": grid | x,
        "yaxis": grid | y,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"size": 13, "color": "black"},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": -0.25},
        "height": 420,
    }
    return {"data": _escaped(traces), "layout": _escaped(layout)}


def _escaped(value: Any) -> Any:
    """The value with texts that Plotly, which knows some of HTML, shows as they are."""
    if isinstance(value, dict):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return html.escape(value, quote=False) if isinstance(value, str) else value


def _accuracy_axis(probe: str) -> Chart:
    return {"title": {"text": f"{_named(probe)}, test accuracy (%)"}}


def _named(probe: str) -> str:
    return PROBES.get(probe, probe)


def _spread(spread: Spread) -> str:
    return f"{100 * spread.mean:.1f}" + ("" if spread.sd is None else f" ± {100 * spread.sd:.1f}")


def _ordered(column: Column) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in column.values)


def _order(value: object) -> tuple:
    number = isinstance(value, int | float)
    return (not number, float(value) if isinstance(value, int | float) else 0.0, json.dumps(value, default=str))


def _share(n: int, of: int) -> float:
    return n / (of - 1) if of > 1 else 0.5


def _brief(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")  # more is not seen, and makes a page larger


def _shade(height: float) -> str:
    return CIVIDIS[round(height * (len(CIVIDIS) - 1))]


def progress(name: str, job: JobReport, epoch: float) -> float | None:
    """How far a job was after so many epochs, in one of AGAINST; work is taken to go evenly, evaluation included."""
    if name == "epochs":
        return epoch
    whole, now = (job.number("flop"), 1e15) if name == "pflop" else (job.hours, 1.0)
    return None if not whole or not job.number("epoch") else whole / now * epoch / float(job.said["epoch"])
