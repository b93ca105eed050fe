"""SparK (Tian et al. 2023): masked images for convolutional networks, which see nothing through the gaps."""

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.batchnorm import pooled
from aavae.models.masking import Masked, patches
from aavae.models.output import full
from aavae.runtime.processes import Processes


class Visible:
    """Which cells of a grid are seen, `(B, 1, rows, rows)` of 0 and 1, and so which positions of a larger or smaller
    map; a position of a smaller one where any of its cells is."""

    cells: Tensor

    def like(self, x: Tensor) -> Tensor:
        """For maps `(B, C, h, w)`: `(B, 1, h, w)` of their type."""
        cells, size = self.cells.to(x), x.shape[-1]
        rows = cells.shape[-1]
        return F.interpolate(cells, size=(size, size)) if size >= rows else F.max_pool2d(cells, rows // size)


class Submanifold(nn.Module):
    """A convolution or pooling layer whose output is 0 where nothing is seen."""

    def __init__(self, layer: nn.Module, visible: Visible):
        super().__init__()
        self.layer, self.visible = layer, visible

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * self.visible.like(y)


class VisibleBatchNorm(nn.Module):
    """BatchNorm whose statistics are those of the visible positions, and whose output is 0 elsewhere."""

    def __init__(self, layer: nn.BatchNorm2d, visible: Visible):
        super().__init__()
        self.layer, self.visible = layer, visible

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, C, h, w)` → maps of the same shape, 0 where nothing is visible."""
        layer: Any = self.layer
        seen = self.visible.like(x)
        if not layer.training:
            return layer(x) * seen
        x, seen = full(x), full(seen)
        n = seen.sum()
        mean = (x * seen).sum((0, 2, 3)) / n
        variance = ((x - mean[:, None, None]).square() * seen).sum((0, 2, 3)) / n
        mean, variance, n = pooled(mean, variance, n, getattr(layer, "processes", Processes()))
        centred = x - mean[:, None, None]
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            layer.running_mean.lerp_(mean.to(layer.running_mean), layer.momentum)
            layer.running_var.lerp_((variance * n / (n - 1)).to(layer.running_var), layer.momentum)
        scale = (variance + layer.eps).rsqrt() * layer.weight
        return (centred * scale[:, None, None] + layer.bias[:, None, None]) * seen


class Up(nn.Module):
    """Maps `(B, C, h, w)` → `(B, C/2, 2h, 2w)`: a transposed convolution and two 3×3 ones."""

    def __init__(self, channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 4, 2, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up(x))


class SparK(Masked):
    """Encoder: a ResNet with `maps`; a U-Net decoder that gets those smaller than the image, gaps filled by tokens.

    Hidden cells are 0 in the image, and again after every layer, so that nothing is known of them; BatchNorm sees the
    visible positions only. `patch_size` is in pixels, by default a cell of the last map; where it is less, a position
    of a coarser map is visible if any part of it is. Raises UserError for other encoders, and for sizes that do not
    fit.
    """

    repeats = False  # its layers are masked ones while it learns

    def __init__(
        self,
        encoder: nn.Module,
        image_size: int,
        patch_size: int | None = None,
        mask_ratio: float = 0.6,
        decoder_dim: int = 768,
        norm_pixels: bool = True,
    ):
        super().__init__()
        if not hasattr(encoder, "maps") or not hasattr(encoder, "layer4"):
            raise UserError("spark reconstructs from the maps of an encoder's stages, which only our ResNets give")
        if not all(isinstance(m, nn.BatchNorm2d) for m in encoder.modules() if "Norm" in type(m).__name__):
            raise UserError("spark knows BatchNorm only; choose another encoder")
        shapes = _shapes(encoder, image_size)  # (channels, size, stage), the coarsest first
        self.stages = [stage for *_, stage in shapes]
        stride = image_size // shapes[0][1]
        depth = round(math.log2(stride))
        sizes = [size for _, size, _ in shapes]
        if 2**depth != stride or image_size % stride:
            raise UserError(f"spark needs images whose size is a multiple of {2**depth}, not {image_size}")
        if any(large != 2 * small for small, large in itertools.pairwise(sizes)):
            raise UserError(f"spark needs maps each of which is half the one before, not of {sizes[::-1]} pixels")
        if not isinstance(decoder_dim, int) or decoder_dim < 1 or decoder_dim % 2**depth:
            raise UserError(f"model.decoder_dim must be a multiple of {2**depth}, not {decoder_dim}")
        self.divide(image_size, stride if patch_size is None else patch_size, mask_ratio, round)
        if any(max(size, rows) % min(size, rows) for size in sizes for rows in [image_size // self.patch_size]):
            raise UserError(
                f"model.patch_size={self.patch_size} must divide, or be divided by, the strides of the encoder"
            )
        self.norm_pixels, self.encoder, self.visible = norm_pixels, encoder, Visible()
        self._twins: list[tuple[nn.Module, Any]] = []  # no part of it: the layers are the encoder's
        widths = [decoder_dim // 2**i for i in range(depth + 1)]
        used = [channels for channels, *_ in shapes][:depth]
        self.norms = nn.ModuleList(VisibleBatchNorm(nn.BatchNorm2d(c), self.visible) for c in used)
        self.tokens = nn.ParameterList(torch.zeros(c) for c in used)
        self.projections = nn.ModuleList(
            nn.Conv2d(c, width, 3, padding=1) if i else nn.Identity() if c == width else nn.Conv2d(c, width, 1)
            for i, (c, width) in enumerate(zip(used, widths, strict=False))
        )
        self.decoder = nn.ModuleList(Up(width) for width in widths[:-1])
        self.last = nn.Conv2d(widths[-1], 3, 1)
        self._initialise()

    def _initialise(self) -> None:
        for part in (self.projections, self.decoder, self.last):
            for m in part.modules():
                if isinstance(m, nn.Conv2d):
                    nn.init.trunc_normal_(m.weight, std=0.02)
                elif isinstance(m, nn.ConvTranspose2d):
                    nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
                if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) and m.bias is not None:
                    nn.init.zeros_(m.bias)
        for token in self.tokens:
            nn.init.trunc_normal_(token, std=0.02)

    def predict(self, view: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See `Masked.predict`."""
        rows = view.shape[-1] // self.patch_size
        cells = torch.zeros(len(view), rows * rows, device=view.device).scatter(1, seen, 1.0)
        self.visible.cells = cells.view(-1, 1, rows, rows)
        every = self._masked().maps(view * self.visible.like(view))
        maps = [every[stage] for stage in self.stages]
        x: Any = 0
        for i, up in enumerate(self.decoder):
            if i < len(self.norms):
                level = self.norms[i](maps[i])
                here = self.visible.like(level)
                token = self.tokens[i].to(level)[:, None, None]
                x = x + self.projections[i](level * here + token * (1 - here))
            x = up(x)
        h = maps[0].sum((2, 3)) / self.visible.like(maps[0]).sum((2, 3))
        return patches(self.last(x), self.patch_size), h

    def _masked(self) -> Any:
        """The encoder with the same layers, each of which leaves gaps where nothing is seen."""
        if not self._twins or self._twins[0][0] is not self.encoder:
            self._twins = [(self.encoder, _twin(self.encoder, self.visible))]
        return self._twins[0][1]


def _twin(encoder: nn.Module, visible: Visible) -> Any:
    """The encoder with the same layers, each of which leaves gaps where nothing is seen."""
    layers: dict[int, nn.Module] = {}
    for m in encoder.modules():
        if isinstance(m, nn.BatchNorm2d):
            layers[id(m)] = VisibleBatchNorm(m, visible)
        elif isinstance(m, (nn.Conv2d, nn.MaxPool2d)):
            layers[id(m)] = Submanifold(m, visible)
    return copy.deepcopy(encoder, layers)  # what is in the second argument is taken as it is


def _shapes(encoder: nn.Module, image_size: int) -> list[tuple[int, int, int]]:
    """Channels, size and index of the maps, the coarsest first; of those with one size the deepest."""
    twin: Any = copy.deepcopy(encoder).to("meta").eval()
    with torch.no_grad():
        maps = twin.maps(torch.empty(1, 3, image_size, image_size, device="meta"))
    by_size = {x.shape[-1]: (x.shape[1], x.shape[-1], stage) for stage, x in enumerate(maps)}
    return [by_size[size] for size in sorted(by_size)]
