"""A decoder of few, large products: 3×3 convolutions at low resolution, enlarged by pixel shuffle (Shi et al. 2016)."""

from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.conv import Conv2d
from aavae.models.output import full
from aavae.runtime.device import without_autocast


class ShuffleDecoder(nn.Module):
    """Latent `(B, D)` → image mean `(B, 3, image_size, image_size)` in normalised units; no output activation.

    A linear layer makes `channels[0]` maps of image_size / 2ⁿ pixels, n the number of `channels`; each 3×3 convolution
    then doubles their size and makes the channels that follow, the last one the image. `hidden_dim` is not used. Raises
    UserError for an image size that is no multiple of 2ⁿ.
    """

    def __init__(self, latent_dim: int, hidden_dim: int, image_size: int, channels: list[int]):
        super().__init__()
        if not channels or not all(isinstance(n, int) and n > 0 for n in channels):
            raise UserError(f"decoder.channels must be widths of 1 or more, not {channels}")
        times = 2 ** len(channels)
        if image_size < times or image_size % times:
            raise UserError(
                f"a decoder with {len(channels)} channels makes images whose size is a multiple of {times}, not "
                f"{image_size}; choose dataset.image_size or decoder.channels accordingly"
            )
        self.first, self.size = channels[0], image_size // times
        self.linear = nn.Linear(latent_dim, self.first * self.size**2)
        widths = [*channels[1:], 3]
        self.convs = nn.ModuleList(
            Conv2d(a, 4 * b, 3, padding=1) for a, b in zip(channels, widths, strict=True)
        )  # each pixel of `a` channels becomes 2×2 of `b`

    def forward(self, z: Tensor) -> Tensor:
        # In half precision the rounding of z would drown its noise once |μ| is some hundred times σ.
        with without_autocast(z.device):
            x = self.linear(full(z))
        x = x.view(len(x), self.first, self.size, self.size)
        for conv in self.convs:
            x = F.pixel_shuffle(conv(F.relu(x)), 2)
        return x  # (B, 3, H, W)
