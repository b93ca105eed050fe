"""Decoders have the released sizes and no normalisation, serve every encoder, and their two skip orders agree."""

import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aavae import build
from aavae.errors import UserError
from aavae.runtime.targets import component

NAMES = ("resnet18", "resnet34", "resnet50", "resnet50w2", "resnet50w4", "resnet_tiny")
IMAGE_SIZE = {"cifar": 32, "stl": 96, "imagenet": 224}


@cache
def configured(name: str) -> dict:
    return build.architecture(build.compose(["dataset=synthetic", f"decoder={name}"]))["decoder"]


def decoder(name: str, hidden_dim: int, latent_dim: int = 128, **changes) -> nn.Module:
    return component(configured(name) | changes, latent_dim=latent_dim, hidden_dim=hidden_dim)


def meta_decoder(name: str, hidden_dim: int, stem: str = "cifar", **changes) -> nn.Module:
    with torch.device("meta"):
        return decoder(name, hidden_dim, stem=stem, image_size=IMAGE_SIZE[stem], **changes)


def macs(module: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, 128, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("scale", [1, 100, 1000])
def test_latent_noise_survives_half_precision_however_large_the_means_are(scale):
    net = decoder("resnet18", 512, stem="cifar", image_size=32)
    generator, kept = torch.Generator().manual_seed(0), []
    mu, noise = (torch.randn(4, 128, generator=generator) for _ in range(2))
    net.linear_projection1.register_forward_hook(lambda module, z, hidden: kept.append(hidden))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        image = net(scale * mu + noise)
    weight, bias = net.linear_projection1.weight.double(), net.linear_projection1.bias.double()
    z = torch.linalg.lstsq(weight, (kept[0].double() - bias).T).solution.T
    survived = torch.stack([(z - scale * mu).flatten(), noise.double().flatten()])
    assert torch.corrcoef(survived)[0, 1] > 0.99
    assert image.dtype == torch.bfloat16  # what follows is as fast as before


@pytest.mark.parametrize("stem", IMAGE_SIZE)
@pytest.mark.parametrize(
    ("name", "hidden_dim", "parameters"),
    [
        ("resnet18", 2048, 12_770_403),
        ("resnet18", 512, 4_459_107),
        ("resnet34", 2048, 15_297_443),
        ("resnet34", 512, 6_986_147),
        ("resnet50", 2048, 13_291_203),
        ("resnet50w2", 2048, 33_568_387),
        ("resnet50w2", 4096, 52_448_899),
        ("resnet50w4", 2048, 109_260_291),
        ("resnet50w4", 8192, 208_369_155),
    ],
)
def test_parameter_counts_are_the_released_ones(name, hidden_dim, parameters, stem):
    assert sum(p.numel() for p in meta_decoder(name, hidden_dim, stem).parameters()) == parameters


@pytest.mark.parametrize(
    ("latent_dim", "parameters"), [(64, 13_160_131), (128, 13_291_203), (256, 13_553_347), (512, 14_077_635)]
)
def test_parameter_counts_follow_the_latent_dimension(latent_dim, parameters):
    net = meta_decoder("resnet50", 2048, latent_dim=latent_dim)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "hidden_dim", "stem", "giga"),
    [
        ("resnet18", 512, "cifar", 0.218),
        ("resnet18", 2048, "stl", 0.652),
        ("resnet34", 512, "imagenet", 1.385),
        ("resnet34", 2048, "cifar", 0.440),
        ("resnet50", 2048, "cifar", 0.50325),
        ("resnet50", 2048, "stl", 1.12296),
        ("resnet50", 2048, "imagenet", 2.281),
        ("resnet50w2", 4096, "cifar", 1.856),
        ("resnet50w4", 8192, "stl", 15.69),
    ],
)
def test_work_per_image_in_the_official_order_is_the_spec_s(name, hidden_dim, stem, giga):
    net = meta_decoder(name, hidden_dim, stem, skip_order="official")
    assert macs(net) / 1e9 == pytest.approx(giga, rel=3e-3)


@pytest.mark.parametrize(("stem", "mega"), [("cifar", 427.8), ("stl", 911.1)])
def test_the_commuted_skip_is_the_default_and_saves_what_the_spec_says(stem, mega):
    assert macs(meta_decoder("resnet50", 2048, stem)) / 1e6 == pytest.approx(mega, abs=0.06)


@pytest.mark.parametrize(
    ("stem", "maps"), [("cifar", [4, 8, 16, 32]), ("stl", [6, 12, 24, 48]), ("imagenet", [7, 14, 28, 56])]
)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stages_mirror_the_encoder_s_feature_maps(name, stem, maps):
    net = meta_decoder(name, 512, stem)
    shapes = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        stage.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[1:3])))
    images = net(torch.empty(2, 128, device="meta"))
    channels = [256, 128, 64, 32] if name == "resnet18" else [1024, 512, 256, 128]
    assert shapes == list(zip(channels, maps, strict=True))
    assert images.shape == (2, 3, IMAGE_SIZE[stem], IMAGE_SIZE[stem])


@pytest.mark.parametrize("name", NAMES)
def test_no_normalisation_and_a_bias_everywhere(name):
    for module in meta_decoder(name, 512).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
        else:
            assert not list(module.parameters(recurse=False)) and not list(module.buffers(recurse=False)), module


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet_tiny"])
def test_initialisation_is_pytorch_s_default(name):
    torch.manual_seed(0)
    for module in decoder(name, 128, latent_dim=32).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())  # kaiming_uniform with a=√5 comes to 1/√fan_in
            for tensor in (module.weight, module.bias):
                assert tensor.abs().max().item() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
            if module.weight.numel() > 1000:
                assert module.weight.abs().max().item() > 0.98 * bound


@pytest.mark.parametrize("stem", IMAGE_SIZE)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_both_skip_orders_give_the_same_images_and_gradients(name, stem):
    torch.manual_seed(0)
    small = {"channels": 4, "head_channels": 4, "stem": stem, "image_size": IMAGE_SIZE[stem]}
    commuted = decoder(name, 64, skip_order="commuted", **small).double()
    official = decoder(name, 64, skip_order="official", **small).double()
    official.load_state_dict(commuted.state_dict(), strict=True)
    z = torch.randn(1, 128, dtype=torch.float64)
    images = [net(z) for net in (commuted, official)]
    torch.testing.assert_close(*images)
    for image in images:
        image.square().mean().backward()
    for ours, theirs in zip(commuted.parameters(), official.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_output_is_an_unbounded_mean():
    torch.manual_seed(0)
    net = decoder("resnet_tiny", 128, latent_dim=8)
    with torch.no_grad():
        net.final_conv.bias.copy_(torch.tensor([-50.0, 0.0, 50.0]))
        low, _, high = net(torch.randn(2, 8)).unbind(1)
    assert low.max() < -40 and high.min() > 40


@pytest.mark.parametrize("hidden_dim", [1, 16, 100, 168, 2048])
@pytest.mark.parametrize("name", NAMES)
def test_any_width_of_features_is_decoded(name, hidden_dim):
    with torch.device("meta"):
        images = decoder(name, hidden_dim)(torch.empty(3, 128))
    assert images.shape == (3, 3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 20}, ["20", "multiple of 8", "image_size"]),
        ({"image_size": 48, "stem": "imagenet"}, ["48", "multiple of 32", "imagenet"]),
        ({"skip_order": "sideways"}, ["decoder.skip_order", "commuted", "official"]),
        ({"block": "huge"}, ["decoder.block", "basic", "bottleneck"]),
        ({"stem": "huge"}, ["stem", "cifar", "stl", "imagenet"]),
        ({"layers": [1, 1, 1]}, ["decoder.layers", "four"]),
        ({"layers": [1, 1, 1, 0]}, ["decoder.layers"]),
        ({"channels": 0}, ["channels"]),
        ({"head_channels": 0}, ["head_channels"]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # ours to refuse before torch warns
def test_a_decoder_that_cannot_be_is_refused_with_what_could(changes, words):
    with pytest.raises(UserError) as refusal:
        decoder("resnet_tiny", 128, **changes)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_the_small_decoders_cost_what_is_said_of_them():
    with torch.device("meta"):
        nets = decoder("shuffle", 256, image_size=32), decoder("resnet_tiny", 128, image_size=32)
    assert [round(macs(net) / 1e6, 1) for net in nets] == [10.6, 29.5]


@pytest.mark.parametrize("size", [16, 32, 96])
def test_the_shuffle_decoder_is_its_convolutions_and_shuffles(size):
    torch.manual_seed(0)
    net = decoder("shuffle", 256, latent_dim=8, image_size=size)
    first, second, third = net.convs
    plain = nn.Sequential(
        net.linear, nn.Unflatten(1, (128, size // 8, size // 8)), nn.ReLU(), first, nn.PixelShuffle(2),
        nn.ReLU(), second, nn.PixelShuffle(2), nn.ReLU(), third, nn.PixelShuffle(2),
    )  # fmt: skip
    z = torch.randn(2, 8)
    with torch.no_grad():
        assert net(z).shape == (2, 3, size, size)
        torch.testing.assert_close(net(z), plain(z))
    assert [conv.in_channels for conv in net.convs] == [128, 64, 32] and third.out_channels == 4 * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 20}, ["20", "multiple of 8", "image_size", "decoder.channels"]),
        ({"channels": []}, ["decoder.channels"]),
        ({"channels": [8, 0]}, ["decoder.channels"]),
    ],
    ids=str,
)
def test_a_shuffle_decoder_that_cannot_be_is_refused_with_what_could(changes, words):
    with pytest.raises(UserError) as refusal:
        decoder("shuffle", 256, **changes)
    assert all(word in str(refusal.value) for word in words), refusal.value
