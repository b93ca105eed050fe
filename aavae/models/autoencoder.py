"""The autoencoder: encoder → projection → (μ, log σ²) → z → decoder."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aavae.errors import UserError

STD_FLOOR = 1e-6  # added to every standard deviation, as in the released code (spec §1.4)
SAMPLES = ("reparam", "mean")


def full(t: Tensor) -> Tensor:
    """Half-precision tensors in float32, others as they are: exponentials and sums are not for half precision."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


class Output(NamedTuple):
    """What the model makes of a batch of B images; K is the number of latent samples, where there are several."""

    view: Tensor  # (B, C, H, W), the encoder's input
    h: Tensor  # (B, output_dim), the representation that is evaluated
    mu: Tensor  # (B, D)
    log_var: Tensor | None  # (B, D), None for an autoencoder
    noise: Tensor | None  # (B, D) or (K, B, D), standard normal
    z: Tensor | None  # like noise
    x_hat: Tensor | None  # (B, C, H, W) or (K, B, C, H, W), normalised units
    log_scale: Tensor | None  # (1,), the log-width of the likelihood

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of q(z | view), `(B, D)`."""
        return (self.log_var / 2).exp() + STD_FLOOR


class Projection(nn.Module):
    """h `(B, H)` → (μ, log σ²), each `(B, D)`, by Linear–BatchNorm–ReLU and linear heads without bias (spec §1.2).

    Without `variational` there is no log σ² head and None in its place.
    """

    def __init__(self, input_dim: int, latent_dim: int, variational: bool):
        super().__init__()
        self.first_layer = nn.Sequential(nn.Linear(input_dim, input_dim), nn.BatchNorm1d(input_dim), nn.ReLU())
        self.mu = nn.Linear(input_dim, latent_dim, bias=False)
        self.logvar = nn.Linear(input_dim, latent_dim, bias=False) if variational else None

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = self.first_layer(h)
        return self.mu(hidden), self.logvar(hidden) if self.logvar is not None else None


class AutoEncoder(nn.Module):
    """The (variational) autoencoder; it owns every learned number, the likelihood's `log_scale` too.

    `sample=mean` sets z = μ, the control without latent noise. Raises UserError for a latent dimension below 1, an
    unknown `sample`, or a `log_scale` that is not finite.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        variational: bool = True,
        log_scale: float = 0.0,
        learn_scale: bool = False,
        sample: str = "reparam",
    ):
        super().__init__()
        if latent_dim < 1:
            raise UserError(f"latent_dim must be 1 or more, not {latent_dim}")
        if sample not in SAMPLES:
            raise UserError(f"loss.sample must be one of {', '.join(SAMPLES)}, not {sample!r}")
        if not math.isfinite(log_scale):
            raise UserError(f"loss.log_scale must be a finite number, not {log_scale}")
        self.latent_dim, self.sample = latent_dim, sample
        if variational:
            self.log_scale = nn.Parameter(torch.tensor([float(log_scale)]), requires_grad=learn_scale)
        else:
            self.log_scale = None
        self.encoder = encoder
        self.projection = Projection(encoder.output_dim, latent_dim, variational)
        self.decoder = decoder

    @property
    def variational(self) -> bool:
        """Whether the encoder gives a distribution over z."""
        return self.projection.logvar is not None

    @property
    def stochastic(self) -> bool:
        """Whether z is drawn, so that there is a density to estimate."""
        return self.variational and self.sample == "reparam"

    def encode(self, x: Tensor) -> Output:
        """Everything up to μ and log σ² for images `(B, C, H, W)`."""
        h = self.encoder(x)
        mu, log_var = self.projection(h)
        log_var = full(log_var) if self.variational else None
        return Output(x, h, full(mu), log_var, None, None, None, self.log_scale)

    def decode(self, encoded: Output, noise: Tensor | None) -> Output:
        """Complete an encoded batch: z = μ + σ·noise, and its image mean, for noise `(B, D)` or `(K, B, D)`."""
        if not self.variational:
            z = encoded.mu
        elif noise is None:
            return encoded
        elif self.sample == "mean":
            z = encoded.mu.expand_as(noise)
        else:
            z = encoded.mu + noise * encoded.sigma
        x_hat = self.decoder(z.reshape(-1, self.latent_dim))
        x_hat = x_hat.view(*z.shape[:-1], *x_hat.shape[1:])
        # Not `_replace`, which torch.compile of torch 2.11 cannot follow.
        return Output(encoded.view, encoded.h, encoded.mu, encoded.log_var, noise, z, x_hat, encoded.log_scale)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Output:
        return self.decode(self.encode(x), noise)
