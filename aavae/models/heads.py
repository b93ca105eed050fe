"""Heads that only training needs: maps from h to the space of a loss."""

from itertools import pairwise
from typing import Any

from torch import nn

from aavae.errors import UserError


def mlp(
    *sizes: Any,
    bias: bool = True,
    last_bias: bool = False,
    norm: bool = True,
    last_norm: bool = False,
    gelu: bool = False,
) -> nn.Sequential:
    """Linear layers of `sizes` with BatchNorm (unless not `norm`) and ReLU, or `gelu`, between them.

    `bias` is of all but the last layer; `last_norm` adds a BatchNorm without weights of its own at the end. Raises
    UserError for a size that is no whole number above 0.
    """
    names = ["hidden_dim"] * (len(sizes) - 2) + ["output_dim (by default latent_dim)"]
    for name, size in zip(names, sizes[1:], strict=True):
        if not isinstance(size, int) or size < 1:
            raise UserError(f"model.{name} must be a whole number of 1 or more, not {size}")
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(sizes), 2):
        last = number == len(sizes)
        layers.append(nn.Linear(before, after, bias=last_bias if last else bias))
        if not last:
            layers += [nn.BatchNorm1d(after)] if norm else []
            layers.append(nn.GELU() if gelu else nn.ReLU(inplace=True))
        elif last_norm:
            layers.append(nn.BatchNorm1d(after, affine=False))
    return nn.Sequential(*layers)
