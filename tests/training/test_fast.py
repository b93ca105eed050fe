"""The fast recipe computes what the plain one does: each thing it does otherwise, alone, and all of them together."""

import functools
import itertools
import math

import pytest
import torch
from torch._dynamo.utils import counters

from aavae import build
from aavae.errors import UserError

NETWORKS = ("encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8", "batch_size=16", "schedule.warmup_epochs=0")

# The plain recipe, and what the fast one does in its stead; both pass the clean images through the encoder.
PLAIN = {
    "skip": ("decoder.skip_order=official",),
    "layout": ("trainer.channels_last=false",),
    "optimizer": ("+optimizer.kwargs.fused=false", "+optimizer.kwargs.foreach=false"),
    "compile": ("trainer.compile=false",),
}
FAST = {
    "skip": ("decoder.skip_order=commuted",),
    "layout": ("trainer.channels_last=true",),
    "optimizer": ("+optimizer.kwargs.fused=true",),
    "compile": ("trainer.compile=true",),
}


def trainer(*overrides: str, networks: tuple[str, ...] = NETWORKS):
    t = build.trainer(build.compose(["dataset=synthetic", "dataset.size=64", "probe=[]", *networks, *overrides]))
    t.model.train()
    return t


def three_steps(
    recipe: dict[str, tuple[str, ...]], measure: bool = False, networks: tuple[str, ...] = NETWORKS
) -> tuple[list[float], torch.Tensor]:
    """The losses, and the gradient of the first step; with `measure` the diagnostics of each step are computed, too."""
    words = [override for overrides in recipe.values() for override in overrides]
    t = trainer("precision=fp32", *words, networks=networks)
    gradients: list[torch.Tensor] = []
    t.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None]))
    )
    batches = itertools.islice(t.loader.epoch(0), 3)
    losses = [t.train_step(batch, measure)["loss"].item() for batch in batches]
    return losses, gradients[0]


@pytest.fixture(scope="module")
def plain():
    return three_steps(PLAIN)


@pytest.mark.parametrize("what", [["skip"], ["layout"], ["optimizer"], ["skip", "layout", "optimizer"]], ids=", ".join)
def test_what_is_faster_computes_the_same(plain, what):
    agree(three_steps(PLAIN | {name: FAST[name] for name in what}), plain)


@pytest.mark.slow
def test_compiled_it_computes_the_same(plain, monkeypatch):
    # Without the C++ compiler, whose two minutes would test torch: `make bench` has the ladder's compiled rung.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    agree(three_steps(FAST), plain)
    assert counters["stats"]["unique_graphs"] >= 2  # the step, and the clean pass


COMPARING = ("model.hidden_dim=16", "model.output_dim=8")
OTHERS = {
    "dino": (*COMPARING, "model.prototypes=32", "encoder=resnet_tiny"),
    "swav": (*COMPARING, "model.prototypes=12", "model.queue_size=32", "encoder=resnet_tiny"),
    "lejepa": (*COMPARING, "model.directions=16", "encoder=resnet_tiny"),
    "mae": ("encoder=vit_tiny", "model.decoder_dim=32", "model.decoder_depth=1", "model.decoder_heads=2"),
}  # SparK does as well, and takes a minute: its hooks split the graph at each convolution


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_compiled_methods_of_others_compute_the_same(method, monkeypatch):
    networks = ("batch_size=16", "schedule.warmup_epochs=0", f"method={method}", *OTHERS[method])
    off = {"clean pass": ("trainer.clean_pass=off",)}
    expected = three_steps(off, networks=networks)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    agree(three_steps(off | {"compile": FAST["compile"]}, networks=networks), expected)
    assert counters["stats"]["unique_graphs"] >= 1


GRAPHS = FAST | {"graphs": ("trainer.cuda_graphs=true", "device=cuda")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_as_cuda_graphs_it_computes_the_same(plain):
    agree(three_steps(GRAPHS), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("also", [("trainer.accumulate=2",), ("method=ae",), ("trainer.clean_pass=off",)], ids=str)
def test_graphs_keep_what_a_step_still_needs(also):
    on_cuda = {"device": ("device=cuda",), "also": (*also, "trainer.clip=1e9")}
    agree(three_steps(GRAPHS | on_cuda, measure=True), three_steps(PLAIN | on_cuda, measure=True))


def agree(found: tuple[list[float], torch.Tensor], plain: tuple[list[float], torch.Tensor]) -> None:
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    # Of the first step alone: Adam divides by the gradient's own size, and rounding grows from step to step.
    assert (found[1] - plain[1]).norm() < 1e-5 * plain[1].norm()


def test_the_default_is_all_that_is_fast_but_what_has_to_be_asked_for():
    assert three_steps({})[0] == three_steps(FAST | {"compile": PLAIN["compile"]})[0]


@pytest.mark.slow
def test_bf16_learns_along_the_same_curve_within_two_percent_of_what_is_left_to_learn():
    def curve(precision: str) -> torch.Tensor:
        t = trainer(f"precision={precision}", "optimizer.lr=1e-3")
        nll = torch.stack([t.train_step(batch)["nll"].detach() for e in range(10) for batch in t.loader.epoch(e)])
        least = 0.5 * math.log(2 * math.pi) * 3 * 16**2  # of a perfect reconstruction, σ = 1
        return nll.view(-1, 8).mean(1) - least

    full, half = curve("fp32"), curve("bf16")
    assert not torch.equal(full, half) and full[-1] < 0.7 * full[0]
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.cuda_graphs=true"], "trainer.cuda_graphs=true needs trainer.compile=true"),
        (["trainer.cuda_graphs=true", "trainer.compile=true", "device=cpu"], "needs a CUDA device; this run is on cpu"),
    ],
)
def test_graphs_are_refused_where_there_can_be_none(overrides, words):
    with pytest.raises(UserError, match=words):
        trainer(*overrides)
