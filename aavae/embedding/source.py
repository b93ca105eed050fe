"""What makes features: the encoder or the latent code of a run, a file of weights, or one of timm's models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.models import Model
from aavae.runtime.device import full_float32
from aavae.weights import start
from aavae.weights.load import Said, load_encoder, load_model

STAGES = ("layer1", "layer2", "layer3", "layer4")


class Source(NamedTuple):
    """A network that makes features `(B, …)` of tensors that `transform` makes of pictures; `about` says what it is."""

    network: nn.Module
    compute: Callable[[Tensor], Tensor]
    transform: Callable[[Image.Image], Tensor]
    about: dict[str, str]

    @torch.no_grad()
    @full_float32()
    def __call__(self, x: Tensor) -> Tensor:
        """Features, float32 on the CPU."""
        return self.compute(x).float().cpu()


def of_weights(path: Path, features: str, trust: tuple[str, ...], device: torch.device, **said: Any) -> Source:
    """The source that a run folder, checkpoint or encoder file is: `features` h, mu, layer1 to layer4, or map.

    Raises UserError for a path that holds none, and for features that it cannot give.
    """
    known: Said = {"stem": said.get("stem"), "image_size": said.get("image_size"), "dataset": said.get("dataset")}
    encoder: Any = load_encoder(path, trust=trust, **known)
    if not hasattr(encoder, "transform"):
        raise UserError(f"{path} does not say for images of what size it is; add image_size=")
    network: nn.Module = encoder
    compute: Callable[[Tensor], Tensor] = encoder
    if features in STAGES or features == "map":
        compute = _maps(encoder, features)
    elif features != "h":
        network = load_model(path, trust=trust, **known)
        own = network.features() if isinstance(network, Model) else {}
        if features not in own:
            raise UserError(f"features must be {', '.join(['h', *own, 'map', *STAGES])}, not {features!r}")
        compute = _drawn(own[features])
    network.to(device)
    return Source(network, compute, encoder.transform, {"weights": str(path), "features": features})


def _maps(encoder: Any, features: str) -> Callable[[Tensor], Tensor]:
    if hasattr(encoder, "maps"):
        place = -1 if features == "map" else STAGES.index(features)
        return lambda x: encoder.maps(x)[place]
    if features == "map" and hasattr(encoder, "forward_features"):  # of timm's
        return encoder.forward_features
    raise UserError(f"this encoder has no {features}; features=h is its output")


def _drawn(compute: Callable) -> Callable[[Tensor], Tensor]:
    return lambda x: compute(x, torch.Generator().manual_seed(0))


def of_timm(name: str, pretrained: bool, features: str, device: torch.device) -> Source:
    """One of timm's models by name, without its classifier, and with timm's own transform for it.

    Raises UserError for a name that timm does not know, for weights that cannot be had, and for other features than h
    and map.
    """
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"timm has no model {name!r}; timm.list_models() names them")
    if features not in ("h", "map"):
        raise UserError(f"of one of timm's models there are features h and map, not {features!r}")
    if pretrained:
        network: Any = start.pretrained(name, "say pretrained=false for random ones")
    else:
        network = timm.create_model(name, num_classes=0)
    network = network.eval().to(device)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    weights = f"timm {name}, {'pretrained' if pretrained else 'random weights'}"
    compute = network if features == "h" else network.forward_features
    return Source(network, compute, transform, {"weights": weights, "features": features})
