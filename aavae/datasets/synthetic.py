"""Made-up images for tests and dry runs: one coloured grating per class, shifted and noisy."""

import math

import torch

from aavae.datasets import Dataset, Split, to_uint8
from aavae.errors import UserError


class Synthetic(Dataset):
    """`size` training images of `num_classes` gratings, and half as many for validation and for test; seed fixed."""

    name = "synthetic"
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, size: int = 256, image_size: int = 16, num_classes: int = 4):
        super().__init__()
        if size < 4 or image_size < 1 or num_classes < 1:
            raise UserError(
                "dataset.size must be 4 or more, dataset.image_size and dataset.num_classes 1 or more, "
                f"not {size}, {image_size}, {num_classes}"
            )
        self.size, self.image_size, self.num_classes = size, image_size, num_classes

    def _make(self, n: int, seed: int, device: torch.device) -> Split:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % self.num_classes
        angle = math.pi * labels / self.num_classes
        phase = 2 * math.pi * torch.rand(n, generator=generator)
        line = torch.linspace(-math.pi, math.pi, self.image_size)
        along = line[:, None] * angle.sin()[:, None, None] + line * angle.cos()[:, None, None]
        grating = 0.5 + 0.35 * torch.sin(2 * along + phase[:, None, None])  # (N, H, W)
        tint = 0.6 + 0.4 * torch.cos(angle[:, None] + torch.tensor([0.0, 2.0, 4.0]))
        images = grating[:, None] * tint[:, :, None, None]
        images = images + 0.05 * torch.randn(images.shape, generator=generator)
        return Split(to_uint8(images.clamp(0, 1)), labels).to(device)

    def read(self, device: torch.device) -> dict[str, Split]:
        """Three labelled splits; pretraining uses the images of `train` and `val`."""
        train = self._make(self.size, 0, device)
        val, test = (self._make(max(2, self.size // 2), seed, device) for seed in (1, 2))
        return {"pretrain": train, "pretrain_val": val, "train": train, "val": val, "test": test}
