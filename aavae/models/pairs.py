"""What methods that compare two views of an image have in common."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.models import Model
from aavae.models.diagnostics import cloud
from aavae.models.output import full


class Pair(Model):
    """Two views of each image; `learn` returns the unit vectors `(2, B, D)` of both, and the loss.

    `together`: both views pass a network in one batch, so that BatchNorm sees both; otherwise one after the other, as
    in solo-learn and lightly.
    """

    n_views = 2
    output_dim: int
    projection: nn.Module
    together = True

    def about(self) -> str:
        """The size of the projection."""
        return f"projection {self.output_dim}"

    def of_each(self, network: nn.Module, views: Tensor) -> Tensor:
        """What `network` makes of the views `(2, B, …)`, `(2, B, D)` in float32."""
        if self.together:
            return full(network(views.flatten(0, 1)).unflatten(0, (len(views), -1)))
        return full(torch.stack([network(view) for view in views]))

    def project(self, views: Tensor) -> Tensor:
        """z of the views, `(2, B, D)`: what the projection makes of h."""
        return self.of_each(nn.Sequential(self.encoder, self.projection), views)

    def measure(self, output: Tensor, x: Tensor, clean, std: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """How alike the two views are (`cos_sim`), and how the unit vectors fill their space (`spread`, `rank`)."""
        return {"cos_sim": (output[0] * output[1]).sum(-1).mean(), **cloud(output.flatten(0, 1))}

    def validate(
        self, views: Tensor, x: Tensor, std: Tensor, samples: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], None]:
        """Loss and agreement of a held-out batch."""
        noise = torch.randn(len(x), self.noise_dim, generator=generator).to(x) if self.noise_dim else None
        z, terms = self.learn(views, x, noise)
        assert isinstance(z, Tensor)  # as `learn` of a Pair returns
        return terms | self.measure(z, x, None, std, generator), None


def unit(z: Tensor) -> Tensor:
    """Vectors `(…, D)` of length 1, in float32 or wider."""
    return F.normalize(full(z), dim=-1)
