"""Representations of small models made by hand."""

import torch
from torchvision.transforms import functional as tvf

from aavae import build
from aavae.augmentations.pipeline import NoAugmentation
from aavae.datasets import Dataset, Split
from aavae.probes.representations import Representations
from aavae.runtime.device import Precision

MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
CPU = torch.device("cpu")
SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=6")


class Cropped(Dataset):
    """Random images of which the middle 16×16 are the target, as STL-10's target is a part of the image."""

    name, num_classes, image_size, mean, std = "cropped", 3, 16, MEAN, STD

    def __init__(self, train=40):
        super().__init__()
        self.sizes = {"train": train, "val": 12, "test": 12}

    def read(self, device):
        generator = torch.Generator().manual_seed(0)
        splits = {
            name: Split(torch.randint(256, (n, 3, 24, 24), dtype=torch.uint8, generator=generator), torch.arange(n) % 3)
            for name, n in self.sizes.items()
        }
        return splits | {"pretrain": splits["train"], "pretrain_val": splits["val"]}

    def target(self, images):
        return images[..., 4:20, 4:20]


def autoencoder(*overrides):
    """An autoencoder whose BatchNorm statistics are not those it starts with."""
    cfg = build.compose([*SMALL, *overrides])
    model = build.model(cfg)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(3):
            model(2 * torch.randn(8, 3, 16, 16, generator=generator))
    return model, cfg


def representing(model, data=None, untrained=None, precision="fp32", augmentation=None, **arguments):
    dtype = {"fp32": None, "bf16": torch.bfloat16}[precision]
    return Representations(
        model, untrained, data or Cropped(), augmentation or NoAugmentation(), CPU, Precision(precision, "cpu", dtype),
        **arguments,
    )  # fmt: skip


def shown(data, split):
    """What the encoder is shown, by torchvision."""
    cropped = tvf.center_crop(data[split].images, [16, 16])
    return tvf.normalize(tvf.convert_image_dtype(cropped, torch.float32), MEAN, STD)
