"""SimCLR: its loss against lightly's, pytorch-metric-learning's and worked numbers; its runs from the outside."""

import json
import math
from pathlib import Path

import forked
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

import aavae
from aavae import build
from aavae.models.simclr import SimCLR, nt_xent
from aavae.weights import checkpoint

SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "method=simclr", "batch_size=32", "latent_dim=16", "probe=[]")
DEBUG = ("trainer=debug", "method=simclr", "hydra.run.dir=run")
FORMULAS = {
    "a": lambda i, j: math.sin(1 + 0.7 * i + 1.3 * j + 0.11 * i * j),
    "b": lambda i, j: math.cos(0.5 + 0.9 * i + 0.4 * j + 0.07 * i * j),
}


def worked() -> list[Tensor]:
    """Two batches of six vectors of eight numbers, in float64."""
    return [
        torch.tensor([[f(i, j) for j in range(8)] for i in range(6)], dtype=torch.float64, requires_grad=True)
        for f in FORMULAS.values()
    ]


def loss_of(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    return nt_xent(F.normalize(torch.stack([a, b]), dim=-1), temperature)


# ---- The loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "value"), [(0.5, 2.3814140085), (0.1, 5.0550621843)])
def test_the_loss_has_the_worked_values(temperature, value):
    assert loss_of(*worked(), temperature).item() == pytest.approx(value, abs=1e-10)


def test_its_gradients_have_the_worked_norms():
    a, b = worked()
    loss_of(a, b, 0.5).backward()
    assert [t.grad.norm().item() for t in (a, b)] == pytest.approx([0.3901652096, 0.3992194468], abs=1e-10)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_loss_is_lightlys(temperature):
    from lightly.loss import NTXentLoss

    a, b = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(loss_of(a, b, temperature), NTXentLoss(temperature)(a, b), atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_loss_is_pytorch_metric_learnings(temperature):
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    a, b = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = SelfSupervisedLoss(NTXentLoss(temperature))(a, b)
    assert torch.allclose(loss_of(a, b, temperature), theirs, atol=1e-10, rtol=0)


def test_it_does_not_depend_on_the_order_of_the_images():
    a, b = worked()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert loss_of(a[order], b[order], 0.5).item() == pytest.approx(loss_of(a, b, 0.5).item(), abs=1e-12)


def test_similarities_are_not_rounded_to_half_precision():
    z = F.normalize(torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(z, 0.1), nt_xent(z.clone(), 0.1)) and nt_xent(z, 0.1).dtype is torch.float32
    assert torch.equal(nt_xent(z, 0.1), nt_xent(z, 0.1).float())


# ---- The model ----------------------------------------------------------------------------------------------------


def test_the_head_has_the_published_size():
    with torch.device("meta"):
        model = build.model(build.compose(["method=simclr"]))
    assert sum(p.numel() for p in model.projection.parameters()) == 4_462_592
    assert [type(layer) for layer in model.projection] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert model.projection[-1].bias is None and model.temperature == 0.5


def test_the_defaults_are_those_of_the_recipe():
    cfg = build.compose(["method=simclr", "experiment=cifar10_simclr"])
    assert (cfg.epochs, cfg.batch_size, cfg.optimizer.name, cfg.optimizer.lr) == (800, 2048, "lars", 1.5)
    assert (cfg.optimizer.weight_decay, cfg.optimizer.kwargs.trust_coeff) == (1e-6, 0.001)
    changed = build.compose(["method=simclr", "optimizer.kwargs.trust_coeff=0.02", "optimizer.kwargs.trust_clip=true"])
    assert changed.optimizer.kwargs == {"momentum": 0.9, "trust_coeff": 0.02, "trust_clip": True}


def test_it_starts_where_nothing_is_known():
    trainer = build.trainer(build.compose([*SMALL, "model.temperature=1", "batch_size=128"]))
    trainer.model.train()
    loss = trainer.train_step(next(trainer.loader.epoch(0)))["loss"].item()
    assert abs(loss - math.log(2 * 128 - 1)) < 0.3


def test_a_step_sees_two_different_views_of_every_image(monkeypatch):
    trainer, seen = build.trainer(build.compose(SMALL)), []
    learn = trainer._learn

    def watched(views, x, noise):
        seen.append((views, noise))
        return learn(views, x, noise)

    monkeypatch.setattr(trainer, "_learn", watched)
    batch = next(trainer.loader.epoch(0))
    trainer.model.train()
    trainer.train_step(batch)
    views, noise = seen[0]
    assert views.shape == (2, 32, 3, 16, 16) and noise is None
    assert (views[0] - views[1]).abs().amax((1, 2, 3)).min() > 0
    # The first is the one that a method of one view would see.
    one = build.trainer(build.compose([*SMALL, "method=aaae", "decoder=resnet_tiny"]))
    monkeypatch.setattr(one, "_learn", lambda views, x, noise: seen.append(views) or learn_nothing(one, views))
    one.model.train()
    one.train_step(batch)
    assert torch.equal(seen[1][0], views[0])


def learn_nothing(trainer, views: Tensor) -> tuple:
    return None, {"loss": trainer.model.encoder(views[0]).sum()}


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_out_of_range_gets_one_sentence(train, temperature):
    ended = train(*DEBUG, f"model.temperature={temperature}")
    assert ended.code == 2 and "model.temperature must be" in ended.err


def test_accumulation_is_refused_with_the_reason(train):
    ended = train(*DEBUG, "trainer.accumulate=2")
    assert ended.code == 2 and "would change the loss of SimCLR, which compares the images of a batch" in ended.err
    assert not Path("run").exists()


# ---- Two processes ------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """h = Wx, without BatchNorm, which would couple images."""

    def __init__(self):
        super().__init__()
        self.linear, self.output_dim = nn.Linear(48, 10), 10

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def flat() -> tuple[SimCLR, Tensor]:
    torch.manual_seed(0)
    model = SimCLR(Flat(), hidden_dim=12, output_dim=6).double().eval()
    return model, torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)


def _gradients(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        model, views = flat()
        forked.backward(model.train(), both, views, views[0], None)
        answers.put([p.grad.tolist() for p in model.parameters() if p.grad is not None])


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one():
    model, views = flat()
    model.train().learn(views, views[0], None)[1]["loss"].backward()
    whole = [p.grad for p in model.parameters() if p.grad is not None]
    for found in forked.pair(_gradients):
        for ours, gradient in zip(found, whole, strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), gradient, atol=1e-12, rtol=0)


# ---- Runs ---------------------------------------------------------------------------------------------------------


def test_a_run_is_judged_converted_and_judged_again(train, evaluate, convert):
    ended = train(*DEBUG, "probe=knn", "features=[h,mu,h_untrained]")
    assert ended.code == 0, ended.err
    assert "mu is left out: this model has no mu, only h" in ended.out and "projection 8" in ended.out
    assert not Path("run/reconstructions.png").exists()
    logged = {key for line in Path("run/metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert {"train/loss", "train/cos_sim", "train/spread", "val/loss", "val/knn"} <= logged
    with safe_open("run/encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["image_size"]) == 16
    model = aavae.load_model("run")
    assert isinstance(model, SimCLR) and aavae.load_encoder("run").output_dim == model.encoder.output_dim
    before = json.loads(Path("run/results.json").read_text())
    assert evaluate("run=run", "probe=knn", "features=[h]").code == 0
    found = [r for r in json.loads(Path("run/results.json").read_text()) if r["feature"] == "h"]
    assert found == [r for r in before if r["feature"] == "h"]
    for target in ("again.pt", "encoder.safetensors"):
        assert convert("run", target).code == 0
    assert isinstance(aavae.load_model("again.pt"), SimCLR)


def test_a_stopped_run_ends_with_the_same_bits(train):
    small = (*DEBUG, "probe=[]", "trainer.validate_every=0")
    assert train(*small).code == 0
    whole = checkpoint.load(Path("run/last.pt"))
    assert train(*small, "trainer.max_steps=11", "hydra.run.dir=two").code == 0
    assert train(*small, "hydra.run.dir=two").code == 0
    again = checkpoint.load(Path("two/last.pt"))
    assert all(torch.equal(whole["model"][k], again["model"][k]) for k in whole["model"])
