"""Optimizers by name, parameter groups, and the linear scaling rule."""

import inspect
import math

import torch
from torch import nn

from aavae.errors import UserError
from aavae.models import Model

TORCHS = {  # Adam has L2 regularisation in the gradient, as in the released code
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
TIMMS = {"lamb": "Lamb", "lars": "Lars"}
OPTIMIZERS = (*TORCHS, *TIMMS)

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(
    model: nn.Module, weight_decay: float, exclude_bias_and_norm: bool, adapts: bool = False, lr: float = 0.0
) -> list[dict]:
    """Trainable parameters in one group, or in two: decayed, and (biases, normalisation layers, scalars) not decayed.

    The split goes by module type: names such as `downsample.1` hide a BatchNorm from a filter on names.
    With `adapts`, timm's LARS scales the steps of what is not excluded by its trust ratio, without weight decay too.
    What the model sets apart (`Model.groups`) follows in groups of its own, with its own part of `lr`.
    """
    apart = model.groups() if isinstance(model, Model) else []
    taken = {id(p) for part, _ in apart for p in part.parameters()}
    adapted, fixed = ({"always_adapt": True}, {"always_adapt": False}) if adapts else ({}, {})
    in_norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}

    def split(parameters: list[nn.Parameter], **settings) -> list[dict]:
        if not (exclude_bias_and_norm and (weight_decay or adapts)):
            return [{"params": parameters, "weight_decay": weight_decay} | adapted | settings]
        plain = [p for p in parameters if p.ndim <= 1 or id(p) in in_norms]
        plain_ids = {id(p) for p in plain}
        decayed = [p for p in parameters if id(p) not in plain_ids]
        return [
            {"params": decayed, "weight_decay": weight_decay} | adapted | settings,
            {"params": plain, "weight_decay": 0.0} | fixed | settings,
        ]

    groups = split([p for p in model.parameters() if p.requires_grad and id(p) not in taken])
    for part, said in apart:
        if unknown := said.keys() - {"scale", "scheduled"}:
            raise UserError(f"a group of a model's says scale and scheduled, not {min(unknown)}")
        scale, scheduled = said.get("scale", 1.0), said.get("scheduled", True)
        groups += split([p for p in part.parameters() if p.requires_grad], lr=lr * scale, scheduled=scheduled)
    return groups


def batch_size_scale(batch_size: int, reference_batch: int) -> float:
    """Factor for learning rate and warm-up epochs under the linear scaling rule (paper §4.1, docs/reproduction.md)."""
    if reference_batch < 1:
        raise UserError(f"optimizer.reference_batch must be 1 or more, not {reference_batch}")
    return batch_size / reference_batch


def _of_timm(name: str) -> type[torch.optim.Optimizer]:
    import timm.optim  # takes seconds, which a run without it need not wait

    return getattr(timm.optim, TIMMS[name])


def optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    exclude_bias_and_norm: bool = False,
    kwargs: dict | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` over the trainable parameters of `model`; `kwargs` go to its constructor.

    On CUDA and the CPU the fused implementation is taken where torch has one. Raises UserError for an unknown name, a
    value out of range or an argument the optimizer does not take.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer.name must be one of {', '.join(OPTIMIZERS)}, not {name!r}")
    for key, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise UserError(f"optimizer.{key} must be 0 or more, not {value}")
        if key in (kwargs or {}):
            raise UserError(f"write optimizer.{key}=, not optimizer.kwargs.{key}=")
    build = TORCHS.get(name) or _of_timm(name)
    accepted = inspect.signature(build).parameters
    kwargs = dict(kwargs or {})
    if unknown := set(kwargs) - set(accepted):
        raise UserError(f"optimizer {name} takes no {', '.join(sorted(unknown))}; it takes {', '.join(accepted)}")
    if "fused" in accepted and "fused" not in kwargs and next(model.parameters()).device.type in ("cuda", "cpu"):
        kwargs["fused"] = True
    # Else timm's would be plain SGD where there is no weight decay (You et al. 2017 adapt all the same).
    adapts = name == "lars" and "always_adapt" not in kwargs
    try:
        return build(parameter_groups(model, weight_decay, exclude_bias_and_norm, adapts, lr), lr=lr, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {name}: {error}") from error
