"""The released implementation's numbers, reproduced through our model, objective and torch.optim.Adam."""

import pytest
import torch
from released_numbers import NAMES, assert_close, evaluated, filled_by_rule, read

from aavae import build


@pytest.fixture(params=NAMES)
def released(request):
    return read(request.param)


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


def test_evaluation_gives_the_released_numbers(released):
    found = evaluated(*ours(released, torch.float32), released.vectors)
    assert {f"eval.{name}" for name in found} == {name for name in released.vectors if name.startswith("eval.")}
    for name, value in found.items():
        assert_close(value, released.vectors[f"eval.{name}"], 1e-4, name)


@pytest.mark.slow
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
