"""What is logged beside the loss: densities in bits, and how the latent code behaves."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from aavae.models.losses import NegativeELBO, bits_per_dim, kl_between, log_importance_weight
from aavae.models.output import Output, full
from aavae.runtime.device import send
from aavae.runtime.randomness import uniform


class Coder(Protocol):
    """What is asked of an autoencoder here."""

    latent_dim: int
    loss: Any  # of output and clean images; a NegativeELBO where z is drawn

    @property
    def stochastic(self) -> bool:
        """Whether z is drawn."""

    def encode(self, x: Tensor) -> Output:
        """Up to μ and log σ²."""

    def decode(self, encoded: Output, noise: Tensor | None) -> Output:
        """From there on."""


@torch.no_grad()
def of_step(
    model: Coder,
    output: Output,
    x: Tensor,
    clean: Output | None,
    std: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Of a training batch: latent statistics, densities where z is drawn, and the agreement with the codes `clean` of
    its clean images `x`, where they are known."""
    metrics, noise = latent_statistics(output), None
    if model.stochastic:
        noise = send(torch.randn(output.mu.shape, generator=generator), x.device)
        offset = dequantisation(x, std, generator)
        weights, weights_8bit = log_weights(model.loss, output, x), log_weights(model.loss, *shifted(output, x, offset))
        metrics |= density(weights[None], weights_8bit[None], x[0].numel(), std)
    return metrics | (agreement(clean, output, noise) if clean is not None else {})


@torch.no_grad()
def of_held_out(
    model: Coder, view: Tensor, x: Tensor, std: Tensor, samples: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Of a held-out batch: losses and densities over `samples` latent samples, the agreement of the codes of views and
    clean images `x`, and μ `(B, D)` of those."""
    noise = send(torch.randn(samples + 1, len(x), model.latent_dim, generator=generator), x.device)
    offset = dequantisation(x, std, generator)
    terms: list[dict[str, Tensor]] = []
    weights, weights_8bit = [], []
    clean, code = model.encode(x), model.encode(view)
    # One sample at a time: K·B reconstructions at once would need K times the memory.
    for sample_noise in noise[: samples if model.stochastic else 1]:
        output = model.decode(code, sample_noise)
        terms.append(model.loss(output, x))
        if model.stochastic:
            weights.append(log_weights(model.loss, output, x))
            weights_8bit.append(log_weights(model.loss, *shifted(output, x, offset)))
    metrics = {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}
    if weights:
        metrics |= density(torch.stack(weights), torch.stack(weights_8bit), x[0].numel(), std)
    metrics |= agreement(clean, output, noise[-1] if model.stochastic else None) | latent_statistics(code)
    return metrics, clean.mu


def log_weights(objective: NegativeELBO, output: Output, x: Tensor) -> Tensor:
    """Log importance weights of each sample for the images `x`: `(B,)` or `(K, B)`, in nats."""
    return log_importance_weight(output, objective.log_px_given_z(output, x))


def dequantisation(x: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """What the 8-bit images behind `x` `(B, 3, H, W)` may have lost to rounding: uniform in [0, 1/255) / std."""
    return uniform(x.shape, generator, x.device) / 255 / std.view(1, 3, 1, 1)


def shifted(output: Output, x: Tensor, offset: Tensor) -> tuple[Output, Tensor]:
    """The same reconstruction held against targets moved by `offset`, the dequantisation noise."""
    return output._replace(view=output.view + offset), x + offset


def density(weights: Tensor, weights_8bit: Tensor, dims: int, std: Tensor) -> dict[str, Tensor]:
    """log p(x) by the importance-weighted bound (Burda et al. 2016, Eq. 8), in nats, and as bits per dimension.

    `weights` `(K, B)` are log-weights. `bpd_raw` is the released code's, on normalised pixels; `bpd_8bit` belongs to
    8-bit pixels: from `weights_8bit`, of dequantised targets, plus mean_c log2(255·std_c) for the change of units.
    """
    samples = math.log(len(weights))
    log_px_iw = (weights.logsumexp(0) - samples).mean()
    log_px_8bit = (weights_8bit.logsumexp(0) - samples).mean()
    return {
        "log_px_iw": log_px_iw,
        "bpd_raw": bits_per_dim(log_px_iw, dims),
        "bpd_8bit": bits_per_dim(log_px_8bit, dims) + (255 * std).log2().mean(),
    }


def latent_statistics(output: Output) -> dict[str, Tensor]:
    """Mean ‖μ‖₂, and for a variational encoder the mean σ and the signal-to-noise ratio mean |μ|/σ."""
    statistics = {"mu_norm": output.mu.norm(dim=-1).mean()}
    if output.log_var is not None:
        statistics["sigma_mean"] = output.sigma.mean()
        statistics["snr"] = (output.mu.abs() / output.sigma).mean()
    return statistics


def agreement(clean: Output, output: Output, noise: Tensor | None = None) -> dict[str, Tensor]:
    """How far the codes of clean image and view agree: mean cosines of z (`cos_sim`), μ and h, and the KL divergence
    KL(q(z|view) ‖ q(z|image)) in nats. `noise` draws the clean image's z; an autoencoder's z is μ."""
    z_clean, z = clean.mu, output.mu
    if noise is not None and output.z is not None:
        z_clean, z = clean.mu + noise * clean.sigma, output.z
    metrics = {
        "cos_sim": F.cosine_similarity(z_clean, z, dim=-1).mean(),
        "cos_sim_mu": F.cosine_similarity(clean.mu, output.mu, dim=-1).mean(),
        "cos_sim_h": F.cosine_similarity(full(clean.h), full(output.h), dim=-1).mean(),
    }
    if output.log_var is not None:
        metrics["kl_augmentation"] = kl_between(output.mu, output.sigma, clean.mu, clean.sigma).mean()
    return metrics


def active_units(mu: Tensor, threshold: float = 0.01) -> Tensor:
    """How many latents of μ `(N, D)` have a variance above the threshold (Burda et al. 2016, §5.2)."""
    return (mu.var(0, correction=0) > threshold).sum().to(torch.float32)


@torch.no_grad()
def cloud(z: Tensor) -> dict[str, Tensor]:
    """How unit vectors `(N, D)` fill their space. `spread`: the standard deviation of their components times √D, near 1
    for vectors in all directions, 0 for one vector. `rank`: in how many directions they vary, the participation ratio
    (Σλ)²/Σλ² of their covariance's eigenvalues, D for a ball and 1 for a line; 0 for one vector."""
    centred = z - z.mean(0)
    gram = centred @ centred.T if len(z) < z.shape[-1] else centred.T @ centred  # the same eigenvalues, fewer products
    rank = gram.trace().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)
    return {"spread": z.std(0).mean() * math.sqrt(z.shape[-1]), "rank": rank}
