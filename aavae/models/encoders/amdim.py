"""The encoder of AMDIM (Bachman et al. 2019), without padding: a cell of a map sees a part of the image only."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError

# By image size: the blocks after the first convolution, as (width in multiples of the first, kernel, stride).
BLOCKS = {
    32: ((2, 4, 2), (4, 2, 2), (4, 3, 1), (4, 3, 1)),  # 30² → 14², 7², 5², 3²
    64: ((2, 4, 2), (4, 4, 2), (8, 2, 2), (8, 3, 1), (8, 3, 1)),  # 62² → 30², 14², 7², 5², 3²
}
SIZES = (7, 5)  # of the maps that are compared


class ResidualUnit(nn.Module):
    """conv k×k, ReLU, conv 1×1, which is zero at first; beside it the input, average-pooled, new channels zero."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, stride, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.kernel, self.stride, self.added = kernel, stride, out_channels - in_channels
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.avg_pool2d(x, self.kernel, self.stride) if self.kernel > 1 else x
        if self.added:
            skip = torch.cat([skip, skip.new_zeros(()).expand(len(x), self.added, *skip.shape[2:])], 1)
        return self.conv2(F.relu(self.conv1(x))) + skip


class AMDIMEncoder(nn.Module):
    """Images `(B, 3, H, W)` of 32 or 64 pixels → features `(B, output_dim)`; the arguments are those of
    `amdim_encoder`."""

    has_vector = True  # the last of `maps` is what AMDIM compares, not a map to be pooled

    def __init__(self, image_size: int, width: int, output_dim: int, depth: int):
        super().__init__()
        self.image_size, self.output_dim, channels = image_size, output_dim, width
        self.first = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), ResidualUnit(width, width))
        stages: list[nn.Module] = []
        for factor, kernel, stride in BLOCKS[image_size]:
            units = [ResidualUnit(channels, factor * width, kernel, stride)]
            channels = factor * width
            units += [ResidualUnit(channels, channels) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.last, self.norm = ResidualUnit(channels, output_dim, 3), nn.BatchNorm2d(output_dim)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps of 7² and 5² cells, and the vector of the image `(B, output_dim, 1, 1)`."""
        x, found = self.first(x), []
        for stage in self.stages:
            x = stage(x)
            if x.shape[-1] in SIZES:
                found.append(x)
        return [*found, self.norm(self.last(x))]

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].flatten(1)


def amdim_encoder(image_size: int, width: int = 320, output_dim: int = 1280, depth: int = 10) -> AMDIMEncoder:
    """AMDIM's encoder: 153.9 M parameters as published for CIFAR-10 (`width` 320, `output_dim` 1280, `depth` 10).

    Raises UserError for another image size than 32 and 64, for numbers below 1, and where `output_dim` is less than
    what goes into the last unit.
    """
    if image_size not in BLOCKS:
        raise UserError(f"amdim's encoder is for images of 32 or 64 pixels, not {image_size}")
    widest = BLOCKS[image_size][-1][0] * width
    if min(width, depth) < 1 or output_dim < widest:
        raise UserError(
            f"encoder.width and encoder.depth must be 1 or more, and encoder.output_dim {widest} or more, "
            f"not {width}, {depth} and {output_dim}"
        )
    return AMDIMEncoder(image_size, width, output_dim, depth)
