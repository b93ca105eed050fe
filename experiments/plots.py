"""Figures for a two-column paper: small type, units, one colour and mark for a method everywhere, seeds as dots."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from aavae.reports.canvas import blank
from aavae.reports.charts import AGAINST
from aavae.reports.palette import COLOURS, LINES, colour_of, marker_of

COLUMN, PAGE = 3.35, 6.9  # inches
SMALL = 8  # points
# Type 42 keeps letters letters, which Type 3 does not; and some publishers refuse Type 3.
matplotlib.rcParams.update(
    {"pdf.fonttype": 42, "font.size": SMALL, "axes.titlesize": SMALL, "legend.fontsize": SMALL - 1}
)


def panels(n: int, width: float = 0.0, height: float = 2.3, rows: int = 1, **options) -> tuple[Any, np.ndarray]:
    """A figure of `rows` × `n` axes, `(rows, n)`, as wide as a column, or as a page for several."""
    figure = blank(width or (COLUMN if n == 1 else PAGE), rows * height)
    axes = figure.subplots(rows, n, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axis.set_axisbelow(True)
    figure.set_layout_engine("constrained")
    return figure, axes


def spread(axis, x: float, values: Sequence[float], colour: str, marker: str = "o", label: str | None = None) -> None:
    """Mean and sd of values, and every one of them as a dot beside."""
    if not values:
        return
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    style = {"color": colour, "marker": marker, "markersize": 5, "capsize": 2, "linestyle": "none", "zorder": 3}
    axis.errorbar([x], [np.mean(values)], yerr=[sd], label=label, **style)
    axis.plot([x + 0.16] * len(values), values, ".", color=colour, markersize=3.5, alpha=0.7)


def categories(axis, names: Sequence[str], title: str, rotated: bool = False) -> None:
    """Names along the x axis."""
    axis.set_xticks(range(len(names)), names, rotation=30 if rotated else 0, ha="right" if rotated else "center")
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_xlabel(title)


def lines(axis, curves: Sequence[Sequence[tuple[float, float]]], colour: str, line: str, label: str | None) -> None:
    """The mean over runs, its sd as a band, and thinly every run; all curves have the same number of points."""
    if not curves:
        return
    for curve in curves:
        axis.plot(*zip(*curve, strict=True), line, color=colour, linewidth=0.5, alpha=0.5)
    points = np.array(curves)  # (runs, points, 2)
    x, y = points[..., 0].mean(0), points[..., 1].mean(0)
    axis.plot(x, y, line, color=colour, linewidth=1.4, label=label, marker="." if len(x) < 12 else None)
    if len(curves) > 1:
        sd = points[..., 1].std(0, ddof=1)
        axis.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15, linewidth=0)


def floors(axis, values: dict[str, float]) -> None:
    """Horizontal lines of what owes nothing to training, by name."""
    for (name, value), line in zip(values.items(), LINES[1:], strict=False):
        axis.axhline(value, color="#555555", linewidth=0.8, linestyle=line, label=name)


def progress_axis(axis, against: str) -> None:
    """What curves are drawn against."""
    axis.set_xlabel(AGAINST[against])
    axis.set_xlim(left=0)


def style(n: int, name: str = "") -> tuple[str, str, str]:
    """Colour, marker and line of a setting."""
    return colour_of(name, n), marker_of(name, n), LINES[n // len(COLOURS) % len(LINES) if n >= len(COLOURS) else n % 4]
