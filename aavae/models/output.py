"""`Output`, what an autoencoder makes of a batch, and `full`, which leaves half precision."""

from typing import NamedTuple

import torch
from torch import Tensor

STD_FLOOR = 1e-6  # added to every standard deviation, as in the released code (docs/reproduction.md)


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
        assert self.log_var is not None  # of a variational encoder
        return (self.log_var / 2).exp() + STD_FLOOR
