"""How alike the features of an image's views are, beside those of other images' views (paper Fig. 5)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.datasets import Dataset, seeded_split, to_float
from aavae.errors import UserError
from aavae.probes.guests import Picture
from aavae.probes.representations import Representation
from aavae.reports.canvas import thumbnails
from aavae.reports.figures import similarity_figure
from aavae.runs.results import record
from aavae.runtime.randomness import generator_for

BATCH = 100  # images at a time; fixed, because the draws depend on it
MOST_SHOWN = 20


def draw_views(encode: Representation, images: Tensor, views: int, seed: int, batch: int) -> Iterator[Tensor]:
    """K views `(B, 3, H, W)` in [0, 1] of uint8 images, one after the other: a function of seed and batch alone."""
    source = to_float(images.to(encode.device))
    for k in range(views):
        draws = encode.views.draw(len(source), source.shape[-1], generator_for(seed, "views", batch, k))
        yield encode.views.apply(source, draws)


def view_features(encode: Representation, split, views: int, seed: int) -> Iterator[Tensor]:
    """Features `(B, K, F)`, on the CPU, of K views of each image of `split`, batch after batch.

    Every representation sees the same views; one that draws a latent draws it anew for each of them.
    """
    noise, total = generator_for(seed, "views", encode.name), -(-len(split) // BATCH)
    for i, images in enumerate(encode.track(split.batches(BATCH), total, f"{encode.name} of views")):
        drawn = draw_views(encode, images, views, seed, i)
        yield torch.stack([encode.encode(encode.dataset.normalize(view), noise).cpu() for view in drawn], 1)


def directions(features: Tensor, centre: Tensor | float, scale: float) -> Tensor:
    """Unit vectors `(…, F)` in float64 from `centre` to the features.

    What lies nearer to it than float32 can tell, 10⁻⁶ of the `scale` of the features, has next to no direction.
    """
    return F.normalize(features.double() - centre, dim=-1, eps=max(1e-6 * scale, 1e-30))


def mean_cosines(features: Tensor, centre: Tensor | float, scale: float) -> tuple[float, float]:
    """Mean cosines of `(N, K, F)` within images (pairs of different views) and between them, seen from `centre`.

    From sums of unit vectors, since Σᵢⱼ uᵢ·uⱼ = ‖Σᵢ uᵢ‖²: the matrix of all pairs need not fit into memory.
    """
    n, k, _ = features.shape
    zero: Any = 0.0  # a Tensor, once something is added
    total, squares, selves = zero, zero, zero
    for views in features:
        unit = directions(views, centre, scale)
        own = unit.sum(0)
        total, squares, selves = total + own, squares + own @ own, selves + unit.square().sum()
    within = (squares - selves) / (n * k * (k - 1))
    between = (total @ total - squares) / (n * (n - 1) * k**2)
    return within.item(), between.item()


class Similarity:
    """Mean cosine within and between images, over `views` views of each of `images` images, raw and centred.

    Centred: the mean of all features is subtracted first. Features behind a ReLU point into one orthant, so that their
    raw cosines are high in any network. The picture shows the matrices of the first `shown` images, and their views.
    """

    needs_labels = False

    def __init__(self, images: int = 100, views: int = 10, shown: int = 10, seed: int = 0):
        if images < 2 or views < 2:
            raise UserError(f"probe.similarity: images and views must be 2 or more, not {images} and {views}")
        if not 2 <= shown <= min(images, MOST_SHOWN):
            most = min(images, MOST_SHOWN)
            raise UserError(f"probe.similarity: shown must lie between 2 and {most} of {images} images, not {shown}")
        self.images, self.views, self.shown, self.seed = images, views, shown, seed

    def missing(self, encode: Representation) -> str | None:
        """Why there is nothing to compare."""
        n = len(encode.dataset["pretrain_val"])
        return None if n >= 2 else f"it compares 2 images or more, and pretrain_val has {n}"

    def run(self, encode: Representation, dataset: Dataset) -> list[dict | Picture]:
        """Four records and a picture."""
        everything = dataset["pretrain_val"]
        # Shuffled even where all are taken: files may lie in order of class, and the first few are shown.
        split = everything.take(seeded_split(len(everything), min(self.images, len(everything)))[0])
        features = torch.cat(list(view_features(encode, split, self.views, self.seed)))
        scale = features.norm(dim=-1).max().item()
        mean = features.mean((0, 1), dtype=torch.float64)
        drawn = f"{len(split)} images × {self.views} views by {encode.views}, seed {self.seed}, float32"
        records, panels, shown = [], {}, features[: self.shown].flatten(0, 1)
        for title, suffix, centre, how in (
            ("raw", "", 0.0, ""),
            ("centred", "_centred", mean, ", mean of all features subtracted"),
        ):
            within, between = mean_cosines(features, centre, scale)
            for metric, value, pairs in (
                ("cos_within", within, "pairs of different views of one image"),
                ("cos_between", between, "pairs of views of different images"),
            ):
                protocol, name = f"mean cosine over {pairs}{how}; {drawn}", metric + suffix
                records.append(record("similarity", encode.name, "pretrain_val", value, len(split), protocol, name))
            unit = directions(shown, centre, scale)
            panels[f"{title}: {within:z.2f} within images, {between:z.2f} between"] = unit @ unit.T
        title = f"Cosine similarity of {encode.name}, {dataset.name}, {len(split)} images × {self.views} views"
        return [*records, Picture(f"similarity_{encode.name}", self._draw(encode, split, panels, title))]

    def _draw(self, encode: Representation, split, panels: dict[str, Tensor], title: str) -> bytes:
        # The draws of a batch belong to all of it, so that all of the first is drawn again.
        images, n = next(iter(split.batches(BATCH))), min(self.shown, len(split))
        drawn = draw_views(encode, images, self.views, self.seed, 0)
        views = torch.stack([thumbnails(view[:n].cpu()) for view in drawn], 1)
        if len(split) > n:
            title += f" ({n} images shown)"
        return similarity_figure(panels, thumbnails(to_float(images[:n].cpu())), views, title)
