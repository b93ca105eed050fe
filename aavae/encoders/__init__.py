"""Encoders: image `(B, 3, H, W)` → features `(B, output_dim)`. One file and one YAML add another."""

import torch
from torch import nn


def measure_output_dim(encoder: nn.Module, image_size: int) -> int:
    """The width of what comes out of `encoder`, by a forward pass on the meta device (nothing is computed)."""
    was_training = encoder.training
    encoder.eval()
    state = {name: t.to("meta") for name, t in encoder.state_dict().items()}
    images = torch.empty(2, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        features = torch.func.functional_call(encoder, state, (images,))
    encoder.train(was_training)
    return features.shape[1]
