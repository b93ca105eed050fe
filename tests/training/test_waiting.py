"""Nothing blocks the device: steps on the meta device, from which nothing can be read back."""

import pytest
import torch
from senders import senders
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aavae import build
from aavae.datasets.downloads import STL10
from aavae.models import diagnostics
from aavae.runtime.randomness import generator_for

SMALL = ("dataset=synthetic", "dataset.size=24", "dataset.image_size=16", "encoder=resnet_tiny", "decoder=resnet_tiny")
DECODING = ("aavae", "aavae_mean", "vae", "ae", "aaae", "aaae_denoise", "dae")
SMALL += ("latent_dim=4", "batch_size=8", "schedule.warmup_epochs=1", "epochs=2")


class NeverWaits(TorchDispatchMode):
    """Raises AssertionError at what makes CUDA wait and passes on the meta device all the same."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        host, device = ([t for t in tensors if t.is_meta == there] for there in (False, True))
        name = func._schema.name.removeprefix("aten::")
        if name == "_to_copy" and kwargs.get("device", torch.device("cpu")).type == "meta":
            assert not host or kwargs.get("non_blocking"), "a copy to the device waits, unless send makes it"
        elif name == "lift_fresh":
            assert not device, "a tensor is made on the device from Python's numbers"
        elif name in ("index_put", "index_put_", "index"):
            assert not any(t.dtype is torch.bool for t in device[1:]), "the device is asked how many a mask chooses"
        # Numbers without dimensions travel as arguments of a kernel.
        assert not (device and any(t.ndim for t in host)), f"{name} copies a tensor of the host to the device"
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def meta_as_cuda(monkeypatch):
    """`send` copies to the meta device as it does to CUDA, without waiting."""
    for module in senders():
        monkeypatch.setattr(module, "send", lambda t, device: t.to(device, non_blocking=True))


def on_meta(*overrides: str):
    return on_meta_of(*SMALL, *overrides)


def on_meta_of(*overrides: str):
    trainer = build.trainer(build.compose([*overrides]), meta=True)
    trainer.model.train()
    return trainer


def first_step(trainer, epoch: int) -> None:
    trainer.meter.add(trainer.train_step(next(trainer.loader.epoch(epoch))))


def watch(trainer) -> None:
    """The beginning of a second epoch, after a step that may send what is sent once."""
    first_step(trainer, 0)
    with NeverWaits():
        first_step(trainer, 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=vae", "loss.beta=0.1"),
        ("method=aavae", "loss.beta=0.1", "loss.kl=mc", "loss.learn_scale=true", "trainer=reference"),
        ("method=aavae_mean", "augmentation=crops"),
        ("method=ae", "probe=[online]"),
        ("method=aaae", "loss.reduction=half_sum", "trainer.accumulate=2"),
        ("augmentation.blur_p=0.5", "augmentation.strength=1", "dataset.image_size=32", "precision=bf16"),
        ("augmentation=digits", "trainer.clip=1", "trainer.clean_pass=off"),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_a_step_reads_nothing_back_from_the_device(overrides):
    watch(on_meta(*overrides))


@pytest.mark.parametrize("method", build.options("method"))
def test_no_method_waits(method):
    left_out = {"cpc": "encoder", "mae": "encoder"}.get(method, "none"), *([] if method in DECODING else ["decoder"])
    words = [word for word in SMALL if not word.startswith(left_out)]
    watch(on_meta_of(*words, f"method={method}", "dataset.image_size=32"))


@pytest.mark.parametrize("optimizer", ["sgd", "lamb", "lars"])
def test_no_optimizer_waits(optimizer):
    watch(on_meta(f"optimizer={optimizer}", "optimizer.weight_decay=0.01", "trainer.clean_pass=off"))


def test_the_resized_target_of_stl_reads_nothing_back():
    trainer = on_meta("dataset.image_size=96", "augmentation.blur_p=0.5", "encoder.stem=stl")
    trainer.dataset.target = STL10().target
    watch(trainer)


def test_diagnostics_leave_the_waiting_to_the_log():
    trainer = on_meta("loss.beta=0.1")
    batch = next(iter(trainer.loader.epoch(0)))
    x = trainer.dataset.normalize(batch.clean)
    _, std = trainer.dataset.constants(x)
    with torch.no_grad():
        clean = trainer.model.encode(x)
        output = trainer.model(x, torch.empty(8, 4, device="meta"))
        with NeverWaits():
            of_step = diagnostics.of_step(trainer.model, output, x, clean, std, generator_for(0))
    assert {"bpd_8bit", "cos_sim"} <= set(of_step)


def test_validation_waits_for_no_batch():
    trainer = on_meta("loss.beta=0.1", "augmentation.blur_p=0.5")
    validator, images = trainer.inspector.validator, trainer.dataset["pretrain_val"].images
    trainer.dataset.normalize(images / 255)  # sends mean and std
    with torch.no_grad(), NeverWaits():
        validator._batch(trainer.model.eval(), images, 0, trainer.precision)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("overrides", [("loss.beta=0.1", "augmentation.blur_p=0.5"), ("method=ae", "probe=[online]")])
def test_cuda_itself_notices_no_waiting(overrides, monkeypatch):
    monkeypatch.undo()
    trainer = build.trainer(build.compose([*SMALL, "device=cuda", "trainer.clip=1", *overrides]))
    trainer.model.train()
    first_step(trainer, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        first_step(trainer, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- What these tests see -----------------------------------------------------------------------------------------


def there(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize(
    "waits",
    [
        lambda: there(3).sum().item(),
        lambda: bool((there(3) > 0).all()),
        lambda: there(3).cpu(),
        lambda: (there(3) > 0).nonzero(),
        lambda: there(3)[there(3) > 0],
        lambda: there(3).index_put_((there(3) > 0,), there(2)),
        lambda: there(3)[[0, 2]],
        lambda: there(3)[torch.tensor([0, 2])],
        lambda: there(3).new_tensor([1.0, 2.0]),
        lambda: torch.tensor(1.0, device="meta"),
        lambda: torch.zeros(3).to("meta"),
        lambda: there(3).copy_(torch.zeros(3)),
        lambda: there(3) + torch.zeros(3),
    ],
)
def test_every_kind_of_waiting_is_noticed(waits):
    with NeverWaits(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        waits()


def test_what_does_not_wait_is_let_pass():
    with NeverWaits():
        sent = torch.zeros(3).to("meta", non_blocking=True)
        torch.where(sent > 0, sent, 1.0) * torch.tensor(2.0)
        sent.masked_fill_(sent > 0, 0.0)[torch.arange(2, device="meta")]
