"""What is learned: `Model`, on which all methods agree; encoders, decoders, methods and their losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aavae.runtime.processes import Processes

Features = Callable[[Tensor, torch.Generator], Tensor]


class Model(nn.Module):
    """An encoder, what only training needs beside it, and one step of learning over both.

    A subclass sets `encoder` and defines `learn`; everything else has a default. Its constructor takes the encoder
    first, then the settings of its YAML.
    """

    encoder: nn.Module  # images (B, 3, H, W) → h (B, output_dim): what probes, exports and baselines ask for
    architecture: dict  # the plain description it was built from; `models.assemble` sets it
    mean: tuple[float, ...]  # of the images' normalisation, as is `std`; `load_model` sets them
    std: tuple[float, ...]
    start: str | None = None  # what the encoder started from; None: random weights
    processes = Processes()  # those that train together; the trainer sets it
    total_steps = 0  # of the whole training; `begin` sets it
    n_views = 1  # of each image in a step
    noise_dim = 0  # standard normal numbers per image, drawn outside the compiled step
    whole = True  # whether a step sees whole images, with whose statistics those of a clean pass may be mixed
    repeats = True  # whether a block of it, computed again in the backward pass, computes the same
    per_image = True  # whether the loss is a mean over images, so that a batch may be computed in parts
    steady = True  # whether the parameters that get gradients are the same ones in every step
    extendable = True  # whether a step is the same one whatever `total_steps` is
    stochastic = False  # whether `validate` draws several latent samples an image
    judged_by = "h"  # the feature that a validation loss is filed under in `results.json`

    def forward(self, x: Tensor) -> Any:
        """The features h `(B, output_dim)` of images `(B, 3, H, W)`, unless a subclass has more to say."""
        return self.encoder(x)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[object, dict[str, Tensor]]:
        """One step on views `(V, B, 3, H, W)` of clean images `x` `(B, 3, H, W)` and noise `(B, noise_dim)`.

        Returns what was computed (for `measure`), and scalars to log, `loss` among them.
        """
        raise NotImplementedError

    def begin(self, total_steps: int, batch_size: int) -> None:
        """Called before the first step, with the steps of the whole training and the batch of all processes."""
        self.total_steps = total_steps

    def after_step(self, step: int) -> None:
        """Called after optimizer step `step` of `total_steps`; a momentum encoder moves here. Its tensors belong to the
        state dict."""

    def groups(self) -> list[tuple[nn.Module, dict]]:
        """Parts that are optimised apart, and how: `scale`, a factor for the learning rate (by default 1), and
        `scheduled`; False keeps it constant."""
        return []

    # ---- Looking at it ----------------------------------------------------------------------------------------------

    def about(self) -> str:
        """What the banner says beside the number of parameters."""
        return ""

    def features(self) -> dict[str, Features]:
        """Representations for probes beside h: name → function of images `(B, 3, H, W)` and a generator."""
        return {}

    def clean(self, x: Tensor) -> object:
        """What the clean pass and the recalibration of BatchNorm send clean images through."""
        return self.encoder(x)

    def measure(self, output: Any, x: Tensor, clean: Any, std: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars to log of a step's `output` of `learn`; `clean` is that of `clean(x)`, if there was a clean pass, and
        `std` `(3,)` that of the images' normalisation."""
        return {}

    def validate(
        self, views: Tensor, x: Tensor, std: Tensor, samples: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Scalars of a held-out batch, in eval mode, `loss` among them; and the latent codes `(B, D)` of the clean
        images, or None. `samples` is the number of latent samples an image, where there are any."""
        noise = torch.randn(len(x), self.noise_dim, generator=generator).to(x) if self.noise_dim else None
        return self.learn(views, x, noise)[1], None

    def picture(self, view: Tensor) -> dict[str, Tensor]:
        """Rows of images `(B, 3, H, W)`, in normalised units, to show below the originals and their views; none: no
        picture is drawn."""
        return {}
