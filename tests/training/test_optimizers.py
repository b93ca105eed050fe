"""Optimizers against torch and timm, parameter groups, and the linear scaling rule of Fig. 4a."""

import copy

import pytest
import timm.optim
import torch
from torch import nn

from aavae import build, models
from aavae.errors import UserError
from aavae.models.encoders.resnet import resnet
from aavae.training import optimizers, schedules

BUILT = [
    ("adam", torch.optim.Adam, {"betas": [0.8, 0.95]}),
    ("adamw", torch.optim.AdamW, {"betas": [0.8, 0.95]}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ("lamb", timm.optim.Lamb, {"max_grad_norm": None}),
    ("lars", timm.optim.Lars, {"momentum": 0.9}),
]


class Model(nn.Module):
    """What names and numbers of dimensions get wrong: BatchNorm in `downsample.1`, a LayerNorm with a 2-d weight."""

    def __init__(self):
        super().__init__()
        self.encoder = resnet("basic", [1, 1, 1, 1], channels=8)
        self.norm = nn.LayerNorm((4, 4))
        self.head = nn.Linear(64, 3)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)


def names(model, group):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return sorted(by_id[id(p)] for p in group["params"])


def test_weight_decay_spares_biases_norms_and_scalars_by_module_type():
    model = Model()
    decayed, plain = optimizers.parameter_groups(model, 0.1, exclude_bias_and_norm=True)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {"encoder.layer2.0.downsample.1.weight", "encoder.bn1.bias", "norm.weight", "log_scale"} <= set(
        names(model, plain)
    )
    weights = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n != "frozen"]
    assert names(model, decayed) == sorted(f"{n}.weight" for n in weights)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_trainable_parameter_is_in_exactly_one_group(exclude, weight_decay):
    model = Model()
    model.tied = model.head  # shared modules do not count twice
    groups = optimizers.parameter_groups(model, weight_decay, exclude)
    assert sorted(n for g in groups for n in names(model, g)) == sorted(
        n for n, p in model.named_parameters() if p.requires_grad
    )


def test_without_exclusion_everything_decays():
    (group,) = optimizers.parameter_groups(Model(), 0.1, exclude_bias_and_norm=False)
    assert group["weight_decay"] == 0.1


def test_excluded_parameters_really_do_not_shrink():
    model = Model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers.optimizer(model, "sgd", 0.1, weight_decay=0.5, exclude_bias_and_norm=True).step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["head.weight"], before["head.weight"] * (1 - 0.1 * 0.5))
    for name in ("encoder.layer2.0.downsample.1.weight", "norm.weight", "head.bias", "frozen.weight"):
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize(("name", "reference", "kwargs"), BUILT)
def test_three_steps_equal_the_library_s_own(name, reference, kwargs):
    ours = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    theirs = copy.deepcopy(ours)
    stepping = (
        optimizers.optimizer(ours, name, 0.01, weight_decay=0.1, kwargs=kwargs),
        reference(theirs.parameters(), lr=0.01, weight_decay=0.1, **kwargs),
    )
    assert type(stepping[0]) is reference
    for seed in range(3):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in zip((ours, theirs), stepping, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)  # ours is fused where it can be


def test_adam_s_weight_decay_is_in_the_gradient_and_adamw_s_is_not():
    steps = {}
    for name in ("adam", "adamw"):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 4.0)
        model.weight.grad = torch.zeros(1, 1)
        optimizers.optimizer(model, name, 0.1, weight_decay=0.5).step()
        steps[name] = 4.0 - model.weight.item()
    # In the gradient, Adam normalises it to a step of lr; decoupled, it is lr · decay · weight.
    assert steps == pytest.approx({"adam": 0.1, "adamw": 0.2}, abs=1e-5)


def test_lamb_as_configured_scales_each_layer_s_step_by_its_weights():
    settings = build.plain(build.compose(["optimizer=lamb"]))["optimizer"]
    model = nn.Linear(20, 10, bias=False)
    model(torch.ones(4, 20)).square().sum().backward()
    before = model.weight.detach().clone()
    arguments = {k: settings[k] for k in ("name", "lr", "weight_decay", "exclude_bias_and_norm", "kwargs")}
    optimizers.optimizer(model, **arguments).step()
    # You et al. 2020: the step's norm is lr · ‖w‖, whatever the gradient. Without that, it is Adam by another name.
    moved = ((model.weight - before).norm() / before.norm()).item()
    assert moved == pytest.approx(settings["lr"], rel=0.01)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_lars_as_configured_scales_each_weight_s_step_and_no_bias_s(weight_decay):
    settings = build.plain(build.compose(["optimizer=lars", f"optimizer.weight_decay={weight_decay}"]))["optimizer"]
    model = nn.Linear(20, 10)
    model(torch.ones(4, 20)).square().sum().backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    arguments = {k: settings[k] for k in ("name", "lr", "weight_decay", "exclude_bias_and_norm", "kwargs")}
    optimizers.optimizer(model, **arguments).step()
    # You et al. 2017, Eq. 6: the local rate is η‖w‖ / (‖g‖ + λ‖w‖), with η = 0.001; of the gradient with its decay.
    w, g = before["weight"], model.weight.grad
    local = 0.001 * w.norm() / (g.norm() + weight_decay * w.norm())
    torch.testing.assert_close(model.weight.detach(), w - settings["lr"] * local * (g + weight_decay * w))
    torch.testing.assert_close(model.bias.detach(), before["bias"] - settings["lr"] * model.bias.grad)


def test_a_trust_ratio_that_is_switched_off_stays_off():
    model = nn.Linear(20, 10, bias=False)
    model(torch.ones(4, 20)).square().sum().backward()
    before = model.weight.detach().clone()
    optimizers.optimizer(model, "lars", 0.1, kwargs={"always_adapt": False}).step()
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * model.weight.grad)


def test_lamb_as_configured_leaves_clipping_to_the_trainer():
    settings = build.plain(build.compose(["optimizer=lamb"]))["optimizer"]
    ours, theirs = nn.Linear(5, 4, bias=False), nn.Linear(5, 4, bias=False)
    theirs.load_state_dict(ours.state_dict())
    reference = timm.optim.Lamb(theirs.parameters(), lr=settings["lr"], weight_decay=0, max_grad_norm=None,
                                always_adapt=True)  # fmt: skip
    arguments = {k: settings[k] for k in ("name", "lr", "weight_decay", "exclude_bias_and_norm", "kwargs")}
    optimizer = optimizers.optimizer(ours, **arguments)
    for scale in (0.1, 100.0, 1.0):  # clipping would make the second count less in the moments
        gradient = scale * torch.arange(20.0).view(4, 5).sin()
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


# ---- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "adamm"}, "one of adam, adamw, sgd, lamb, lars, not 'adamm'"),
        ({"lr": -1e-3}, "optimizer.lr must be 0 or more"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay must be 0 or more"),
        ({"kwargs": {"betaz": [0.9, 0.99]}}, "takes no betaz; it takes .*betas"),
        ({"kwargs": {"betas": [1.5, 0.99]}}, "beta"),
        ({"name": "sgd", "kwargs": {"momentum": -1}}, "momentum"),
        ({"name": "sgd", "kwargs": {"nesterov": True}}, "Nesterov"),
        ({"kwargs": {"lr": 0.5}}, "lr"),
    ],
)
def test_bad_values_get_one_clear_message(arguments, words):
    with pytest.raises(UserError, match=words):
        optimizers.optimizer(nn.Linear(2, 2), **({"name": "adam", "lr": 1e-3} | arguments))


def test_a_weight_decay_among_the_kwargs_is_not_silently_ignored():
    try:
        built = optimizers.optimizer(nn.Linear(2, 2), "adam", 1e-3, kwargs={"weight_decay": 0.5})
    except UserError:
        return
    assert built.param_groups[0]["weight_decay"] == 0.5


# ---- Batch size ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "lr", "warmup_epochs", "warmup_steps"),
    [(128, 1.25e-4, 5, 1755), (256, 2.5e-4, 10, 1750), (512, 5e-4, 20, 1740), (1024, 1e-3, 40, 1720)],
)
def test_learning_rate_and_warm_up_scale_as_in_figure_4a(batch_size, lr, warmup_epochs, warmup_steps):
    factor = optimizers.batch_size_scale(batch_size, 256)
    assert (2.5e-4 * factor, 10 * factor) == pytest.approx((lr, warmup_epochs))
    scaled = schedules.schedule("constant", 10 * factor, 45_000 // batch_size, 3200)
    assert scaled.warmup_steps == warmup_steps


@pytest.mark.parametrize(("scales", "lr"), [("true", 0.02), ("false", 0.01)])
def test_the_trainer_scales_from_the_reference_batch(scales, lr):
    cfg = build.compose([
        "trainer=debug", "batch_size=32", "optimizer.lr=0.01", "optimizer.reference_batch=16",
        "schedule.warmup_epochs=3", f"optimizer.scale_with_batch_size={scales}",
    ])  # fmt: skip
    trainer = build.trainer(cfg)
    assert trainer.base_lrs == pytest.approx([lr])
    assert trainer.schedule.warmup_steps == 3 * trainer.loader.steps_per_epoch * (lr / 0.01)


def test_the_reference_batch_must_be_positive():
    with pytest.raises(UserError, match="reference_batch must be 1 or more"):
        optimizers.batch_size_scale(256, 0)


class Apart(models.Model):
    """A model whose predictor learns at its own pace."""

    def __init__(self):
        super().__init__()
        self.encoder, self.predictor = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def groups(self):
        return [(self.predictor, {"scale": 10.0, "scheduled": False})]


@pytest.mark.parametrize("name", ["adam", "lars"])
def test_parts_that_a_model_sets_apart_have_their_own_learning_rate(name):
    model = Apart()
    groups = optimizers.optimizer(model, name, 0.1, 1e-4, exclude_bias_and_norm=True).param_groups
    found = {id(p): (g["lr"], g.get("scheduled", True), g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == {id(p) for p in model.parameters()} and len(found) == sum(len(g["params"]) for g in groups)
    assert found[id(model.encoder.weight)] == (0.1, True, 1e-4)
    assert found[id(model.predictor[0].weight)] == (1.0, False, 1e-4)
    assert found[id(model.predictor[1].weight)] == (1.0, False, 0.0)
