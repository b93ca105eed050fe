"""Schedules: start, peak, end; and torch's own schedulers step by step."""

import pytest
import torch

from aavae.errors import UserError
from aavae.training.schedules import Schedule, schedule


def factors(scheduler, optimizer, steps):
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def test_cifar10_warms_up_per_step_for_1750_steps_and_then_stays():
    paper = schedule("constant", 10, 45_000 // 256, 3200)
    assert (paper.warmup_steps, paper.total_steps) == (1750, 560_000)
    assert [paper(s) for s in (0, 1, 875, 1749)] == [0, 1 / 1750, 0.5, 1749 / 1750]
    assert {paper(s) for s in (1750, 100_000, 559_999)} == {1.0}


def test_stl10_warms_up_for_1850_steps():
    assert schedule("constant", 10, 95_000 // 512, 3200).warmup_steps == 1850


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_start_peak_and_end(shape):
    s = Schedule(shape, warmup_steps=10, total_steps=110)
    assert (s(0), s(5), s(10)) == (0.0, 0.5, 1.0)
    assert s(60) == pytest.approx(0.5)
    assert s(110) == pytest.approx(0.0) and s(10_000) == pytest.approx(0.0)
    assert all(s(i) > s(i + 1) > 0 for i in range(10, 109))


def test_cosine_equals_torch_after_the_warm_up(optimizer):
    theirs = factors(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40), optimizer, 40)
    assert [Schedule("cosine", 7, 47)(7 + i) for i in range(40)] == pytest.approx(theirs, abs=1e-9)


def test_linear_equals_torch_after_the_warm_up(optimizer):
    theirs = factors(torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=40), optimizer, 40)
    assert [Schedule("linear", 7, 47)(7 + i) for i in range(40)] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_without_warm_up_the_first_step_is_at_the_peak(shape):
    assert schedule(shape, 0, 10, 5)(0) == 1.0


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
def test_a_run_shorter_than_its_warm_up_only_warms_up(shape):
    s = schedule(shape, 10, 5, 2)
    assert [s(i) for i in range(10)] == [i / 50 for i in range(10)]
    assert schedule(shape, 0, 5, 0)(0) in (0.0, 1.0)  # epochs=0 is legal


def test_only_a_constant_schedule_can_be_extended():
    assert [Schedule(shape, 1, 10).extendable for shape in ("constant", "cosine", "linear")] == [True, False, False]
    short, long = schedule("constant", 2, 5, 4), schedule("constant", 2, 5, 40)
    assert [short(i) for i in range(20)] == [long(i) for i in range(20)]


def test_fractions_of_an_epoch_are_legal():
    assert schedule("constant", 0.5, 100, 1).warmup_steps == 50


def test_bad_values_get_one_clear_message():
    with pytest.raises(UserError, match="one of constant, cosine, linear, not 'cosin'"):
        schedule("cosin", 1, 1, 1)
    with pytest.raises(UserError, match="warmup_epochs must be 0 or more, not -1"):
        schedule("constant", -1, 1, 1)
