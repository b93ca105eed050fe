"""Encoders: image `(B, 3, H, W)` → features `(B, output_dim)`. One file and one YAML add another."""

import copy

import torch
from torch import nn


def measure_output_dim(encoder: nn.Module, image_size: int) -> int:
    """The width of what comes out of `encoder`, by a forward pass on the meta device (nothing is computed).

    Raises ValueError if it is not one vector per image.
    """
    twin = copy.deepcopy(encoder).to("meta").eval()
    with torch.no_grad():
        features = twin(torch.empty(2, 3, image_size, image_size, device="meta"))
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ValueError("its features are not one vector per image")
    return features.shape[1]
