"""The shape of a cloud of features: ranks, alignment, uniformity; and of a latent code, which units it uses."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.datasets import Dataset, sample
from aavae.errors import UserError
from aavae.models.diagnostics import active_units
from aavae.models.losses import kl_to_prior
from aavae.probes.guests import Picture
from aavae.probes.representations import Representation
from aavae.probes.similarity import view_features
from aavae.reports.figures import geometry_figure
from aavae.runs.results import record
from aavae.runtime.device import full_float32
from aavae.runtime.words import count

EPSILON = 1e-7  # of RankMe (Garrido et al. 2023, §3)


def inner_products(features: Tensor) -> Tensor:
    """All inner products `(N, N)` of features `(N, F)`, in float64 on the CPU; a few columns at a time, so that no
    float64 copy of many pixels is made."""
    pieces = (piece.cpu().double() for piece in features.split(4096, 1))
    return sum(piece @ piece.T for piece in pieces)


def centred(products: Tensor) -> Tensor:
    """The inner products of the features less their mean; zero where that is all that float32 can tell of them."""
    rows = products.mean(1, keepdim=True)
    about_mean = products - rows - rows.T + products.mean()
    return about_mean * (about_mean.trace() > 1e-12 * products.trace())


def singular_values(products: Tensor, rank: int) -> Tensor:
    """The largest singular values `(min(N, rank),)`, falling, of the features that have these inner products."""
    return torch.linalg.eigvalsh(products).flip(0)[:rank].clamp(min=0).sqrt()


def rankme(singular_values: Tensor) -> Tensor:
    """exp(−Σ p_k log p_k), p_k = σ_k/‖σ‖₁ + ε, of uncentred features (Garrido et al. 2023, Eq. 1–2); 0 if all are 0."""
    total = singular_values.sum()
    if total == 0:
        return total
    return torch.special.entr(singular_values / total + EPSILON).sum().exp()


def effective_rank(singular_values: Tensor) -> Tensor:
    """exp(−Σ p_k log p_k), p_k = λ_k/Σλ, of the covariance's eigenvalues λ = σ²/N, from the singular values of centred
    features (Roy & Vetterli 2007, Def. 1, applied to the covariance); 0 if they are constant."""
    eigenvalues = singular_values.square()
    total = eigenvalues.sum()
    return total if total == 0 else torch.special.entr(eigenvalues / total).sum().exp()


def alignment(pairs: Tensor) -> Tensor:
    """‖f(x) − f(y)‖² `(B,)` of L2-normalised positive pairs `(B, 2, F)` (Wang & Isola 2020, §4.1.1, α = 2)."""
    x, y = F.normalize(pairs.double(), dim=-1).unbind(1)
    return (x - y).square().sum(-1)


def uniformity(products: Tensor) -> Tensor:
    """log mean exp(−2‖f(x) − f(y)‖²) over distinct pairs of L2-normalised features (Wang & Isola 2020, §4.1.2, t = 2),
    from their inner products `(N, N)` before normalisation."""
    length = products.diagonal().sqrt().clamp(min=1e-12)
    cosine = products / length[:, None] / length
    own = cosine.diagonal()  # 1, or 0 of a vector without direction
    distance = (own[:, None] + own - 2 * cosine).clamp(min=0)
    pairs = distance[torch.ones_like(distance, dtype=torch.bool).triu(1)]
    return (-2 * pairs).logsumexp(0) - math.log(len(pairs))


@torch.no_grad()
@full_float32()
def posterior(encode: Representation, split) -> tuple[Tensor, Tensor]:
    """KL(q(z|x) ‖ p(z)) in nats and σ, each `(D,)` per latent, averaged over the clean images of `split`."""
    model: Any = encode.model  # an autoencoder
    zero: Any = 0.0  # a Tensor, once something is added
    kl, sigma = zero, zero
    for images in split.batches(encode.batch_size):
        code = model.encode(encode.normalized(images))
        per_latent = kl_to_prior(code.mu[..., None], code.sigma[..., None])  # it sums over its last dimension
        kl, sigma = kl + per_latent.cpu().double().sum(0), sigma + code.sigma.cpu().double().sum(0)
    return kl / len(split), sigma / len(split)


class Geometry:
    """RankMe, effective rank, alignment and uniformity of up to `images` images; of μ, also active units, KL and σ.

    Alignment is between two views of each image, the rest of clean images.
    """

    needs_labels = False

    def __init__(self, images: int = 2000, seed: int = 0):
        if images < 2:
            raise UserError(f"probe.geometry: images must be 2 or more, not {images}")
        self.images, self.seed = images, seed

    def missing(self, encode: Representation) -> str | None:
        """Why there is nothing to measure."""
        n = len(encode.dataset["pretrain_val"])
        return None if n >= 2 else f"it takes 2 images or more, and pretrain_val has {n}"

    def run(self, encode: Representation, dataset: Dataset) -> list[dict | Picture]:
        """One record per metric, and a picture of the spectrum."""
        split = sample(dataset["pretrain_val"], self.images)
        features, _ = encode.of(split, f"{encode.name} of pretrain_val images")
        products, dims = inner_products(features), features.shape[1]
        spectrum = singular_values(products, dims)
        about_mean = singular_values(centred(products), min(dims, len(split) - 1))
        pairs = torch.cat([alignment(pairs) for pairs in view_features(encode, split, 2, self.seed)])
        measured = {
            "rankme": (rankme(spectrum), f"uncentred, ε={EPSILON:g}, at most {len(spectrum)}"),
            "effective_rank": (effective_rank(about_mean), f"of the covariance, at most {len(about_mean)}"),
            "alignment": (pairs.mean(), f"α=2, 2 views by {encode.views}, seed {self.seed}"),
            "uniformity": (uniformity(products), "t=2, distinct pairs"),
        }
        spectra = {
            f"uncentred: RankMe {measured['rankme'][0]:.1f}": spectrum,
            f"centred: effective rank {measured['effective_rank'][0]:.1f}": about_mean,
        }
        latents: dict[str, tuple[Tensor, float | None]] = {}
        if encode.name == "mu":
            found, latents = self._latents(encode, split, features)
            measured |= found
        title = f"Geometry of {encode.name}, {dataset.name}, {len(split)} images"
        where = count(dims, "dimension", "d")
        records = [
            record("geometry", encode.name, "pretrain_val", value, len(split), f"{where}, float32; {how}", metric)
            for metric, (value, how) in measured.items()
        ]
        return [*records, Picture(f"geometry_{encode.name}", geometry_figure(spectra, latents, title))]

    def _latents(self, encode: Representation, split, mu: Tensor) -> tuple[dict, dict]:
        """Metrics with protocols, and what is drawn per latent."""
        active = active_units(mu)
        measured = {"active_units": (active, "latents with a variance of μ above 0.01")}
        latents: dict[str, tuple[Tensor, float | None]] = {
            f"variance of μ: {active:.0f} of {mu.shape[1]} above 0.01": (mu.var(0, correction=0).cpu(), 0.01)
        }
        if getattr(encode.model, "variational", False):
            kl, sigma = posterior(encode, split)
            measured |= {
                "kl_mean": (kl.mean(), "KL(q(z|x) ‖ p(z)) per latent in nats, mean over images and latents"),
                "kl_max": (kl.max(), "KL(q(z|x) ‖ p(z)) per latent in nats, mean over images, largest latent"),
                "sigma_mean": (sigma.mean(), "σ of q(z|x), mean over images and latents"),
            }
            latents[f"KL in nats: mean {kl.mean():.2g}, largest {kl.max():.2g}"] = (kl, None)
        return measured, latents
