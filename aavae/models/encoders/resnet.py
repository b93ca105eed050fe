"""ResNets (He et al. 2016; v1.5: the stride sits on the 3×3) with the released stems (docs/reproduction.md).

State-dict keys, initialisation and arithmetic are those of timm and torchvision; importing either takes seconds, which
every job of a sweep would pay.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.conv import Conv2d

BLOCKS = ("basic", "bottleneck")
STEMS = ("cifar", "stl", "imagenet", "half")
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),  # over channels and pixels
}


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """A residual block: 3×3, 3×3 with `planes` channels, or as `bottleneck` 1×1, 3×3, 1×1 with four times as many out.

    The first 3×3 has the stride, and so has the 1×1 convolution on the skip, which is there where the shape changes.
    """

    def __init__(self, in_channels: int, planes: int, stride: int, bottleneck: bool, norm: str = "batch"):
        super().__init__()
        normalise = NORMS[norm]
        self.bottleneck, out_channels = bottleneck, planes * (4 if bottleneck else 1)
        if bottleneck:
            self.conv1, self.bn1 = _conv(in_channels, planes, 1), normalise(planes)
            self.conv2, self.bn2 = _conv(planes, planes, 3, stride), normalise(planes)
            self.conv3, self.bn3 = _conv(planes, out_channels, 1), normalise(out_channels)
        else:
            self.conv1, self.bn1 = _conv(in_channels, planes, 3, stride), normalise(planes)
            self.conv2, self.bn2 = _conv(planes, planes, 3), normalise(planes)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(_conv(in_channels, out_channels, 1, stride), normalise(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Widen(nn.Module):
    """A 1×1 convolution to `out_channels`, normalised, behind the last block: more features for few products."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv, self.bn = _conv(in_channels, out_channels, 1), NORMS[norm](out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class ResNet(nn.Module):
    """Images `(B, 3, H, W)` → average-pooled features `(B, output_dim)`; the arguments are those of `resnet`.

    The features are `(channels, row, column)` in this order, for the `pool`² cells whose means they are.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        bottleneck: bool,
        layers: list[int],
        channels: int,
        stem: str,
        norm: str = "batch",
        output_dim: int | None = None,
        pool: int = 1,
    ):
        super().__init__()
        kernel, stride = {"cifar": (3, 1), "half": (3, 2)}.get(stem, (7, 2))
        self.conv1 = _conv(3, channels, kernel, stride)
        self.bn1 = NORMS[norm](channels)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        width = channels
        for i, depth in enumerate(layers):
            blocks, planes = [], channels * 2**i
            # Behind the half stem the last stage keeps its resolution, and ends with the maps of the cifar stem.
            stride = 1 if i == 0 or (stem == "half" and i == 3) else 2
            for j in range(depth):
                blocks.append(Block(width, planes, stride if j == 0 else 1, bottleneck, norm))
                width = planes * (4 if bottleneck else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        if output_dim:
            self.layer4.append(Widen(width, output_dim // pool**2, norm))
        self.pool, self.output_dim = pool, output_dim or width * pool**2
        for m in self.modules():  # no zero-init of the last BatchNorm of a block, as released
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> list[Tensor]:
        """The outputs `(B, C, h, w)` of the four stages, the first one first."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, output_dim / pool², h, w)
        if self.pool > 1:
            return F.adaptive_avg_pool2d(x, self.pool).flatten(1)
        # `adaptive_avg_pool2d` gives the same bits, but a gradient that is not channels_last: on a CPU the ReLU before
        # it then took a tenth of the whole step.
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


def resnet(
    block: str,
    layers: list[int],
    channels: int = 64,
    stem: str = "cifar",
    norm: str = "batch",
    output_dim: int | None = None,
    pool: int = 1,
) -> ResNet:
    """A ResNet without its classifier, `(B, 3, H, W)` → `(B, output_dim)`, average-pooled.

    `channels` is the width of stem and first stage: 64, 128 (w2), 256 (w4) or 16 (tiny); stages double it. Stems:
    `cifar` (3×3, stride 1), `stl` (7×7, stride 2), `imagenet` (7×7, stride 2, max-pool), `half` (3×3, stride 2; the
    last stage has stride 1). `norm` is batch or layer. The features are the means of the last maps over `pool`² cells;
    with `output_dim` a 1×1 convolution behind the last block makes as many features. Raises UserError for an unknown
    block, stem or norm, for widths below 1, and for an `output_dim` that is no multiple of `pool`².
    """
    if block not in BLOCKS:
        raise UserError(f"encoder.block must be one of {', '.join(BLOCKS)}, not {block!r}")
    if stem not in STEMS:
        raise UserError(f"encoder.stem must be auto or one of {', '.join(STEMS)}, not {stem!r}")
    if norm not in NORMS:
        raise UserError(f"encoder.norm must be one of {', '.join(NORMS)}, not {norm!r}")
    if len(layers) != 4 or not all(isinstance(n, int) and n > 0 for n in (*layers, channels)):
        raise UserError(
            f"encoder.layers must be four positive depths, encoder.channels a positive width; not {layers}, {channels}"
        )
    if output_dim is not None and output_dim < 1:
        raise UserError(f"encoder.output_dim must be a positive width or null, not {output_dim}")
    if pool < 1:
        raise UserError(f"encoder.pool must be 1 or more, not {pool}")
    if output_dim is not None and output_dim % pool**2:
        raise UserError(
            f"encoder.output_dim={output_dim} cannot be divided among the {pool**2} cells of encoder.pool={pool}"
        )
    return ResNet(block == "bottleneck", layers, channels, stem, norm, output_dim, pool)
