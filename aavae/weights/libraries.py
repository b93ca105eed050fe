"""Encoders for other libraries: which of ours timm and torchvision build too, checked by building them."""

import timm
import torchvision
from torch import nn

from aavae.errors import UserError
from aavae.models.encoders import vit
from aavae.weights.checkpoint import fit_state

LIBRARIES = ("timm", "torchvision")
OURS, ANY = "aavae.models.encoders.resnet.resnet", "aavae.models.encoders.timm_model.timm_model"
VIT = "aavae.models.encoders.vit.vit"
RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}


def twin(library: str, architecture: dict) -> tuple[nn.Module, str]:
    """What `library` builds that computes the same as the encoder so described, without weights, and how it is called.

    Raises UserError, with the reason, where there is no such model.
    """
    name, arguments = named(library, architecture)
    if library == "timm":  # not on the meta device, where timm 1.0.15 cannot build its transformers
        written = "".join(f", {k}={v!r}" for k, v in arguments.items())
        model = timm.create_model(name, num_classes=0, **arguments)
        return model, f"timm.create_model({name!r}, num_classes=0{written})"
    model = torchvision.models.get_model(name)
    model.fc = nn.Identity()
    return model, f"torchvision.models.{name}() with fc=Identity()"


def named(library: str, architecture: dict) -> tuple[str, dict]:
    """What `library` calls that encoder, and the arguments beside the name. Raises UserError as `twin` does."""
    target = architecture["_target_"]
    if target == ANY and library == "timm":
        return architecture["name"], architecture.get("kwargs") or {}
    if target == VIT and library == "timm":
        return vit.NAME, vit.timm_arguments(**{k: v for k, v in architecture.items() if k != "_target_"})
    if target == OURS:
        return _resnet(architecture, library), {}
    raise UserError(f"{library} has no model that computes what {target} does; use to=encoder")


def _resnet(architecture: dict, library: str) -> str:
    stem, channels = architecture.get("stem", "cifar"), architecture.get("channels", 64)
    if stem != "imagenet":
        has = {"cifar": "3×3, stride 1", "half": "3×3, stride 2"}.get(stem, "7×7, stride 2")
        raise UserError(
            f"the encoder's stem is {stem} ({has}, no max-pool); {library}'s ResNets have ImageNet's (7×7, stride 2, "
            "max-pool) and would compute something else; use to=encoder"
        )
    name = RESNETS.get((architecture["block"], tuple(architecture["layers"])))
    widened = ", with a layer behind the last block" if architecture.get("output_dim") else ""
    if (pool := architecture.get("pool", 1)) > 1:
        raise UserError(f"{library} has no ResNet whose features are the means of {pool}² cells; use to=encoder")
    if name is None or channels != 64 or widened:
        raise UserError(
            f"{library} has no ResNet of {architecture['block']} blocks {architecture['layers']} that is "
            f"{channels} channels wide from the stem on{widened}; use to=encoder"
        )
    return name


def check_fits(library: str, encoder: nn.Module, architecture: dict) -> str:
    """See that the encoder's state dict loads strictly into the `library`'s own model; returns how that is called.

    Raises UserError where it does not.
    """
    model, called = twin(library, architecture)
    fit_state(model, encoder.state_dict(), f"the encoder, in {called},")
    return called
