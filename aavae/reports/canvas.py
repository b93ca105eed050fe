"""Helpers for matplotlib: empty figures, axes in inches, PNGs, small images."""

import io
import logging

import numpy as np
from torch import Tensor
from torch.nn import functional as F

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
