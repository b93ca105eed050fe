"""What is wrong is said once, with its number; what is only unusual is not said."""

import json
import math
import random
from pathlib import Path

import pytest

from aavae import build
from aavae.training import health
from aavae.training.health import Health
from aavae.weights import checkpoint


def said(
    metrics: list[dict[str, float]], every: int = 50, new: Health | None = None
) -> list[tuple[int, str, str | None]]:
    """What is said of lines `every` steps apart: step, name and sentence, None for what is over."""
    own = new or Health(batch_size=128, steps_per_epoch=500, warmup_steps=100)
    lines = enumerate(metrics, 1)
    return [(i * every, *found) for i, line in lines for found in own.look(i * every, i * every / 500, line).items()]


def losses(*values: float) -> list[dict[str, float]]:
    return [{"train/loss": value} for value in values]


# ---- A metric and a limit -----------------------------------------------------------------------------------------

BOUNDS = {
    "collapse": ("train/spread", 0.003, 0.03),
    "rank": ("train/rank", 1.2, 3.2),
    "noise": ("train/sigma_mean", 5e-4, 0.19),
    "explosion": ("train/mu_norm", 2e3, 10.0),
    "latents": ("val/active_units", 0.0, 12.0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_metric_beyond_its_limit_is_said_once_and_again_after_it_was_well(name):
    metric, bad, good = BOUNDS[name]
    rule = next(rule for rule in health.bounds() if rule.name == name)
    many = rule.lines + 3
    found = said([{metric: value} for value in [good, bad, good, *[bad] * many, good, *[bad] * many]])
    first, over = 3 + rule.lines, 4 + many
    again = over + rule.lines
    assert [(step, n) for step, n, _ in found] == [(50 * i, name) for i in (first, over, again)]
    assert found[1][2] is None
    sentence = found[0][2]
    assert sentence.startswith(f"warning: {name} at step {50 * first:,} (epoch {first / 10:g}): ")
    assert f"{bad:.3g}" in sentence and f"{rule.limit:g}" in sentence


@pytest.mark.parametrize("name", BOUNDS)
def test_what_hovers_at_a_limit_is_not_said_again_and_again(name):
    metric, bad, good = BOUNDS[name]
    rule = next(rule for rule in health.bounds() if rule.name == name)
    hovering = rule.limit * (1.5 if good > bad else 0.7)
    assert len(said([{metric: value} for _ in range(4) for value in [*[bad] * rule.lines, hovering]])) == 1


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_well_missing_or_not_a_number_is_not_said(name):
    metric, bad, good = BOUNDS[name]
    assert not said([{metric: good}] * 20 + [{metric: bad}, {metric: good}] * 10)
    assert not said([{}] * 20) and not said([{metric: math.nan}] * 20)


# ---- A loss that does not move ------------------------------------------------------------------------------------


def noise(n: int, level: float, scale: float) -> list[float]:
    draws = random.Random(0)
    return [level + draws.gauss(0, scale) for _ in range(n)]


@pytest.mark.parametrize("loss", [noise(60, 1000, 5), noise(60, -1e-3, 1e-4), [6.93] * 60, noise(60, 5.5, 1e-3)])
def test_a_loss_that_has_not_moved_is_said_once(loss):
    (step, name, sentence), *more = said(losses(*loss))
    assert (name, more) == ("flat", [])
    assert step - 100 >= 500 and f"the loss, {loss[step // 50 - 1]:.4g}," in sentence


@pytest.mark.parametrize(
    "loss",
    [
        [1000 * math.exp(-i / 30) + e for i, e in enumerate(noise(200, 0, 5))],
        # A plateau that is reached at once: of contrastive losses, of SimSiam near −1.
        [5.5, 4.6, *noise(200, 4.0, 0.01)],
        [-0.01, -0.5, -0.8, *noise(200, -0.98, 0.002)],
        # A queue that fills first: MoCo's.
        [6.0, 7.1, 7.05, 7.0, *(6.95 - 0.002 * i + e for i, e in enumerate(noise(100, 0, 0.01)))],
        # Slow, yet not noise: DINO's first epochs under a long warm-up.
        [11.09 - 5e-5 * i + e for i, e in enumerate(noise(400, 0, 1e-4))],
    ],
)
def test_a_loss_that_has_moved_may_be_flat(loss):
    assert not said(losses(*loss))


def test_a_few_steps_say_nothing_of_a_loss():
    assert not said(losses(*noise(19, 1000, 5)))
    assert not said(losses(*noise(550, 1000, 5)), every=1)  # 450 steps after the warm-up


def test_a_resumed_run_knows_that_its_loss_has_moved():
    before, after = Health(128, 500, 100), Health(128, 500, 100)
    assert not said(losses(5.5, 4.6, *noise(50, 4.0, 0.01)), new=before)
    after.restore(before.state())
    old = Health(128, 500, 100)
    old.restore(None)  # a checkpoint of before there was a state
    for own in (after, old):
        assert not [own.look(50 * i, 0.1 * i, line) for i, line in enumerate(losses(*noise(60, 4, 0.01)), 53)
                    if own.look(50 * i, 0.1 * i, line)]  # fmt: skip


# ---- Speed --------------------------------------------------------------------------------------------------------


def speeds(*parts: tuple[int, float]) -> list[dict[str, float]]:
    return [{"images_per_second": speed} for n, speed in parts for _ in range(n)]


def test_a_speed_that_has_halved_for_a_minute_is_said():
    (step, name, sentence), over = said(speeds((40, 1000.0), (20, 450.0), (5, 900.0)))
    # A line is 50 steps of 128 images, which take 14 seconds then.
    assert (step, name) == (50 * 45, "speed")
    assert "450 images/s" in sentence and "1,000" in sentence and "71 seconds" in sentence
    assert over == (50 * 61, "speed", None)


@pytest.mark.parametrize(
    "slow",
    [
        speeds((10, 100.0), (40, 1000.0)),  # the first epoch compiles
        speeds((9, 3000.0), (60, 1000.0)),  # the first epoch read what was in memory
        speeds((40, 1000.0), (4, 300.0), (40, 1000.0)),  # another program came and went
        speeds((40, 1000.0), (1, 1.0), (40, 1000.0)),  # a laptop that slept
        speeds((40, 1000.0), (40, 600.0)),
        speeds((40, 100_000.0), (60, 40_000.0)),  # 60 lines in ten seconds
    ],
)
def test_a_pause_a_first_epoch_or_less_than_half_is_not(slow):
    assert not said(slow)


# ---- In a run -----------------------------------------------------------------------------------------------------

SMALL = ("trainer=debug", "trainer.log_every=1", "probe=[]", "hydra.run.dir=run")


def test_a_healthy_run_says_nothing(train):
    ended = train(*SMALL, "trainer.max_steps=8")
    assert ended.code == 0 and "warning" not in ended.out
    assert json.loads(Path("run/status.json").read_text())["warnings"] == []
    assert "health/" not in Path("run/metrics.jsonl").read_text()


def test_a_warning_is_on_the_screen_in_the_files_and_not_repeated_by_a_resumed_run(train, runs, monkeypatch):
    monkeypatch.setattr(health, "FAR", 1e-6)
    first = train(*SMALL, "trainer.max_steps=5")
    assert first.out.count("warning: explosion at step 3") == first.out.count("warning:") == 1
    assert "above 1e-06" in first.out
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["health/explosion"]) for x in lines if "health/explosion" in x] == [(3, 1.0)]
    (warning,) = json.loads(Path("run/status.json").read_text())["warnings"]
    assert warning in first.out
    assert warning.removeprefix("warning: ") in runs("show", "run").out
    assert checkpoint.load(Path("run/last.pt"))["health"]["said"] == {"explosion": warning}
    again = train(*SMALL, "trainer.max_steps=9")
    assert again.code == 0 and "warning" not in again.out
    assert json.loads(Path("run/status.json").read_text())["warnings"] == [warning]


def test_a_malformed_state_is_a_damaged_checkpoint(train):
    assert train(*SMALL, "trainer.max_steps=2").code == 0
    state = checkpoint.load(Path("run/last.pt"))
    checkpoint.save(Path("run/last.pt"), state | {"health": {"said": {"flat": 1}, "losses": [], "moved": True}})
    for previous in Path("run").glob("previous.pt"):
        previous.unlink()
    ended = train(*SMALL, "trainer.max_steps=4")
    assert ended.code == 2 and "health must be what was said" in ended.err


def test_what_saving_takes_is_not_slowness(monkeypatch):
    t = build.trainer(build.compose(["trainer=debug", "probe=[]"]))
    marks = []
    monkeypatch.setattr(t.meter, "restart", lambda step: marks.append(step))
    from aavae.loggers import Loggers
    from aavae.loggers.screen import Reporter
    from aavae.runtime.signals import Signals
    from aavae.training.loop import Loop

    loop = Loop(t, Path("."), Loggers({}), Reporter(quiet=True), Signals(), {})
    monkeypatch.setattr(loop, "_time_to_save", lambda: True)
    saved = []
    monkeypatch.setattr(loop, "save", lambda: saved.append(t.step))
    monkeypatch.setattr(loop, "_log", lambda: None)
    monkeypatch.setattr(loop, "_close_epoch", lambda: None)
    loop._run_epoch()
    assert saved and set(saved) <= set(marks)
