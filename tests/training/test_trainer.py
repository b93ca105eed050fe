"""The step itself, without files or Hydra's folders."""

import pytest
import torch

from aavae import build
from aavae.runtime import device
from aavae.runtime.device import Precision
from aavae.runtime.processes import Processes

TINY = ("dataset=synthetic", "dataset.size=32", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8")

PLAIN_SGD = ("optimizer=sgd", "optimizer.kwargs.momentum=0", "optimizer.kwargs.nesterov=false")


def trainer(*overrides: str, processes: Processes | None = None):
    return build.trainer(build.compose([*TINY, "batch_size=16", "schedule.warmup_epochs=0", *overrides]), processes)


def first_batch(of):
    return next(iter(of.loader.epoch(0)))


@pytest.mark.parametrize("method", [pytest.param("ae", marks=pytest.mark.slow), "aavae"])
def test_one_batch_can_be_learned_by_heart(method):
    settings = ("optimizer.lr=5e-3", "trainer.clean_pass=off", "batch_size=2", "latent_dim=16", "seed=1")
    t = trainer(f"method={method}", "augmentation=none", *settings)
    t.model.train()
    batch = first_batch(t)
    losses = [t.train_step(batch)["loss"].item() for _ in range(150)]
    least = 0.0 if method == "ae" else 0.5 * 1.8378770664093453 * 3 * 16**2  # ½ log 2π a pixel, at σ = 1
    assert losses[-1] - least < 0.15 * (losses[0] - least)


def test_a_run_sees_the_same_numbers_in_one_process_and_in_two():
    one, two = trainer(), [trainer(processes=Processes(rank, 2)) for rank in (0, 1)]
    draws, noise = one._draw(16)
    halves = [t._draw(16) for t in two]
    assert torch.equal(noise, torch.cat([half[1] for half in halves]))
    for name, values in draws[0].items():
        assert torch.equal(values, torch.cat([half[0][0][name] for half in halves])), name
    batches = [first_batch(t).clean for t in two]
    assert torch.equal(first_batch(one).clean, torch.cat(batches))


def test_dropout_draws_for_the_batch_of_all_processes():
    def drawn(processes: Processes | None = None) -> torch.Tensor:
        with torch.random.fork_rng():
            trainer(processes=processes)._draw(16)
            return torch.rand(5)

    assert torch.equal(drawn(Processes(0, 2)), drawn()) and torch.equal(drawn(Processes(1, 2)), drawn())
    words = ("encoder=timm", "+encoder.kwargs.drop_path_rate=0.1", "trainer.accumulate=2")
    shared = [m for m in trainer(*words, processes=Processes(1, 2)).model.modules() if hasattr(m, "drop_prob")]
    assert shared and {(m.rows, m.processes.rank) for m in shared} == {(16 // 2 // 2, 1)}


def test_steps_that_fp16_skips_do_not_count_in_the_gradient_s_norm(monkeypatch):
    monkeypatch.setattr(device, "pick_precision", lambda *_: Precision("fp16", "cpu", torch.float16))
    few = ("batch_size=2", "encoder.channels=2", "decoder.channels=2", "decoder.head_channels=2")  # slow on a CPU
    t = trainer("trainer.clip=1", "optimizer.lr=1e-6", *few)
    t.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)  # the first steps overflow, as on CUDA
    norms = []
    for _ in range(24):
        terms = t.train_step(first_batch(t))
        t.meter.add(terms)
        norms.append(terms["grad_norm"].item())
    finite = [norm for norm in norms if norm < float("inf")]
    assert 0 < len(finite) < 24
    means, steps, _ = t.meter.read(t.step)
    assert steps == 24 and means["grad_norm"] == pytest.approx(sum(finite) / len(finite))
    t.meter.add({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(float("inf"))})
    assert t.meter.read(t.step)[0] == {"loss": 1.0}  # nothing to tell of it


def test_a_batch_in_parts_gives_the_gradient_of_the_whole():
    # An encoder without BatchNorm, which would see the parts; the projection's is put to eval mode.
    def gradients(accumulate: int) -> list[torch.Tensor]:
        t = trainer(f"trainer.accumulate={accumulate}", *PLAIN_SGD, "optimizer.lr=0", "trainer.clean_pass=off")
        t.model.eval()
        seen: list[torch.Tensor] = []
        t.optimizer.register_step_pre_hook(
            lambda *_: seen.extend(p.grad.clone() for p in t.model.parameters() if p.grad is not None)
        )
        t.train_step(first_batch(t))
        return seen

    for whole, parts in zip(gradients(1), gradients(4), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


def test_clipping_bounds_the_gradient_and_reports_what_it_was():
    t = trainer("trainer.clip=0.5", *PLAIN_SGD, "optimizer.lr=1")
    before = [p.detach().clone() for p in t.model.parameters()]
    norm = t.train_step(first_batch(t))["grad_norm"].item()
    moved = torch.cat([(p - b).flatten() for p, b in zip(t.model.parameters(), before, strict=True)]).norm().item()
    assert norm > 0.5 and moved == pytest.approx(0.5, rel=1e-4)


def test_the_clean_pass_moves_batchnorm_twice_and_nothing_else():
    def after(clean_pass: str):
        t = trainer(f"trainer.clean_pass={clean_pass}", "optimizer.lr=0")
        t.model.train()
        t.train_step(first_batch(t))
        return t.model.state_dict()

    with_pass, without = after("every_step"), after("off")
    counts = {k: (with_pass[k].item(), without[k].item()) for k in with_pass if k.endswith("num_batches_tracked")}
    assert counts and set(counts.values()) == {(2, 1)}
    assert not torch.equal(with_pass["encoder.bn1.running_mean"], without["encoder.bn1.running_mean"])
    assert all(torch.equal(with_pass[k], without[k]) for k in with_pass if k.endswith("weight"))


def test_the_fast_recipe_computes_what_the_reference_does():
    reference = ("trainer=reference", "precision=fp32")
    fast, slow = (trainer(*o) for o in ((), reference))
    assert fast.settings.channels_last and not slow.settings.channels_last
    for _ in range(3):
        losses = [t.train_step(first_batch(t))["loss"].item() for t in (fast, slow)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_learning_rate_and_warmup_scale_with_the_batch():
    cfg = ("optimizer.scale_with_batch_size=true", "optimizer.lr=1e-3", "optimizer.reference_batch=64")
    t = trainer(*cfg, "schedule.warmup_epochs=8", "batch_size=16")
    assert t.base_lrs == [pytest.approx(1e-3 / 4)] and t.schedule.warmup_steps == 2 * t.loader.steps_per_epoch


def test_reduced_precision_keeps_the_loss_in_float32():
    t = trainer("precision=bf16")
    terms = t.train_step(first_batch(t), measure=True)
    full = trainer("precision=fp32").train_step(first_batch(t), measure=True)
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert terms["loss"].item() == pytest.approx(full["loss"].item(), rel=1e-2)


def test_looking_at_the_model_changes_nothing_in_it():
    t = trainer("trainer.clean_pass=off")
    before = {k: v.clone() for k, v in t.model.state_dict().items()}  # parameters and buffers
    t.inspector.validate()
    t.inspector.representations(lambda: t.untrained_encoder)["h_untrained"]
    assert all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items())
