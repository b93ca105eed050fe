"""MAE (He et al. 2022): a vision transformer sees a few patches, a small one after it says what the others were."""

from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.models.masking import Masked


class MAE(Masked):
    """Encoder: one of timm's VisionTransformers; a transformer behind it, with a token for each hidden patch.

    Positions are fixed sines and cosines. Raises UserError for other encoders, and for sizes that do not fit.
    """

    positions: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pixels: bool = True,
    ):
        super().__init__()
        net: Any = encoder
        if not isinstance(encoder, VisionTransformer) or encoder.pos_embed is None:
            raise UserError(
                "mae hides patches from a vision transformer with positions; add encoder=vit_small or vit_tiny, which "
                "no experiment= chooses"
            )
        sizes = (decoder_dim, decoder_depth, decoder_heads)
        if not all(isinstance(n, int) and n > 0 for n in sizes) or decoder_dim % 4 or decoder_dim % decoder_heads:
            raise UserError(
                "model.decoder_dim, decoder_depth and decoder_heads must be 1 or more, the first a multiple of 4 and "
                f"of the last, not {', '.join(map(str, sizes))}"
            )
        (image_size, _), (patch_size, _) = net.patch_embed.img_size, net.patch_embed.patch_size
        self.divide(image_size, patch_size, mask_ratio)
        self.norm_pixels = norm_pixels
        self.encoder, width = encoder, net.embed_dim
        self.enter = nn.Linear(width, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        blocks = (Block(decoder_dim, decoder_heads, qkv_bias=True) for _ in range(decoder_depth))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(decoder_dim, eps=1e-6))
        self.leave = nn.Linear(decoder_dim, 3 * patch_size**2)
        self.register_buffer("positions", _positions(net.patch_embed.grid_size, decoder_dim, net.num_prefix_tokens))
        self._initialise(net)

    def _initialise(self, net: Any) -> None:
        for m in self.modules():  # as published, the encoder too
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        nn.init.xavier_uniform_(net.patch_embed.proj.weight.view(net.embed_dim, -1))
        for token in (net.cls_token, net.reg_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        prefix = net.pos_embed.shape[1] - self.noise_dim  # positions of tokens that are no patches
        with torch.no_grad():
            net.pos_embed.copy_(_positions(net.patch_embed.grid_size, net.embed_dim, prefix))
        net.pos_embed.requires_grad_(False)

    def predict(self, view: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See `Masked.predict`."""
        net: Any = self.encoder
        visible = self.visible(view, seen)
        tokens = self.enter(visible)
        prefix, tokens = tokens[:, : net.num_prefix_tokens], tokens[:, net.num_prefix_tokens :]
        every = self.mask_token.to(tokens).expand(len(tokens), self.noise_dim, -1)
        every = every.scatter(1, _wide(seen, tokens), tokens)
        decoded = self.blocks(torch.cat([prefix, every], 1) + self.positions)
        return self.leave(decoded[:, net.num_prefix_tokens :]), net.forward_head(visible)

    def visible(self, view: Tensor, seen: Tensor) -> Tensor:
        """The encoder's tokens `(B, prefix + kept, width)` when it is given nothing but the patches at `seen`."""
        net: Any = self.encoder
        every, prefix = net._pos_embed(net.patch_embed(view)), net.num_prefix_tokens
        seen_tokens = every[:, prefix:].gather(1, _wide(seen, every))
        return net.norm(net.blocks(net.norm_pre(torch.cat([every[:, :prefix], seen_tokens], 1))))


def _wide(places: Tensor, tokens: Tensor) -> Tensor:
    return places[..., None].expand(-1, -1, tokens.shape[-1])


def _positions(grid: tuple[int, int], width: int, prefix: int) -> Tensor:
    """Fixed positions `(1, prefix + L, width)`, zero for the tokens before the patches."""
    table = build_sincos2d_pos_embed(list(grid), width, interleave_sin_cos=False)
    return torch.cat([torch.zeros(prefix, width), table.float()])[None]
