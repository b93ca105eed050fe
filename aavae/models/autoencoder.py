"""AE, VAE, AAAE, AAVAE: encoder → projection → (μ, log σ²) → z → decoder, and one step of learning."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.models import Features, Model, diagnostics
from aavae.models.output import Output, full

SAMPLES = ("reparam", "mean")


class Projection(nn.Module):
    """h `(B, H)` → (μ, log σ²), each `(B, D)`, by Linear–BatchNorm–ReLU and linear heads without bias
    (docs/reproduction.md).

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


class AutoEncoder(Model):
    """The (variational) autoencoder; it owns every learned number, the likelihood's `log_scale` too.

    `loss` maps its output and the clean images to scalars, and is needed for learning only.

    `sample=mean` sets z = μ, the control without latent noise. Raises UserError for a latent dimension below 1, an
    unknown `sample`, or a `log_scale` that is not finite.
    """

    judged_by = "x_hat"
    log_scale: nn.Parameter | None
    loss: Any  # called with output and clean images; where z is drawn it has `log_px_given_z` too

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        variational: bool = True,
        log_scale: float = 0.0,
        learn_scale: bool = False,
        sample: str = "reparam",
        loss: Callable[[Output, Tensor], dict[str, Tensor]] | None = None,
    ):
        super().__init__()
        if latent_dim < 1:
            raise UserError(f"latent_dim must be 1 or more, not {latent_dim}")
        if sample not in SAMPLES:
            raise UserError(f"loss.sample must be one of {', '.join(SAMPLES)}, not {sample!r}")
        if not math.isfinite(log_scale):
            raise UserError(f"loss.log_scale must be a finite number, not {log_scale}")
        self.latent_dim, self.sample, self.loss = latent_dim, sample, loss
        self.noise_dim = latent_dim if variational else 0
        if variational:
            self.log_scale = nn.Parameter(torch.tensor([float(log_scale)]), requires_grad=learn_scale)
        else:
            self.log_scale = None
        self.encoder = encoder
        width: Any = encoder.output_dim
        self.projection = Projection(width, latent_dim, variational)
        self.decoder = decoder

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Output, dict[str, Tensor]]:
        """The paper's step (Eq. 3): the view goes in, the clean image is to come out."""
        output = self(views[0], noise)  # encode the augmented view,
        return output, self.loss(output, x)  # reconstruct the clean image

    @property
    def variational(self) -> bool:
        """Whether the encoder gives a distribution over z."""
        return self.projection.logvar is not None

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
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

    # ---- Looking at it ----------------------------------------------------------------------------------------------

    def about(self) -> str:
        """The size of the latent."""
        return f"latent {self.latent_dim}"

    def clean(self, x: Tensor) -> Output:
        """Encoder and projection, both of which have BatchNorm."""
        return self.encode(x)

    def features(self) -> dict[str, Features]:
        """The latent mean, and a drawn latent where there is one."""

        def drawn(x: Tensor, generator: torch.Generator) -> Tensor:
            code = self.encode(x)
            return code.mu + torch.randn(code.mu.shape, generator=generator).to(x.device) * code.sigma

        mean = {"mu": lambda x, generator: self.encode(x).mu}
        return mean | ({"z": drawn} if self.stochastic else {})

    def measure(
        self, output: Output, x: Tensor, clean: Output | None, std: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Latent statistics, densities where z is drawn, and the agreement with the codes of the clean images."""
        return diagnostics.of_step(self, output, x, clean, std, generator)

    def validate(
        self, views: Tensor, x: Tensor, std: Tensor, samples: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses and densities over `samples` latent samples, and μ of the clean images."""
        return diagnostics.of_held_out(self, views[0], x, std, samples, generator)

    def picture(self, view: Tensor) -> dict[str, Tensor]:
        """What the decoder makes of each view's μ."""
        return {"reconstruction": self.decoder(self.encode(view).mu)}
