"""The numbers of the released implementation in ../shared/parity, and the weights they were computed with."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file

from aavae.models.diagnostics import log_weights

NAMES = ("resnet18_cifar", "resnet50_cifar_beta")


def read(name: str) -> SimpleNamespace:
    """Config, shapes of the state dict and vectors of one configuration; skips the test where they are not."""
    path = SHARED / "parity" / f"{name}.json"
    if not path.exists():
        pytest.skip("../shared/parity is not here")
    return SimpleNamespace(**json.loads(path.read_text()), vectors=load_file(path.with_suffix(".safetensors")))


def filled_by_rule(shapes: dict[str, list[int]], log_scale: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights that ../shared/parity/README.md describes."""
    state = {}
    for i, key in enumerate(sorted(shapes)):
        shape = shapes[key]
        u = np.random.RandomState(i).uniform(-1, 1, int(np.prod(shape)))
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        if key.endswith("running_var"):
            values = 1 + 0.2 * u
        elif key.endswith("running_mean"):
            values = 0.05 * u
        elif key == "log_scale":
            values = np.array([log_scale])
        elif len(shape) > 1:
            values = u * 1.5 / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("weight"):
            values = 1 + 0.1 * u
        else:
            values = 0.05 * u
        state[key] = torch.from_numpy(values).reshape(shape).to(dtype)
    return state


@torch.no_grad()
def evaluated(model, objective, vectors) -> dict[str, torch.Tensor]:
    """What ours computes in eval mode, by the names of `eval.*`."""
    output = model.eval()(vectors["view"], vectors["eps"])
    first = model(vectors["view"], vectors["eps"][0])
    weights = log_weights(objective, output, vectors["original"])
    return {
        "h": output.h,
        "mu": output.mu,
        "logvar": output.log_var,
        "x_hat": first.x_hat,
        "log_px_given_z": objective.log_px_given_z(first, vectors["original"]),
        "kl": objective.divergence(output),
        "log_px_iw": torch.logsumexp(weights, 0) - np.log(len(weights)),
    }


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float, what: str) -> None:
    """The error that the README defines."""
    assert a.shape == b.shape
    error = ((a - b).abs().max() / b.abs().max()).item()
    assert error <= tolerance, f"{what}: {error:.1e}"
