"""Encoders that see an image as a grid of overlapping patches, each on its own."""

from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.encoders.resnet import resnet


class Patches(nn.Module):
    """A network over patches `(B, 3, P, P)`: images `(B, 3, H, W)` → `grid`, `(B, output_dim, rows, rows)`, whose mean
    are the features."""

    def __init__(self, network: nn.Module, output_dim: int, image_size: int, patch_size: int, stride: int):
        super().__init__()
        self.network, self.output_dim = network, output_dim
        self.patch_size, self.stride, self.rows = patch_size, stride, (image_size - patch_size) // stride + 1

    def grid(self, x: Tensor) -> Tensor:
        """The features of every patch, in its place."""
        size = self.patch_size
        patches = F.unfold(x, size, stride=self.stride).transpose(1, 2)  # (B, rows², 3·P·P)
        features = self.network(patches.reshape(-1, 3, size, size)).unflatten(0, patches.shape[:2])
        return features.transpose(1, 2).unflatten(2, (self.rows, self.rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(x).mean((2, 3))


def patch_resnet(
    block: str, layers: list[int], image_size: int, channels: int = 64, patch_size: int = 8, stride: int = 4
) -> Patches:
    """A ResNet with LayerNorm over patches (CPC v2; Hénaff et al. 2020): BatchNorm would let the patches of an image
    see each other.

    Raises UserError for patches that do not fit into the image, and what `resnet` refuses.
    """
    if not 1 <= patch_size <= image_size or stride < 1:
        raise UserError(
            f"encoder.patch_size and encoder.stride must give patches within {image_size} pixels, not {patch_size} and "
            f"{stride}"
        )
    network = resnet(block, layers, channels, "cifar", norm="layer")
    return Patches(network, network.output_dim, image_size, patch_size, stride)
