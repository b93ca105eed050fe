"""Several processes learn what one does: gradients, losses, and BatchNorm's statistics."""

import copy

import forked
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor

from aavae import build
from aavae.errors import UserError
from aavae.models import batchnorm
from aavae.runtime.processes import Processes
from aavae.training.parallel import Parallel

CPU = torch.device("cpu")
SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "encoder.channels=4", "decoder=resnet_tiny", "decoder.channels=4")
METHODS = ("aavae", "aavae_mean", "aaae", "vae")  # the second has a head that never gets gradients
FROZEN = ("dino", "swav")
BATCH = 8


def made(method: str):
    """A model in float64, views, clean images, and noise."""
    model = build.model(build.compose([*SMALL, "latent_dim=6", f"method={method}"])).double()
    draw = torch.Generator().manual_seed(1)
    x, view = torch.randn(2, BATCH, 3, 16, 16, generator=draw, dtype=torch.float64)
    noise = torch.randn(BATCH, model.noise_dim, generator=draw, dtype=torch.float64) if model.noise_dim else None
    return model, view[None], x, noise


def found(model, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients, losses and buffers by name."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {name: value.detach() for name, value in terms.items()} | dict(model.named_buffers())


def told(tensors: dict[str, Tensor]) -> dict[str, list]:
    return {name: tensor.double().tolist() for name, tensor in tensors.items()}


def together(method: str, processes: Processes) -> dict[str, Tensor]:
    model, views, x, noise = made(method)
    terms = forked.backward(model, processes, views, x, noise)
    return found(model, {name: processes.average(value.detach().clone()) for name, value in terms.items()})


def apart(method: str, processes: Processes, images: int | None = None, parts: int = 1) -> dict[str, Tensor]:
    """BatchNorm of each process's own images, or of `images` at a time; the batch of a process in `parts`."""
    model, views, x, noise = made(method)
    batchnorm.share(model, Processes(), images)
    mine = processes.share(BATCH)
    learn = Parallel(model, model.learn, processes, CPU, parts)
    for i, rows in enumerate(torch.arange(BATCH)[mine].chunk(parts)):
        with learn.part(i):
            _, terms = learn(views[:, rows], x[rows], None if noise is None else noise[rows])
            (terms["loss"] / parts).backward()
    return found(model, {})


def unfrozen(method: str, processes: Processes) -> dict[str, Tensor]:
    """Weights after four steps of SGD, of which the first two leave the prototypes as they are."""
    words = (*SMALL[:3], f"method={method}", "model.frozen=0.5", "model.hidden_dim=8", "model.output_dim=4")
    words += ("model.prototypes=6", *(["model.queue_size=16"] if method == "swav" else []))
    torch.manual_seed(0)  # for the heads
    model = build.model(build.compose([*words])).double()
    views = torch.randn(4, 2, BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.processes, mine = processes, processes.share(BATCH)
    batchnorm.share(model, processes)
    model.begin(len(views), BATCH)
    learn, optimizer = Parallel(model, model.learn, processes, CPU), torch.optim.SGD(model.parameters(), 0.1)
    for step, pair in enumerate(views, 1):
        optimizer.zero_grad()
        with learn.part(0):
            learn(pair[:, mine], pair[0, mine], None)[1]["loss"].backward()
        optimizer.step()
        model.after_step(step)
    return dict(model.named_parameters())


def same(ours: dict[str, list], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, values in ours.items():
        value = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(
            value, expected[name].double(), atol=1e-10, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def _both(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        synchronised = {method: told(together(method, both)) for method in METHODS}
        plain = {method: told(apart(method, both)) for method in METHODS}
        in_parts = told(apart("aavae", both, parts=2))
        later = {method: told(unfrozen(method, both)) for method in FROZEN}
        answers.put((rank, synchronised, plain, in_parts, later))


@pytest.fixture(scope="module")
def answers():
    return sorted(forked.pair(_both), key=lambda answer: answer[0])


@pytest.mark.parametrize("method", METHODS)
def test_with_batchnorm_synchronised_two_processes_are_one(answers, method):
    alone = together(method, Processes())
    for _, synchronised, *_ in answers:
        same(synchronised[method], alone)


@pytest.mark.parametrize("method", METHODS)
def test_without_it_two_processes_are_one_with_a_virtual_batch_of_half_the_images(answers, method):
    alone = apart(method, Processes(), images=BATCH // 2)
    same(answers[0][2][method], alone)
    buffers = {name for name, _ in made(method)[0].named_buffers()}
    others = {name: values for name, values in answers[1][2][method].items() if name not in buffers}
    same(others, {name: tensor for name, tensor in alone.items() if name not in buffers})


@pytest.mark.parametrize("method", FROZEN)
def test_prototypes_that_are_frozen_at_first_are_learned_by_several_processes_too(answers, method):
    alone = unfrozen(method, Processes())
    for *_, later in answers:
        same(later[method], alone)


def test_gradients_of_parts_are_averaged_once(answers):
    expected = {}
    for *_, in_parts, _ in answers:
        gradients = {name: values for name, values in in_parts.items() if "running" not in name and "num_b" not in name}
        expected = expected or apart("aavae", Processes(), images=2, parts=1)
        same(gradients, {name: expected[name] for name in gradients})


def test_shared_batchnorm_is_torch_s_in_eval_mode_and_alone():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 3)
    for kind, images in ((torch.nn.BatchNorm2d, x), (torch.nn.BatchNorm1d, x[:, :, 0, 0])):
        plain = kind(4)
        with torch.no_grad():
            plain.weight.uniform_(), plain.bias.uniform_()
        shared = copy.deepcopy(plain)
        keys = list(shared.state_dict())
        batchnorm.share(shared, Processes(), 6)
        assert isinstance(shared, kind) and list(shared.state_dict()) == keys
        torch.testing.assert_close(shared(images), plain(images))
        torch.testing.assert_close(shared.running_var, plain.running_var)
        torch.testing.assert_close(shared.eval()(images), plain.eval()(images))


def test_timm_s_layer_with_an_activation_has_its_values_in_parts_too():
    torch.manual_seed(0)
    x, plain = torch.randn(6, 4, 3, 3), BatchNormAct2d(4, act_layer="silu")
    with torch.no_grad():
        plain.weight.uniform_(), plain.bias.uniform_()
    shared = copy.deepcopy(plain)
    batchnorm.share(shared, Processes(), 3)
    expected = torch.cat([copy.deepcopy(plain)(part) for part in x.split(3)])
    torch.testing.assert_close(shared(x), expected)
    plain(x[:3])
    torch.testing.assert_close(shared.running_mean, plain.running_mean)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


def test_every_batchnorm_of_an_encoder_of_timm_s_is_shared():
    words = ("encoder=timm", "encoder.name=efficientnet_b0", "decoder=shuffle", "dataset.image_size=32")
    model = build.model(build.compose(["dataset=synthetic", "latent_dim=6", *words]))
    batchnorm.share(model, Processes(0, 2))
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(layers) > 40 and {layer.processes.world for layer in layers} == {2}


def test_a_batchnorm_that_cannot_be_shared_is_refused():
    class Own(torch.nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match=r"Own can be neither .* say trainer.sync_batchnorm=false"):
        batchnorm.share(torch.nn.Sequential(Own(4)), Processes(0, 2))
    batchnorm.share(Own(4), Processes())  # nothing is shared


def test_a_copy_takes_its_statistics_alone_whatever_training_shares():
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, 3)
    plain = torch.nn.Sequential(torch.nn.BatchNorm2d(4))
    shared = copy.deepcopy(plain)
    batchnorm.share(shared, Processes(0, 2))  # of which the other one does not take part
    torch.testing.assert_close(copy.deepcopy(shared)(x), copy.deepcopy(plain)(x))
    ours, theirs = (batchnorm.recalibrated(module, [x, x + 1]).buffers() for module in (shared, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    twin = copy.deepcopy(shared)
    assert twin[0].weight is not shared[0].weight and list(twin.state_dict()) == list(plain.state_dict())


def _kinds(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        answers.put([told(kind(both, **settings)) for settings in KINDS])


KINDS = ({"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"act_layer": "silu"})


def kind(processes: Processes, **settings) -> dict[str, Tensor]:
    """What a layer makes of two batches, and its buffers."""
    of_timm = "act_layer" in settings
    layer = BatchNormAct2d(3, **settings) if of_timm else torch.nn.BatchNorm1d(3, **settings)
    batchnorm.share(layer, processes)
    x = torch.randn(2, 8, 3, *[2] * 2 * of_timm, generator=torch.Generator().manual_seed(0))
    outputs = [processes.gather(layer(part[processes.share(8)])).detach() for part in x]
    return {"first": outputs[0], "second": outputs[1]} | dict(layer.named_buffers())


def test_layers_of_other_kinds_are_synchronised_too():
    for several in forked.pair(_kinds):
        for ours, settings in zip(several, KINDS, strict=True):
            for name, expected in kind(Processes(), **settings).items():
                value = torch.tensor(ours[name], dtype=torch.float64)
                torch.testing.assert_close(value, expected.double(), atol=1e-5, rtol=1e-5)
