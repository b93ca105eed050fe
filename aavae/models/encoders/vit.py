"""Vision transformers (Dosovitskiy et al. 2021) with small patches, as timm builds them."""

from torch import nn

from aavae.errors import UserError
from aavae.models.encoders.timm_model import timm_model

NAME = "vit_small_patch16_224"  # timm's, of which the sizes are replaced
POOLS = ("token", "avg")


def timm_arguments(
    image_size: int, patch_size: int = 4, width: int = 384, depth: int = 12, heads: int = 6, pool: str = "token"
) -> dict:
    """The arguments of `timm.create_model` beside the name."""
    sizes = {"img_size": image_size, "patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": heads}
    return sizes | {"global_pool": pool}


def vit(
    image_size: int, patch_size: int = 4, width: int = 384, depth: int = 12, heads: int = 6, pool: str = "token"
) -> nn.Module:
    """A vision transformer, `(B, 3, H, W)` → `(B, width)`: its class token, or the mean over patches (`pool`: avg).

    Raises UserError for patches that do not divide the image, and for sizes that do not fit.
    """
    sizes = (patch_size, width, depth, heads)
    if not all(isinstance(n, int) and n > 0 for n in sizes) or width % 4 or width % heads:
        raise UserError(
            "encoder.patch_size, width, depth and heads must be 1 or more, width a multiple of 4 and of heads, not "
            + ", ".join(map(str, sizes))
        )
    if image_size % patch_size:
        raise UserError(f"encoder.patch_size={patch_size} does not divide images of {image_size} pixels")
    if pool not in POOLS:
        raise UserError(f"encoder.pool must be {' or '.join(POOLS)}, not {pool!r}")
    return timm_model(NAME, image_size, timm_arguments(image_size, patch_size, width, depth, heads, pool))
