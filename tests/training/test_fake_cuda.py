"""A step on CUDA without CUDA: tensors of the device are fake, those of the host are real, and the two may not meet."""

import pytest
import torch
from senders import senders
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as real
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aavae import build
from aavae.models import diagnostics
from aavae.runtime import device as machine

CUDA = torch.device("cuda", 0)
SMALL = ("dataset=synthetic", "dataset.size=16", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=4")
SMALL += ("batch_size=8", "schedule.warmup_epochs=1", "epochs=2", "probe=[]")


class HostIsReal(TorchDispatchMode):
    """Within FakeTensorMode: computes what concerns the host alone, and refuses what copies from the device to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = any(isinstance(t, FakeTensor) for t in tree_leaves((args, kwargs)))
        to = kwargs.get("device")
        assert not (there and to is not None and torch.device(to).type == "cpu"), f"{func} reads from the device"
        if there or (to is not None and torch.device(to).type == "cuda"):
            return func(*args, **kwargs)
        with real():
            return func(*args, **kwargs)


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA device that computes nothing, with stand-ins for what needs its driver."""
    for module in senders():
        monkeypatch.setattr(module, "send", lambda t, device: t.to(device))  # no pinned memory
    monkeypatch.setattr(diagnostics, "uniform", lambda shape, generator, device: torch.rand(shape, device=device))
    monkeypatch.setattr(machine, "pick_device", lambda name: CUDA)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.Tensor, "backward", give_gradients)
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    precision = torch.get_float32_matmul_precision()
    with FakeTensorMode(allow_non_fake_inputs=True), HostIsReal():
        yield
    torch.set_float32_matmul_precision(precision)


def give_gradients(loss: torch.Tensor) -> None:
    """Give every parameter that `loss` depends on a gradient; autograd itself asks the driver for its streams."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
        if (parameter := getattr(node, "variable", None)) is not None:
            parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=aavae", "loss.beta=0.1", "trainer.clip=1"),
        ("method=ae", "probe=[online]"),
        ("method=aaae", "trainer.accumulate=2", "trainer.clean_pass=off", "augmentation=digits"),
        ("augmentation.blur_p=0.5", "precision=bf16"),
        ("precision=fp16", "augmentation=crops"),
    ],
    ids=" ".join,
)
def test_a_step_stays_on_the_device(cuda, overrides):
    trainer = build.trainer(build.compose([*SMALL, "precision=fp32", *overrides]))
    trainer.model.train()
    for batch in trainer.loader.epoch(0):
        terms = trainer.train_step(batch, measure=True)
        trainer.meter.add(terms)
        assert {value.device for value in terms.values()} == {CUDA}
    states = [v for state in trainer.optimizer.state.values() for v in state.values()]
    assert states and {value.device for value in (*states, *trainer.model.state_dict().values())} == {CUDA}
    assert ("online_loss" in terms) == bool(trainer.learners)
    with pytest.raises(DataDependentOutputException):
        trainer.meter.read(trainer.step)


# ---- What these tests see -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda there: there.sum().item(),
        lambda there: bool((there > 0).all()),
        lambda there: float(there[0]),
        lambda there: there.cpu(),
        lambda there: there.tolist(),
        lambda there: there + torch.zeros(3),
        lambda there: torch.nn.functional.linear(there, torch.zeros(2, 3)),
        lambda there: torch.stack([there, torch.zeros(3)]),
        lambda there: there[there > 0],
    ],
)
def test_what_reads_back_or_mixes_devices_is_noticed(cuda, wrong):
    with pytest.raises((RuntimeError, AssertionError)):
        wrong(torch.zeros(3, device=CUDA))
