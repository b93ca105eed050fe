"""AMDIM (Bachman et al. 2019) on our ResNets, and with other tasks YADIM: feature maps of two views agree."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.errors import UserError
from aavae.models.output import full
from aavae.models.pairs import Pair, unit
from aavae.runtime.device import without_autocast

REGULARISER = 0.05  # of both published implementations; the paper's text has 0.04
NAMES = ("pool", "layer4", "layer3")  # the vector of an image, and the maps it is pooled from


def info_nce(source: Tensor, target: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The contrastive loss of vectors `(B, R)` and maps `(B, R, L)` of the other view, in nats, and the regulariser.

    s(i, j, l) = u_i·T_jl / √R; regulariser 0.05·mean s²; then s ← c·tanh(s/c). The loss is the mean over i and l of
    −s(i, i, l) + log(exp s(i, i, l) + Σ_{j≠i, m} exp s(i, j, m)): all cells of other images are negatives (Bachman et
    al. 2019, Eq. 3 and 4, and the authors' code).
    """
    n = len(source)
    scores = torch.einsum("ir,jrl->ijl", source, target) / source.shape[1] ** 0.5
    regulariser = REGULARISER * scores.square().mean()
    scores = clip * torch.tanh(scores / clip)
    own = torch.eye(n, dtype=torch.bool, device=scores.device)
    positive = scores.diagonal(dim1=0, dim2=1).T  # (B, L)
    negative = scores.masked_fill(own[:, :, None], -torch.inf).flatten(1).logsumexp(1, keepdim=True)  # (B, 1)
    return (torch.logaddexp(positive, negative) - positive).mean(), regulariser


class MapHead(nn.Module):
    """Maps `(B, C, H, W)` → `(B, R, H·W)`: a residual pair of 1×1 convolutions and BatchNorm, the identity at first
    where R ≥ C; 2·C·R + R² + 3·R parameters."""

    def __init__(self, channels: int, output_dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, output_dim, 1, bias=False)
        self.conv2 = nn.Conv2d(output_dim, output_dim, 1, bias=False)
        self.shortcut = nn.Conv2d(channels, output_dim, 1)
        self.norm = nn.BatchNorm2d(output_dim)
        nn.init.zeros_(self.conv2.weight)
        if output_dim >= channels:
            nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
            with torch.no_grad():
                self.shortcut.weight[range(channels), range(channels)] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x)).flatten(2)


class AMDIM(Pair):
    """Encoder, and a head for its pooled features and for the maps of its last two stages.

    `tasks` are pairs of a source and a target among pool, layer4 and layer3; each is asked in both directions. A source
    that is a map gives one random cell an image. The losses at chance are log(1 + (B − 1)·L) a task, L the cells of its
    target. Raises UserError for an encoder without `maps`, and for unknown tasks.
    """

    per_image = False
    noise_dim = 2  # which cell of a map is the source: a number for each direction

    def __init__(
        self,
        encoder: nn.Module,
        output_dim: int = 1024,
        clip: float = 20.0,
        tasks: Sequence[Sequence[str]] = (("pool", "layer4"), ("pool", "layer3"), ("layer4", "layer4")),
        together: bool = True,
    ):
        super().__init__()
        if not isinstance(output_dim, int) or output_dim < 1 or not clip > 0:
            raise UserError(f"model.output_dim and model.clip must be positive, not {output_dim} and {clip}")
        if not tasks or not all(len(task) == 2 and set(task) <= {*NAMES} for task in tasks):
            raise UserError(f"model.tasks must be pairs of {', '.join(NAMES)}, not {[list(t) for t in tasks]}")
        if not hasattr(encoder, "maps"):
            raise UserError(
                "amdim compares the maps of an encoder's stages, which only our ResNets and encoder=amdim give"
            )
        if _has_vector(encoder) and output_dim != encoder.output_dim:
            raise UserError(f"encoder=amdim compares its own vectors: say model.output_dim={encoder.output_dim}")
        self.output_dim, self.clip, self.together = output_dim, clip, together
        self.tasks = [tuple(task) for task in tasks]
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: MapHead(width, output_dim) for name, width in _widths(encoder).items()})
        if _has_vector(encoder):
            self.heads["pool"] = nn.Flatten(2)

    def learn(self, views: Tensor, x: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of both directions, summed over tasks, and half of all regularisers; over all processes."""
        assert noise is not None  # the trainer draws noise_dim numbers an image
        maps = self._maps(views)
        cells = torch.special.ndtr(self.processes.gather(full(noise)))  # uniform
        with without_autocast(views.device):
            found = [
                info_nce(self._source(maps[source][v], cells[:, v]), maps[target][1 - v], self.clip)
                for source, target in self.tasks
                for v in (0, 1)
            ]
            loss = torch.stack([task + regulariser for task, regulariser in found]).sum() / 2
        own = self.processes.share(len(cells))
        return unit(maps["pool"][:, own, :, 0]), {"loss": loss}

    def _maps(self, views: Tensor) -> dict[str, Tensor]:
        """By name `(2, B, R, L)` of all processes, in float32 or wider."""
        batches = [views.flatten(0, 1)] if self.together else list(views)
        found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
        for batch in batches:
            for name, x in _named_maps(self.encoder, batch).items():
                found[name].append(full(self.heads[name](x)))
        joined = {name: torch.cat(parts).unflatten(0, (len(views), -1)) for name, parts in found.items()}
        return {name: self.processes.gather(x, 1) for name, x in joined.items()}

    @staticmethod
    def _source(maps: Tensor, place: Tensor) -> Tensor:
        """One cell of each map `(B, R, L)`, by a number in [0, 1) an image."""
        cell = (place * maps.shape[-1]).long().clamp(max=maps.shape[-1] - 1)
        return maps.gather(2, cell[:, None, None].expand(-1, maps.shape[1], 1))[..., 0]


def _has_vector(encoder: Any) -> bool:
    return getattr(encoder, "has_vector", False)


def _named_maps(encoder: Any, x: Tensor) -> dict[str, Tensor]:
    """What is compared, by name; of AMDIM's own encoder its vector and its maps of 5² and 7²."""
    maps = encoder.maps(x)
    if not _has_vector(encoder):
        maps.append(F.adaptive_avg_pool2d(maps[-1], 1))
    return dict(zip(NAMES, reversed(maps[-3:]), strict=True))


def _widths(encoder: Any) -> dict[str, int]:
    with torch.no_grad():
        size = getattr(encoder, "image_size", 64)
        maps = _named_maps(copy.deepcopy(encoder).to("meta"), torch.empty(2, 3, size, size, device="meta"))
    return {name: x.shape[1] for name, x in maps.items()}
