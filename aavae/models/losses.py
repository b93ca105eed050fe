"""Gaussian likelihood, KL divergence, and the objectives that weigh them.

Likelihood and KL are computed in float32 (or wider), summed over pixels and latents, averaged over the batch. An
objective is called with the model's output and the clean images; it returns a dict of scalars, `loss` among them.
"""

import math

import torch
from torch import Tensor

from aavae.errors import UserError
from aavae.models.output import STD_FLOOR, Output, full

LOG_2PI = math.log(2 * math.pi)


def log_normal(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Elementwise log N(x; mean, σ²), in nats."""
    return -0.5 * ((x - mean) / sigma) ** 2 - sigma.log() - 0.5 * LOG_2PI


def log_likelihood(x: Tensor, x_hat: Tensor, sigma: Tensor) -> Tensor:
    """log p(x|z) = log N(x; x̂, σ²) summed over `(C, H, W)`, in nats: `(B,)`, or `(K, B)` for K samples."""
    return log_normal(full(x), full(x_hat), sigma).sum((-3, -2, -1))


def kl_to_prior(mu: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) summed over latents, in nats: `(B,)` (Kingma & Welling 2014, appendix B)."""
    return (0.5 * (sigma**2 + mu**2 - 1) - sigma.log()).sum(-1)


def kl_between(mu: Tensor, sigma: Tensor, mu_2: Tensor, sigma_2: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(μ₂, σ₂²)) summed over latents, in nats: `(B,)`."""
    return ((sigma_2 / sigma).log() + (sigma**2 + (mu - mu_2) ** 2) / (2 * sigma_2**2) - 0.5).sum(-1)


def log_posterior(noise: Tensor, sigma: Tensor) -> Tensor:
    """log q(z|x) from the noise that made z = μ + σ·noise, summed over latents, in nats.

    From z itself it would lose z − μ to rounding once σ nears its floor (docs/reproduction.md).
    """
    return (-0.5 * noise**2 - sigma.log() - 0.5 * LOG_2PI).sum(-1)


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, I) summed over latents, in nats."""
    return (-0.5 * z**2 - 0.5 * LOG_2PI).sum(-1)


def log_importance_weight(output: Output, log_px_given_z: Tensor) -> Tensor:
    """log p(x|z) + log p(z) − log q(z|view): the log-weight of each sample in the importance-weighted bound."""
    assert output.z is not None and output.noise is not None  # it is decoded
    return log_px_given_z + log_prior(output.z) - log_posterior(output.noise, output.sigma)


def bits_per_dim(log_px: Tensor, dims: int) -> Tensor:
    """−log p(x) / (D ln 2) for log p(x) in nats and D dimensions."""
    return -log_px / (dims * math.log(2))


def target_of(output: Output, x: Tensor, target: str) -> Tensor:
    """What the decoder has to reconstruct: the clean images `x` (`original`), or the encoder's input (`view`)."""
    return x if target == "original" else output.view


class NegativeELBO:
    """−E log p(x|z) + β·KL(q(z|view) ‖ p(z)) with a Gaussian likelihood (paper Eq. 1–3; β = 0 is AAVAE).

    `target=original` reconstructs the clean image, `view` the encoder's input. `kl=mc` estimates the KL from the
    sample. `scale_param` says whether log_scale is the log-variance or the log of the standard deviation. Raises
    UserError for a value out of range.
    """

    variational = True

    def __init__(self, beta: float, scale_param: str = "logvar", kl: str = "analytic", target: str = "original"):
        if not beta >= 0 or math.isinf(beta):
            raise UserError(f"loss.beta must be 0 or more, not {beta}")
        for name, value, options in (
            ("scale_param", scale_param, ("logvar", "logstd")),
            ("kl", kl, ("analytic", "mc")),
            ("target", target, ("original", "view")),
        ):
            if value not in options:
                raise UserError(f"loss.{name} must be {' or '.join(options)}, not {value!r}")
        self.beta, self.scale_param, self.kl, self.target = beta, scale_param, kl, target
        self._weighed = beta > 0  # a bool: a float that differs between models would be a symbol to torch.compile

    def scale(self, output: Output) -> Tensor:
        """Standard deviation of the likelihood, `(1,)`, in normalised pixel units."""
        assert output.log_scale is not None  # of a variational autoencoder
        log_scale = full(output.log_scale)
        return (log_scale / 2 if self.scale_param == "logvar" else log_scale).exp() + STD_FLOOR

    def log_px_given_z(self, output: Output, x: Tensor) -> Tensor:
        """log p(x|z) of the target, in nats: `(B,)` or `(K, B)`."""
        assert output.x_hat is not None  # it is decoded
        return log_likelihood(target_of(output, x, self.target), output.x_hat, self.scale(output))

    def divergence(self, output: Output) -> Tensor:
        """KL(q(z|view) ‖ p(z)), analytic or from the sample: `(B,)` or `(K, B)`."""
        if self.kl == "analytic":
            return kl_to_prior(output.mu, output.sigma)
        assert output.z is not None and output.noise is not None
        return log_posterior(output.noise, output.sigma) - log_prior(output.z)

    def __call__(self, output: Output, x: Tensor) -> dict[str, Tensor]:
        nll = -self.log_px_given_z(output, x).mean()
        # With β = 0 the term is skipped, not multiplied: 0·∞ would be NaN. It is still measured.
        with torch.set_grad_enabled(self._weighed and torch.is_grad_enabled()):
            kl = self.divergence(output).mean()
        loss = nll + self.beta * kl if self._weighed else nll
        return {"loss": loss, "nll": nll.detach(), "kl": kl.detach(), "neg_elbo": (nll + kl).detach()}


class ReconstructionLoss:
    """The autoencoder's squared error: the mean over all dimensions, or half the sum per image (`half_sum`).

    `target=view` is what the released code calls AAAE, `original` is a denoising autoencoder
    (docs/reproduction.md). Raises UserError for an unknown target or reduction.
    """

    variational = False

    def __init__(self, target: str = "original", reduction: str = "mean"):
        if target not in ("original", "view"):
            raise UserError(f"loss.target must be original or view, not {target!r}")
        if reduction not in ("mean", "half_sum"):
            raise UserError(f"loss.reduction must be mean or half_sum, not {reduction!r}")
        self.target, self.reduction = target, reduction

    def __call__(self, output: Output, x: Tensor) -> dict[str, Tensor]:
        assert output.x_hat is not None  # it is decoded
        squared = (full(output.x_hat) - full(target_of(output, x, self.target))) ** 2
        loss = squared.mean() if self.reduction == "mean" else 0.5 * squared.sum((1, 2, 3)).mean()
        return {"loss": loss}
