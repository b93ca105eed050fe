"""What an optimizer has accumulated, given to another of its kind."""

import copy
from collections import defaultdict

import torch


def restore(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Give an optimizer what another of its kind has accumulated (its `state_dict`); settings stay what they are.

    Raises ValueError where that is something else.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    accumulates = _accumulates(optimizer)
    for i, state in saved["state"].items():
        expected = {k: parameters[i].shape if alike else torch.Size() for k, alike in accumulates.items()}
        if {k: v.shape for k, v in state.items()} != expected:
            raise ValueError(f"the optimizer's state of parameter {i} is another's")
    own = optimizer.state_dict()["param_groups"]
    # LAMB counts its steps in the group, which is no setting.
    groups = [before | now for before, now in zip(saved["param_groups"], own, strict=True)]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _accumulates(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """What it keeps of a parameter, seen by a step on another one: does it have the parameter's shape, or none?"""
    first = optimizer.param_groups[0]["params"][0]
    other = torch.zeros(2, 3, dtype=first.dtype, device=first.device)
    other.grad = torch.zeros_like(other)
    twin = copy.copy(optimizer)
    twin.state, twin.param_groups = defaultdict(dict), [optimizer.param_groups[0] | {"params": [other]}]
    twin.step()
    return {name: value.shape == other.shape for name, value in twin.state[other].items()}
