"""CPC: its loss against worked numbers, who sees whom, and its runs."""

import math
from pathlib import Path

import forked
import pytest
import torch
from torch import Tensor, nn

import aavae
from aavae import build
from aavae.models.cpc import CPC, Unit, prediction_loss
from aavae.models.encoders.patches import patch_resnet
from aavae.weights import checkpoint

SMALL = (
    "trainer=debug",
    "method=cpc",
    "encoder=patches_tiny",
    "model.offsets=[1,2]",
    "model.hidden_dim=16",
    "probe=[]",
)
B, C, R, W = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 4, 4, 4)), indexing="ij")
TARGET = 2 * torch.sin(0.2 + 0.9 * B + 0.6 * C + 0.5 * R + 0.8 * W + 0.3 * C * R)
PREDICTION = 2 * torch.cos(0.1 + 0.4 * B + 0.7 * C + 0.6 * R + 0.5 * W + 0.2 * C * W)
WORKED = {1: 3.0044122039, 2: 3.1740408021, 3: 3.6451860385}


@pytest.mark.parametrize("offset", WORKED)
def test_the_loss_has_the_worked_values(offset):
    assert prediction_loss(PREDICTION, TARGET, offset).item() == pytest.approx(WORKED[offset], abs=1e-9)


def test_the_sum_of_bolts_is_that_of_bolts():
    total = sum((d - 1) * prediction_loss(PREDICTION, TARGET, d) for d in (2, 3))
    assert total.item() == pytest.approx(10.4644128790, abs=1e-8)


def test_gradients_are_those_of_finite_differences():
    prediction, target = (t[:, :2, :3, :2].clone().requires_grad_() for t in (PREDICTION, TARGET))
    assert torch.autograd.gradcheck(lambda p, t: prediction_loss(p, t, 1), (prediction, target))


def test_at_chance_it_is_the_log_of_all_positions():
    nothing = torch.zeros(64, 8, 7, 7)
    assert prediction_loss(nothing, nothing, 3).item() == pytest.approx(math.log(49 * 64), abs=1e-4)  # 8.051


def test_a_context_sees_five_rows_above_and_none_below():
    torch.manual_seed(0)
    stack = nn.Sequential(*(Unit(6, 4) for _ in range(5)))
    x = torch.randn(1, 6, 9, 9, requires_grad=True)
    stack(x)[0, :, 6, 4].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten().tolist()
    assert rows == [1, 2, 3, 4, 5, 6]


def test_patches_do_not_see_each_other():
    torch.manual_seed(0)
    net = patch_resnet("basic", [1, 1, 1, 1], 32, channels=8).train()
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    grid = net.grid(x)
    assert grid.shape == (2, 64, 7, 7) and not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    grid[0, :, 2, 3].sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert seen.min(0).values.tolist() == [8, 12] and seen.max(0).values.tolist() == [15, 19]
    assert not x.grad[1].any()
    assert torch.allclose(net(x), grid.mean((2, 3)))
    patch = net.network(x[:1, :, 8:16, 12:20])
    torch.testing.assert_close(grid[0, :, 2, 3], patch[0], atol=1e-5, rtol=1e-4)


def test_weights_are_those_of_each_reading():
    encoder = patch_resnet("basic", [1, 1, 1, 1], 32, channels=4)
    assert CPC(encoder).weights == {3: 1 / 3, 4: 1 / 3, 5: 1 / 3} and len(CPC(encoder).predictions) == 3
    bolts = CPC(encoder, weighting="bolts")
    assert bolts.weights == {2: 1, 3: 2, 4: 3, 5: 4, 6: 5} and len(bolts.predictions) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("encoder=resnet_tiny", "choose encoder=patches18"),
        ("model.offsets=[3]", "rows below, 1 to 2 on this grid"),
        ("model.weighting=both", "model.weighting must be listing or bolts"),
        ("encoder.patch_size=20", "must give patches within 16 pixels"),
    ],
)
def test_what_cannot_be_gets_one_sentence(train, words, said):
    ended = train(*SMALL, *words.split(), "hydra.run.dir=run")
    assert ended.code == 2 and said in ended.err and not Path("run").exists()


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits_and_is_loaded(train):
    small = (*SMALL, "trainer.validate_every=0", "hydra.run.dir=run")
    assert train(*small, "trainer.max_steps=10").code == 0  # two in the second epoch
    assert train(*small, "trainer.max_steps=5", "hydra.run.dir=two").code == 0
    assert "from step 5" in train(*small, "trainer.max_steps=10", "hydra.run.dir=two").out
    whole, again = (checkpoint.load(Path(f) / "last.pt")["model"] for f in ("run", "two"))
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    encoder, x = aavae.load_encoder("run"), torch.randn(2, 3, 16, 16)
    assert torch.allclose(encoder(x), aavae.load_model("run").encoder(x), atol=1e-6)


def test_a_step_learns_and_says_how_it_spreads():
    trainer = build.trainer(build.compose(SMALL))
    trainer.model.train()
    for epoch in range(2):
        terms = trainer.train_step(next(trainer.loader.epoch(epoch)), measure=True)
    assert torch.isfinite(terms["loss"]) and terms["spread"] > 0


class Grid(nn.Module):
    """Four patches in a row above four others, without any normalisation."""

    output_dim, rows = 10, 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 2, stride=2)

    def grid(self, x: Tensor) -> Tensor:
        return self.conv(x)


def made() -> tuple[CPC, Tensor]:
    torch.manual_seed(0)
    model = CPC(Grid(), offsets=(1, 2), hidden_dim=6, output_dim=5).double()
    return model, torch.randn(1, 8, 3, 8, 8, dtype=torch.float64)


def _gradients(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        model, views = made()
        forked.backward(model, both, views, views[0], None)
        answers.put([p.grad.tolist() for p in model.parameters()])


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one():
    model, views = made()
    model.learn(views, views[0], None)[1]["loss"].backward()
    for found in forked.pair(_gradients):
        for ours, p in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), p.grad, atol=1e-10, rtol=1e-8)
