"""ResNets built with timm (v1.5: the stride sits on the 3×3), with the stems of the released code (spec §1.1)."""

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from aavae.errors import UserError

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
STEMS = ("cifar", "stl", "imagenet")


def resnet(block: str, layers: list[int], channels: int = 64, stem: str = "cifar") -> ResNet:
    """A ResNet without its classifier, `(B, 3, H, W)` → `(B, output_dim)`, average-pooled.

    `channels` is the width of stem and first stage: 64, 128 (w2), 256 (w4) or 16 (tiny); stages double it. Stems:
    `cifar` (3×3, stride 1), `stl` (7×7, stride 2), `imagenet` (7×7, stride 2, max-pool). State-dict keys are timm's and
    torchvision's. Raises UserError for an unknown block or stem.
    """
    if block not in BLOCKS:
        raise UserError(f"encoder.block must be one of {', '.join(BLOCKS)}, not {block!r}")
    if stem not in STEMS:
        raise UserError(f"encoder.stem must be auto or one of {', '.join(STEMS)}, not {stem!r}")
    if len(layers) != 4 or not all(isinstance(n, int) and n > 0 for n in (*layers, channels)):
        raise UserError(
            f"encoder.layers must be four positive depths, encoder.channels a positive width; not {layers}, {channels}"
        )
    widths = tuple(channels * 2**i for i in range(4))
    net = ResNet(BLOCKS[block], tuple(layers), num_classes=0, channels=widths, zero_init_last=False)
    kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
    net.conv1 = nn.Conv2d(3, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    if stem != "imagenet":
        net.maxpool = nn.Identity()
    if channels != 64:
        _widen_stem(net, channels)
    # After the surgery, so that every layer gets it: kaiming_normal(fan_out, relu), BatchNorm 1 and 0, no zero-init.
    net.init_weights(zero_init_last=False)
    net.output_dim = net.num_features
    return net


def _widen_stem(net: ResNet, channels: int) -> None:
    # timm's constructor fixes the stem at 64 channels; everything that touches it is rebuilt.
    net.bn1 = nn.BatchNorm2d(channels)
    first = net.layer1[0]
    old = first.conv1
    first.conv1 = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, stride=old.stride, padding=old.padding, bias=False
    )
    first.downsample = None
    if first.expansion > 1:
        out_channels = channels * first.expansion
        first.downsample = nn.Sequential(nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
