"""Separable resampling, which crops and blurs share: each line of pixels is a weighted sum of lines."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Lines:
    """Rows or columns made of others: line y of image b is Σ_k weight[b, y, k] · line index[b, y, k].

    Both tensors are `(B, lines, k)`, or broadcast to it.
    """

    index: Tensor  # int32
    weight: Tensor

    def of(self, planes: Tensor, extent: int) -> "Lines":
        """The same among the lines of all planes, `(B, C, lines, k)`: channel c of image b is plane `planes[b, c]`, and
        each plane has `extent` lines."""
        index = self.index[:, None] + extent * planes[:, :, None, None]
        return Lines(index, self.weight[:, None].expand_as(index).contiguous())

    def __getitem__(self, images) -> "Lines":
        return Lines(self.index[images], self.weight[images])


def planes_of(images: Tensor) -> Tensor:
    """The numbers `(B, C)` of the planes of images `(B, C, H, W)`."""
    batch, channels = images.shape[:2]
    return torch.arange(batch * channels, device=images.device, dtype=torch.int32).view(batch, channels)


def separable(images: Tensor, rows: Lines, columns: Lines) -> Tensor:
    """Images of the given rows, and then of the given columns of those (both as `Lines.of` planes).

    They lie in memory column by column: turning them back would be a pass for nothing where colours come next.
    """
    mixed = _mix_rows(images, rows).mT
    mixed = mixed.contiguous()  # lets go of the first, whose memory is still in the cache
    return _mix_rows(mixed, columns).mT


def _mix_rows(images: Tensor, rows: Lines) -> Tensor:
    *shape, taps = rows.index.shape
    width = images.shape[-1]
    index, weight = rows.index.view(-1, taps), rows.weight.view(-1, taps)
    # Made for words, it sums rows from wherever they lie, and in float32 whatever autocast and TensorFloat-32 say.
    mixed = F.embedding_bag(index, images.reshape(-1, width), mode="sum", per_sample_weights=weight)
    return mixed.view(*shape, width)


def bilinear(start: Tensor, length: Tensor, size: int, mirrored: Tensor | None = None) -> Lines:
    """`size` lines that resample the lines [start, start+length), each `(B,)`; backwards where `mirrored`."""
    unit = 2 * size
    grid = torch.arange(1, unit, 2, device=start.device, dtype=torch.float32)
    if mirrored is not None:
        grid = torch.where(mirrored[:, None], unit - grid, grid)
    # Line i has its centre at (i + 1/2) · length / size - 1/2 in the crop. Counted in units of 1 / (2 · size) these are
    # whole numbers, which makes them exact.
    centre = (grid * length[:, None] - size).clamp(min=0)
    below = (centre / unit).floor()
    share = (centre - unit * below) / unit
    above = torch.minimum(below + 1, length[:, None] - 1)  # what lies outside the crop must not bleed in at its border
    index = torch.stack([below, above], 2) + start[:, None, None]
    return Lines(index.int(), torch.stack([1 - share, share], 2))


def gaussian(sigma: Tensor, kernel_size: int) -> Tensor:
    """Weights `(B, 1, kernel_size)` of Gaussians of `sigma` `(B,)` lines."""
    offsets = torch.arange(kernel_size, device=sigma.device) - kernel_size // 2
    weight = torch.exp(-0.5 * (offsets / sigma.float()[:, None, None]) ** 2)
    return weight / weight.sum(2, keepdim=True)


def neighbours(kernel_size: int, extent: int) -> Tensor:
    """The lines `(1, extent, kernel_size)` around each of `extent` lines, reflected at the borders; on the CPU."""
    offsets = torch.arange(kernel_size, dtype=torch.int32) - kernel_size // 2
    lines = torch.arange(extent, dtype=torch.int32)[:, None] + offsets
    return (extent - 1 - (extent - 1 - lines.abs()).abs())[None]
