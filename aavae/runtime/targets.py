"""`_target_` to object, from allowed modules only."""

import importlib
from collections.abc import Callable, Sequence

from torch import nn

from aavae.errors import UserError

ARCHITECTURES = ("aavae.models.encoders.", "aavae.models.decoders.")


# ---- Models -------------------------------------------------------------------------------------------------------


def builder(node: dict, allowed: tuple[str, ...] = ARCHITECTURES) -> Callable[..., nn.Module]:
    """What the `_target_` of a node names.

    Raises UserError for a target outside the `allowed` module prefixes: a checkpoint may not name just any function.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(f"{node!r} does not name the class to build as _target_")
    target = str(node["_target_"])
    module, _, name = target.rpartition(".")
    refusal = f"{target} is not among what a model may be built from ({'*, '.join(allowed)}*)"
    if not target.startswith(allowed) or name.startswith("_"):
        if not target.startswith((*allowed, "aavae.")):
            refusal += f"; if you trust it, say trust=[{target.split('.')[0]}]"
        raise UserError(refusal)
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "" if target.startswith("aavae.") else "; PYTHONPATH=. finds modules of the folder you are in"
        raise UserError(f"there is no {target} ({error}){hint}") from error
    if "" not in allowed and target.startswith("aavae.") and getattr(build, "__module__", None) != module:
        raise UserError(refusal)  # what such a module has imported is not its own to offer
    return build


def component(node: dict, allowed: tuple[str, ...] = ARCHITECTURES, **facts) -> nn.Module:
    """Build `{"_target_": "aavae.models.encoders.resnet.resnet", …}` with its other entries and `facts` as arguments.

    Raises UserError for a target that is not `allowed`, and for arguments that it does not take.
    """
    build = builder(node, allowed)
    try:
        return build(**{k: v for k, v in node.items() if k != "_target_"} | facts)
    except TypeError as error:
        raise UserError(f"{node['_target_']} cannot be built: {error}") from error


def trusting(modules: Sequence[str], own: tuple[str, ...] = ARCHITECTURES) -> tuple[str, ...]:
    """The prefixes of aavae's `own` modules and of `modules`, each with a dot at its end, so that trusting `foo`
    does not trust `foobar`."""
    return (*own, *(f"{module.removesuffix('.')}." for module in modules))
