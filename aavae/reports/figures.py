"""Pictures: reconstructions, cosine matrices with their views, spectra, and maps with thumbnails."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.reports.canvas import array, axes_at, blank, png
from aavae.reports.palette import COLOURS
from aavae.runtime import files

MARKERS = "o^Dv"  # beside ten colours they tell twenty classes apart
MOST_NAMES = 20  # in a legend
SMALL = 8.5  # points
FLOOR = 1e-8  # of what is drawn of a spectrum: float64 inner products tell smaller singular values from 0 no more


def _begin(width: float, height: float, title: str):
    figure = blank(width, height)
    figure.text(0.5, 1 - 0.1 / height, title, fontsize=10, ha="center", va="top")
    return figure


# ---- Similarity ---------------------------------------------------------------------------------------------------


def similarity_figure(panels: dict[str, Tensor], images: Tensor, views: Tensor, title: str) -> bytes:
    """Cosine matrices `{title: (S·K, S·K)}`, blocks by image, and below them the images `(S, 3, H, W)` in [0, 1], each
    before its views `(S, K, 3, H, W)`; as a PNG."""
    n, k = views.shape[:2]
    side, width = 3.35, 8.3  # inches
    strip = side / max(n, 8)  # how high; a block is side / n wide
    top = 0.7 + strip
    grid = _grid(images, views)
    aspect = grid.shape[2] / grid.shape[1]
    below = min(4.2, (width - 0.2) / aspect)  # the grid's height
    figure = _begin(width, top + side + 0.45 + below + 0.1, title)
    for i, (name, matrix) in enumerate(panels.items()):
        left = 0.15 + strip + i * (side + 0.15)
        above = axes_at(figure, left, top - strip - 0.05, side, strip)
        _show(above, _row(images, side / n / strip))
        above.set_title(name, fontsize=SMALL)
        drawn = _matrix(axes_at(figure, left, top, side, side), matrix, n, k)
    _show(axes_at(figure, 0.1, top, strip, side), _row(images.mT, side / n / strip).mT)
    bar = figure.colorbar(drawn, cax=axes_at(figure, left + side + 0.12, top, 0.12, side), ticks=np.linspace(-1, 1, 5))
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("cosine", fontsize=SMALL)
    axis = axes_at(figure, (width - below * aspect) / 2, top + side + 0.45, below * aspect, below)
    _show(axis, grid)
    axis.set_title("the images, each before its views", fontsize=SMALL)
    return png(figure)


def _show(axis, image: Tensor) -> None:
    axis.imshow(array(image), aspect="auto", interpolation="nearest")
    axis.axis("off")


def _row(images: Tensor, room: float) -> Tensor:
    """The images side by side, each in the middle of `room` times its width."""
    cells = _framed(images)
    margin = round(cells.shape[-1] * (room - 1) / 2)
    return torch.cat(list(F.pad(cells, (margin, margin), value=1.0)), -1)


def _framed(images: Tensor) -> Tensor:
    gap = max(1, images.shape[-1] // 16)
    return F.pad(images, (gap, gap, gap, gap), value=1.0)


def _matrix(axis, matrix: Tensor, n: int, k: int):
    drawn = axis.imshow(matrix.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    borders = np.arange(1, n) * k - 0.5
    for lines in (axis.hlines, axis.vlines):
        lines(borders, -0.5, n * k - 0.5, color="black", linewidth=0.4)
    axis.set(xticks=[], yticks=[])
    return drawn


def _grid(images: Tensor, views: Tensor) -> Tensor:
    """One picture `(3, H, W)` of all images and views on white; two images a line, unless they have many views."""
    gap = max(1, images.shape[-1] // 16)
    cells = _framed(torch.cat([images[:, None], views], 1))  # (S, 1+K, 3, H, W)
    lines = [torch.cat([F.pad(line[0], (0, 3 * gap), value=1.0), *line[1:]], -1) for line in cells]
    if len(lines) > 1 and views.shape[1] <= 12:
        blank_line = [torch.ones_like(lines[0])] * (len(lines) % 2)
        pairs = zip(lines[::2], [*lines[1::2], *blank_line], strict=True)
        lines = [torch.cat([F.pad(a, (0, 9 * gap), value=1.0), b], -1) for a, b in pairs]
    return torch.cat(lines, -2)


# ---- Geometry -----------------------------------------------------------------------------------------------------


def geometry_figure(spectra: dict[str, Tensor], latents: dict[str, tuple[Tensor, float | None]], title: str) -> bytes:
    """Singular values `{label: (R,)}` relative to the largest, and beside them quantities per latent
    `{title: ((D,), threshold)}`, sorted, on a logarithmic scale where there is a threshold; as a PNG."""
    side, height, left, gap = 3.2, 2.4, 0.8, 0.65
    panels = 1 + len(latents)
    figure = _begin(left + panels * (side + gap) - gap + 0.15, height + 1.2, title)
    first, *others = (axes_at(figure, left + i * (side + gap), 0.65, side, height) for i in range(panels))
    _spectra(first, spectra)
    for axis, (name, (values, threshold)) in zip(others, latents.items(), strict=True):
        _bars(axis, values.numpy(), threshold)
        axis.set_title(name, fontsize=SMALL)
        axis.set_xlabel("latent, sorted", fontsize=SMALL)
    for axis in (first, *others):
        axis.tick_params(which="both", labelsize=SMALL)
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _spectra(axis, spectra: dict[str, Tensor]) -> None:
    for (label, values), colour, style in zip(spectra.items(), (COLOURS[0], COLOURS[2]), ("-", "--"), strict=True):
        relative = (values / values[0].clamp(min=1e-30)).clamp(min=FLOOR)
        axis.plot(range(1, len(values) + 1), relative, style, color=colour, label=label)
    axis.set(yscale="log")
    axis.set_title("singular values, σ$_k$ / σ$_1$", fontsize=SMALL)  # beside wide tick labels it would not fit
    axis.set_xlabel("k", fontsize=SMALL)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=SMALL, frameon=False)


def _bars(axis, values: np.ndarray, threshold: float | None) -> None:
    values = np.sort(values)[::-1]
    axis.stairs(values, np.arange(len(values) + 1) + 0.5, fill=True, color=COLOURS[0])
    if threshold is not None:
        axis.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
        low, high = min(values.min(), threshold), max(values.max(), threshold)
        axis.set(yscale="log", ylim=(max(low, 1e-4 * threshold) / 2, 2 * high))


# ---- Embedding ----------------------------------------------------------------------------------------------------


def embedding_figure(
    maps: dict[str, np.ndarray], images: Tensor, labels: Tensor | None, names: Sequence[str], title: str
) -> bytes:
    """Maps `{title: (N, 2)}` of images `(N, 3, H, W)` in [0, 1], some of which are shown where they lie; points in the
    colours of their classes, with a legend of the class `names` unless they are too many; as a PNG."""
    side, gap, top = 4.4, 0.1, 0.65
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
    legend = labels is not None and len(names) <= MOST_NAMES
    room = 0.4 + 0.075 * max(map(len, names)) if legend else 0.0
    height = max(_height(points) for points in maps.values())
    figure = _begin(gap + len(maps) * (side + gap) + room, top + side * height + gap, title)
    classes = np.zeros(len(images), dtype=int) if labels is None else labels.numpy()
    for i, (name, points) in enumerate(maps.items()):
        axis = axes_at(figure, gap + i * (side + gap), top, side, side * height)
        axis.set_title(name, fontsize=SMALL)
        points = _placed(points, height)
        _scatter(axis, points, classes, names)
        _pin(axis, points, images, classes)
        axis.set(xlim=(0, 1), ylim=(0, height), xticks=[], yticks=[], aspect="equal")
    if legend:
        axis.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=SMALL,
            handletextpad=0.1, markerscale=1.5,
        )  # fmt: skip
    return png(figure)


def _height(points: np.ndarray) -> float:
    """How high a panel one wide should be for the points."""
    width, height = np.ptp(points, axis=0)
    return float(np.clip(height / max(width, 1e-30), 0.5, 1.0))


def _placed(points: np.ndarray, height: float) -> np.ndarray:
    """The points moved, and scaled alike in both directions, into a panel one wide and so high."""
    middle, extent = (points.min(0) + points.max(0)) / 2, np.ptp(points, axis=0)
    scale = (extent / (0.9, height - 0.1)).max() or 1.0
    return (points - middle) / scale + (0.5, height / 2)


def _scatter(axis, points: np.ndarray, classes: np.ndarray, names: list[str]) -> None:
    for c in np.unique(classes):
        colour, marker = COLOURS[c % len(COLOURS)], MARKERS[c % len(MARKERS)]
        label = names[c] if names else None
        axis.scatter(*points[classes == c].T, s=12, color=colour, marker=marker, linewidth=0, label=label)


def _pin(axis, points: np.ndarray, images: Tensor, classes: np.ndarray, size: float = 0.06, most: int = 40) -> None:
    """Show up to 40 images at their points, first come first served, none over another."""
    chosen: list[int] = []
    for i, point in enumerate(points):
        if all(np.abs(point - points[j]).max() > 1.4 * size for j in chosen):
            chosen.append(i)
    for i in chosen[:most]:
        (x, y), half = points[i], size / 2
        axis.imshow(array(images[i]), extent=(x - half, x + half, y - half, y + half), zorder=3)
        xs, ys = x + half * np.array([-1, 1, 1, -1, -1]), y + half * np.array([-1, -1, 1, 1, -1])
        axis.plot(xs, ys, color=COLOURS[classes[i] % len(COLOURS)], linewidth=1.2, zorder=4)


def reconstruction_figure(path: Path, rows: dict[str, Tensor], title: str) -> None:
    """Write a PNG of image rows `{label: (N, 3, H, W)}` in [0, 1], one above the other, columns belonging together."""
    columns, width, gap = max(len(images) for images in rows.values()), 0.8, 0.05
    figure = blank(1.5 + width * columns, 0.4 + width * len(rows))
    figure.suptitle(title, fontsize=9)
    for i, (label, images) in enumerate(rows.items()):
        # One picture a row, with white between the images: a picture each would take ten times as long.
        margin = max(1, round(images.shape[-1] * gap))
        row = F.pad(images, (0, margin, 0, 0), value=1.0).permute(1, 2, 0, 3).flatten(2)  # (3, H, N·(W + margin))
        axis = axes_at(figure, 1.3, 0.35 + width * i, width * len(images), width * (1 - gap))
        axis.imshow(array(row), interpolation="nearest", aspect="auto")
        axis.set_axis_off()
        axis.text(-0.1 / (width * len(images)), 0.5, label, size=8, ha="right", va="center", transform=axis.transAxes)
    files.write(path, png(figure))
