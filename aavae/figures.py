"""Pictures, where people would rather look than read."""

import io
import logging
from pathlib import Path

import numpy as np
from torch import Tensor

from aavae import files

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it announces its font cache


def reconstruction_figure(path: Path, rows: dict[str, Tensor], title: str) -> None:
    """Write a PNG of image rows `{label: (N, 3, H, W)}` in [0, 1], one above the other, columns belonging together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.5 + 0.8 * columns, 0.5 + 0.85 * len(rows)), dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(np.ascontiguousarray(image.permute(1, 2, 0).float().cpu().numpy()), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    figure.subplots_adjust(
        left=1.3 / figure.get_figwidth(), right=0.995, bottom=0.01, top=1 - 0.35 / figure.get_figheight(),
        wspace=0.06, hspace=0.06,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    files.write(path, buffer.getvalue())
