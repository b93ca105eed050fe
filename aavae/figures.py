"""Pictures, where people would rather look than read."""

import io
import logging
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from aavae import files

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it announces its font cache

THUMBNAIL = 48  # pixels


def blank(width: float, height: float):
    """An empty matplotlib Figure of so many inches, apart from pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure, left: float, top: float, width: float, height: float):
    """Axes of so many inches, so far from the left and the top edge of the figure."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def png(figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def array(image: Tensor) -> np.ndarray:
    """An image `(3, H, W)` in [0, 1] as matplotlib wants it, `(H, W, 3)`."""
    return np.ascontiguousarray(image.permute(1, 2, 0).float().cpu().numpy())


def thumbnails(images: Tensor) -> Tensor:
    """Images `(N, 3, H, W)` in [0, 1], at most 48 pixels high, in 64 levels a channel: more would not be seen in a
    picture of a hundred images, and make its file a third larger."""
    if images.shape[-1] > THUMBNAIL:
        size = (THUMBNAIL, THUMBNAIL)
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return (63 * images).round() / 63


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
