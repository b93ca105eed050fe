"""A picture of the images that are nearest to one, by the cosine of their features."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from aavae.datasets.store import Store
from aavae.reports.canvas import axes_at, blank, png
from aavae.runtime import files

SIDE = 1.35  # inches of a picture
COLUMNS = 6
LETTERS = 22  # of a name


class Nearest:
    """The `k` images with the largest cosine to a query `(1, …)`, found while rows pass by."""

    def __init__(self, query: Tensor, k: int):
        self.query, self.k = F.normalize(query.flatten(1), dim=1), k
        self.found: list[tuple[float, str]] = []  # cosine, name; the nearest first

    def watch(self, rows: Iterable[tuple[list[str], list[str], Tensor]]) -> Iterable:
        """The rows, as they come."""
        for names, labels, features in rows:
            cosines = (F.normalize(features.flatten(1), dim=1) @ self.query.T).flatten()
            best = cosines.topk(min(self.k, len(names)))
            several = [(c, names[i]) for c, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
            self.found = sorted([*self.found, *several], key=lambda pair: (-pair[0], pair[1]))[: self.k]
            yield names, labels, features


def draw(path: Path, query: Path, opened: Image.Image, nearest: Nearest, store: Store, title: str) -> None:
    """Write the picture: the query, then its neighbours with name and cosine. Raises UserError where it cannot be."""
    shown = [(query.name, "query", opened)]
    own = {store.prefix + name: name for name in store.names}
    shown += [(name, f"{cosine:.3f}", store.open(own[name])) for cosine, name in nearest.found]
    rows = -(-len(shown) // COLUMNS)
    width, height = COLUMNS * (SIDE + 0.1) + 0.1, rows * (SIDE + 0.45) + 0.5
    figure = blank(width, height)
    figure.text(0.5, 1 - 0.1 / height, title, fontsize=9, ha="center", va="top")
    for n, (name, below, image) in enumerate(shown):
        row, column = divmod(n, COLUMNS)
        axis = axes_at(figure, 0.1 + column * (SIDE + 0.1), 0.65 + row * (SIDE + 0.45), SIDE, SIDE)
        axis.imshow(np.asarray(image))
        axis.axis("off")
        short = name if len(name) <= LETTERS else f"…{name[-LETTERS + 1 :]}"
        axis.set_title(f"{short}\n{below}", fontsize=6, pad=2)
    files.write(path, png(figure))


def vector(source, image: Image.Image, device: torch.device) -> Tensor:
    """The features `(1, …)` of one image."""
    return source(source.transform(image)[None].to(device))
