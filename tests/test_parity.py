"""The released implementation's numbers, reproduced through our model, objective and torch.optim.Adam."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aavae import build
from aavae.diagnostics import log_weights


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


@pytest.fixture(params=["resnet18_cifar", "resnet50_cifar_beta"])
def released(request, shared):
    path = shared / "parity" / f"{request.param}.json"
    if not path.exists():
        pytest.skip("../shared/parity is not here")
    return SimpleNamespace(**json.loads(path.read_text()), vectors=load_file(path.with_suffix(".safetensors")))


def ours(released, dtype: torch.dtype):
    config = released.config
    cfg = build.compose(
        [
            "dataset=cifar10",
            f"encoder={config['encoder']}",
            f"decoder={config['decoder'].replace('decoder', 'resnet')}",
            f"latent_dim={config['latent_dim']}",
            f"loss.beta={config['beta']}",
            f"loss.log_scale={config['log_scale']}",
            f"loss.learn_scale={bool(config['learn_scale'])}",
        ]
    )
    with torch.device("meta"):  # the weights come from the rule
        model = build.model(cfg)
    learns = model.log_scale.requires_grad
    model.load_state_dict(filled_by_rule(released.state_dict, config["log_scale"], dtype), strict=True, assign=True)
    model.log_scale.requires_grad_(learns)
    return model, build.loss(cfg)


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float, what: str) -> None:
    assert a.shape == b.shape
    error = ((a - b).abs().max() / b.abs().max()).item()
    assert error <= tolerance, f"{what}: {error:.1e}"


@torch.no_grad()
def test_evaluation_gives_the_released_numbers(released):
    model, objective = ours(released, torch.float32)
    v = released.vectors
    output = model.eval()(v["view"], v["eps"])
    first = model(v["view"], v["eps"][0])
    weights = log_weights(objective, output, v["original"])
    found = {
        "h": output.h,
        "mu": output.mu,
        "logvar": output.log_var,
        "x_hat": first.x_hat,
        "log_px_given_z": objective.log_px_given_z(first, v["original"]),
        "kl": objective.divergence(output),
        "log_px_iw": torch.logsumexp(weights, 0) - np.log(len(weights)),
    }
    for name, value in found.items():
        assert_close(value, v[f"eval.{name}"], 1e-4, name)


@pytest.mark.parametrize("vectors", ["train", "train_noclean"])
def test_three_adam_steps_give_the_released_numbers(released, vectors):
    model, objective = ours(released, torch.float64)
    v = {key: value.double() for key, value in released.vectors.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=2.5e-4)
    model.train()
    losses, norms = [], None
    for step in range(3):
        if vectors == "train":
            with torch.no_grad():
                model.encode(v["original"])
        loss = objective(model(v["view"], v["eps"][step]), v["original"])["loss"]
        optimizer.zero_grad()
        loss.backward()
        if norms is None:
            named = dict(model.named_parameters())
            norms = [named[k].grad.norm() if named[k].requires_grad else 0.0 for k in released.parameters_sorted]
        optimizer.step()
        losses.append(loss.detach())
    norms = torch.tensor(norms, dtype=torch.float64)
    torch.testing.assert_close(norms, v[f"{vectors}.grad_norms"], rtol=1e-6, atol=1e-9)
    assert_close(torch.stack(losses), v[f"{vectors}.losses"], 1e-6, "losses")
    with torch.no_grad():
        mu = model.eval()(v["view"]).mu
    assert_close(mu, v[f"{vectors}.eval_mu_after"], 1e-6, "mu after three steps")
