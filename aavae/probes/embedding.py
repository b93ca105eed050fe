"""A map of the representation to look at: PCA and t-SNE in two dimensions."""

import numpy as np
import torch

from aavae.datasets import Dataset, sample, to_float
from aavae.errors import UserError
from aavae.probes.guests import Picture
from aavae.probes.representations import Representation
from aavae.reports.canvas import thumbnails
from aavae.reports.figures import embedding_figure
from aavae.runs.results import record
from aavae.runtime.words import count

FEWEST = 4  # fewer leave t-SNE no neighbours


def principal_components(features: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal components `(N, 2)` of features `(N, F)`, and their share of the variance.

    Zeros where there are none: a second one of a single feature, and any of constant features.
    """
    from sklearn.decomposition import PCA

    components, n = np.zeros((len(features), 2)), min(2, *features.shape)
    if not features.any():
        return components, 0.0
    pca = PCA(n, svd_solver="full")
    components[:, :n] = pca.fit_transform(features)
    return components, float(pca.explained_variance_ratio_.sum())


def neighbour_map(features: np.ndarray, start: np.ndarray, perplexity: float) -> tuple[np.ndarray, float]:
    """t-SNE `(N, 2)` of features `(N, F)` from the principal components `start`, and its trustworthiness.

    Nothing is drawn at random. Trustworthiness (Venna & Kaski 2001) is of 5 neighbours, or as many as so few images
    allow.
    """
    from sklearn.manifold import TSNE, trustworthiness

    # As init="pca" does, which knows no constant features and no single one.
    start = 1e-4 * start / (start[:, 0].std() or 1.0)
    tsne = TSNE(perplexity=perplexity, init=start.astype(np.float32))
    points = tsne.fit_transform(features.astype(np.float32))
    return points, trustworthiness(features, points, n_neighbors=neighbours(len(features)))


def neighbours(n: int) -> int:
    """How many neighbours trustworthiness looks at: below half of the images, as its normalisation asks for."""
    return min(5, (n - 1) // 2)


def standardised(features: torch.Tensor) -> np.ndarray:
    """Centred features `(N, F)` in units of their largest deviation, float64: neither map depends on scale, float32
    does. Zero where they differ by less than float32 can tell."""
    numbers = features.cpu().double().numpy()
    deviation = numbers - numbers.mean(0)
    largest = np.abs(deviation).max()
    return deviation / largest if largest > 1e-6 * np.abs(numbers).max() else np.zeros_like(numbers)


class Embedding:
    """PCA and t-SNE of up to `images` images, with thumbnails; coloured by class where there are labels.

    The perplexity is a third of the number of images at most: t-SNE wants three times as many neighbours.
    """

    needs_labels = False

    def __init__(self, images: int = 1000, perplexity: float = 30.0):
        if images < FEWEST or not perplexity >= 1:
            raise UserError(
                f"probe.embedding: images must be {FEWEST} or more and perplexity 1 or more, "
                f"not {images} and {perplexity}"
            )
        self.images, self.perplexity = images, perplexity

    def missing(self, encode: Representation) -> str | None:
        """Why there is nothing to show."""
        n = len(encode.dataset["pretrain_val"])
        return None if n >= FEWEST else f"it maps {FEWEST} images or more, and pretrain_val has {n}"

    def run(self, encode: Representation, dataset: Dataset) -> list[dict | Picture]:
        """Two records and a picture."""
        split = sample(dataset["pretrain_val"], self.images)
        features, labels = encode.of(split, f"{encode.name} of pretrain_val images")
        n, dims = features.shape
        standard, perplexity = standardised(features), min(self.perplexity, (n - 1) / 3)
        components, share = principal_components(standard)
        points, trust = neighbour_map(standard, components, perplexity)
        maps = {
            f"PCA, {share:.0%} of the variance": components,
            f"t-SNE, perplexity {perplexity:.3g}, trustworthiness {trust:.2f}": points,
        }
        images = torch.cat([thumbnails(to_float(images.cpu())) for images in split.batches(encode.batch_size)])
        title = f"Maps of {encode.name}, {dataset.name}, {n} images"
        names = dataset.classes or [str(c) for c in range(dataset.num_classes)]
        picture = embedding_figure(maps, images, None if labels is None else labels.cpu(), names, title)
        share_how = f"share of the variance of {count(dims, 'feature', 'd')} in 2 principal components, float32"
        near = count(neighbours(n), "neighbour", "d")
        trust_how = f"t-SNE (scikit-learn) from PCA, perplexity {perplexity:.3g}, {near}, float32"
        return [
            record("embedding", encode.name, "pretrain_val", share, n, share_how, "pca_explained_variance"),
            record("embedding", encode.name, "pretrain_val", trust, n, trust_how, "trustworthiness"),
            Picture(f"embedding_{encode.name}", picture),
        ]
