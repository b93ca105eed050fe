"""The inverted ResNet without BatchNorm of the paper, layer by layer as released (docs/reproduction.md)."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.conv import Conv2d
from aavae.models.output import full
from aavae.runtime.device import without_autocast

SKIP_ORDERS = ("commuted", "official")
# The resolution of the first stage is the image's divided by what the encoder's stem and stages divide it by.
STEM_DIVISOR = {"cifar": 8, "half": 8, "stl": 16, "imagenet": 32}


def _enlarge(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode="nearest")


class DecoderBlock(nn.Module):
    """A residual block that enlarges its input to `size`×`size` before its 3×3 convolution (nearest neighbour).

    `bottleneck` is 1×1, 3×3, 1×1 with four times `planes` channels out, else it is 3×3, 3×3 with `planes`.
    The first block of a stage has a 1×1 convolution on the skip, always.
    """

    def __init__(self, in_channels: int, planes: int, size: int, bottleneck: bool, first: bool, skip_order: str):
        super().__init__()
        self.size, self.bottleneck, self.skip_order = size, bottleneck, skip_order
        out_channels = planes * (4 if bottleneck else 1)
        if bottleneck:
            self.conv1 = Conv2d(in_channels, planes, 1)
            self.conv2 = Conv2d(planes, planes, 3, padding=1)
            self.conv3 = Conv2d(planes, out_channels, 1)
        else:
            self.conv1 = Conv2d(in_channels, planes, 3, padding=1)
            self.conv2 = Conv2d(planes, planes, 3, padding=1)
        # The released code keeps an upsampling module at index 0, hence the key `upsample.1`.
        self.upsample = nn.Sequential(nn.Identity(), Conv2d(in_channels, out_channels, 1)) if first else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bottleneck:
            y = _enlarge(F.relu(self.conv1(x)), self.size)
            y = self.conv3(F.relu(self.conv2(y)))
        else:
            y = self.conv2(F.relu(self.conv1(_enlarge(x, self.size))))
        return F.relu(y + self._skip(x))

    def _skip(self, x: Tensor) -> Tensor:
        if self.upsample is None:
            return x
        # A 1×1 convolution commutes with nearest-neighbour enlargement, and before it there are fewer pixels.
        if self.skip_order == "commuted":
            return _enlarge(self.upsample(x), self.size)
        return self.upsample(_enlarge(x, self.size))


class ResNetDecoder(nn.Module):
    """Latent `(B, D)` → image mean `(B, 3, image_size, image_size)` in normalised units; no output activation.

    `hidden_dim` is the encoder's `output_dim`; where 16 does not divide it, the second linear layer goes to the next
    multiple. `channels` is the width of the last stage (32; 64 for w2, 128 for w4), doubled in each stage before it.
    Raises UserError for an image size that the stages cannot reach with the encoder's stem.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        latent_dim: int,
        hidden_dim: int,
        image_size: int,
        stem: str,
        block: str,
        layers: list[int],
        channels: int = 32,
        head_channels: int = 64,
        skip_order: str = "commuted",
    ):
        super().__init__()
        if skip_order not in SKIP_ORDERS:
            raise UserError(f"decoder.skip_order must be one of {', '.join(SKIP_ORDERS)}, not {skip_order!r}")
        if block not in ("basic", "bottleneck"):
            raise UserError(f"decoder.block must be basic or bottleneck, not {block!r}")
        if stem not in STEM_DIVISOR:
            raise UserError(f"the decoder knows the stems {', '.join(STEM_DIVISOR)}, not {stem!r}")
        if len(layers) != 4 or not all(isinstance(n, int) and n > 0 for n in (*layers, channels, head_channels)):
            raise UserError(
                "decoder.layers must be four depths, decoder.channels and head_channels widths, of 1 or more; "
                f"not {layers}, {channels}, {head_channels}"
            )
        divisor = STEM_DIVISOR[stem]
        if image_size < divisor or image_size % divisor:
            raise UserError(
                f"the decoder makes images whose size is a multiple of {divisor} with the {stem} stem, "
                f"not {image_size}; choose dataset.image_size or encoder.stem accordingly"
            )
        self.image_size = image_size
        width = 16 * math.ceil(hidden_dim / 16)
        self.linear_projection1 = nn.Linear(latent_dim, hidden_dim)
        self.linear_projection2 = nn.Linear(hidden_dim, width)
        self.conv1 = Conv2d(width // 16, hidden_dim, 1)
        # Half the image where the encoder's 7×7 stem has stride 2, a quarter where a max-pool follows it.
        sizes = [image_size // divisor * 2**i for i in range(4)]
        in_channels, bottleneck = hidden_dim, block == "bottleneck"
        for i, (depth, size) in enumerate(zip(layers, sizes, strict=True)):
            planes = channels * 2 ** (3 - i)
            blocks = []
            for j in range(depth):
                blocks.append(DecoderBlock(in_channels, planes, size, bottleneck, j == 0, skip_order))
                in_channels = planes * (4 if bottleneck else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.last_size = sizes[-1] * (2 if stem == "imagenet" else 1)
        self.conv2 = Conv2d(in_channels, head_channels, 3, padding=1)
        self.final_conv = Conv2d(head_channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        # In half precision the rounding of z would drown its noise once |μ| is some hundred times σ.
        with without_autocast(z.device):
            x = F.relu(self.linear_projection1(full(z)))
        x = F.relu(self.linear_projection2(x))
        x = x.view(len(x), -1, 4, 4)
        x = F.relu(self.conv1(x))  # (B, hidden_dim, 4, 4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.relu(self.conv2(_enlarge(x, self.last_size)))
        return self.final_conv(_enlarge(x, self.image_size))  # (B, 3, H, W)
