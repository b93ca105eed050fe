"""Dropout of two processes is that of one: torch's, timm's and torchvision's layers, alone and in a network."""

import copy

import forked
import pytest
import torch
from timm.layers import DropBlock2d, DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from aavae import build
from aavae.errors import UserError
from aavae.models import dropout
from aavae.runtime.processes import Processes

BATCH, VIEWS = 8, 2
LAYERS = {
    "Dropout": lambda: nn.Dropout(0.4),
    "Dropout in place": lambda: nn.Dropout(0.4, inplace=True),
    "Dropout2d": lambda: nn.Dropout2d(0.4),
    "DropPath": lambda: DropPath(0.4),
    "DropBlock2d": lambda: DropBlock2d(0.3, block_size=3),
    "StochasticDepth": lambda: StochasticDepth(0.4, "row"),
    "nothing": lambda: nn.Dropout(0.0),
}
LAYOUTS = ("contiguous", "channels_last", "transposed")
SIZES = "img_size:16,patch_size:4,embed_dim:12,depth:2,num_heads:2"
RATES = "proj_drop_rate:0.2,pos_drop_rate:0.2,drop_path_rate:0.2"
VIT = ("encoder=timm", "encoder.name=vit_tiny_patch16_224", f"encoder.kwargs={{{SIZES},{RATES}}}")
SMALL = ("dataset=synthetic", *VIT, "decoder=shuffle", "decoder.channels=[4]", "latent_dim=6")


def dropped(name: str, layout: str, processes: Processes) -> Tensor:
    """What a layer in training makes of two views of the whole batch, from each process's part of it."""
    x = torch.randn(VIEWS, BATCH, 6, 5, 5, generator=torch.Generator().manual_seed(1))
    layer = nn.Sequential(LAYERS[name]())
    dropout.share(layer, processes, BATCH // processes.world)
    own = x[:, processes.share(BATCH)].flatten(0, 1)
    if layout == "channels_last":
        own = own.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        own = own.transpose(2, 3).contiguous().transpose(2, 3)
    torch.manual_seed(5)
    first, second = layer(own.clone()), layer(own.clone())
    whole = [processes.gather(y.unflatten(0, (VIEWS, -1)), 1) for y in (first, second)]
    assert LAYERS[name] is LAYERS["nothing"] or not torch.equal(*whole)
    return torch.stack(whole)


def learned(processes: Processes) -> dict[str, Tensor]:
    """Gradients and losses of a step of AAVAE with a vision transformer that drops tokens' features and paths."""
    model = build.model(build.compose(SMALL)).double()
    draw = torch.Generator().manual_seed(1)
    x, view = torch.randn(2, BATCH, 3, 16, 16, generator=draw, dtype=torch.float64)
    noise = torch.randn(BATCH, model.noise_dim, generator=draw, dtype=torch.float64)
    dropout.share(model, processes, BATCH // processes.world)
    torch.manual_seed(5)
    terms = forked.backward(model, processes, view[None], x, noise)
    found = {name: processes.average(value.detach().clone()) for name, value in terms.items()}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _both(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        layers = {(n, how): dropped(n, how, both).tolist() for n in LAYERS for how in LAYOUTS}
        answers.put((layers, {name: value.tolist() for name, value in learned(both).items()}))


@pytest.fixture(scope="module")
def answers():
    return forked.pair(_both)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_drop_what_one_drops(answers, name, layout):
    alone = dropped(name, layout, Processes())
    assert (alone == 0).any() == (name != "nothing")
    for layers, _ in answers:
        assert torch.equal(torch.tensor(layers[name, layout]), alone)


def test_gradients_of_two_processes_are_those_of_one(answers):
    alone = learned(Processes())
    for _, ours in answers:
        assert ours.keys() == alone.keys()
        for name, values in ours.items():
            value = torch.tensor(values, dtype=torch.float64)
            torch.testing.assert_close(value, alone[name].double(), atol=1e-10, rtol=1e-9)


def test_in_eval_mode_alone_and_in_copies_a_layer_is_what_it_was():
    x = torch.randn(6, 4)
    layer = nn.Dropout(0.5)
    dropout.share(layer, Processes(), 6)
    assert type(layer) is nn.Dropout
    dropout.share(layer, Processes(1, 2), 6)
    assert isinstance(layer, nn.Dropout) and torch.equal(layer.eval()(x), x)
    torch.manual_seed(0)
    twin = copy.deepcopy(layer).train()(x[:5])  # any number of rows
    torch.manual_seed(0)
    assert torch.equal(twin, nn.Dropout(0.5)(x[:5]))


@pytest.mark.parametrize(
    "layer", [nn.MultiheadAttention(4, 2, dropout=0.1), nn.AlphaDropout(0.1), "timm"], ids=["torch", "alpha", "timm"]
)
def test_what_cannot_be_drawn_for_all_is_refused(layer):
    if layer == "timm":
        layer = build.model(build.compose([*SMALL, f"encoder.kwargs={{{SIZES},attn_drop_rate:0.1}}"]))
    dropout.share(layer, Processes(), 4)
    with pytest.raises(UserError, match="several processes cannot draw as one would; set its rate to 0"):
        dropout.share(nn.Sequential(layer), Processes(0, 2), 4)


def test_rows_that_are_no_images_are_refused():
    layer = nn.Dropout(0.5)
    dropout.share(layer, Processes(0, 2), 4)
    with pytest.raises(UserError, match="6 rows cannot be divided among 2 processes of 4 images each"):
        layer(torch.ones(6, 3))
