"""Encoders have the released sizes, stems and initialisation, and are interchangeable with timm's and torchvision's."""

import math
import re
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aavae import build
from aavae.errors import UserError
from aavae.runtime.targets import component

IMAGE_SIZE = {"cifar": 32, "stl": 96, "imagenet": 224}
# Spec §1.3: parameters with the cifar stem, and with the two that have a 7×7 convolution.
PARAMETERS = {
    "resnet18": (11_168_832, 11_176_512),
    "resnet34": (21_276_992, 21_284_672),
    "resnet50": (23_500_352, 23_508_032),
    "resnet50w2": (93_891_712, 93_907_072),
    "resnet50w4": (375_347_456, 375_378_176),
}
OUTPUT_DIM = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet50w2": 4096, "resnet50w4": 8192}


@cache
def configured(name: str) -> dict:
    return build.architecture(build.compose(["dataset=synthetic", f"encoder={name}"]))["encoder"]


def encoder(option: str, /, **changes) -> nn.Module:
    return component(configured(option) | changes)


def meta_encoder(name: str, stem: str) -> nn.Module:
    with torch.device("meta"):
        return encoder(name, stem=stem).eval()


@pytest.mark.parametrize("stem", IMAGE_SIZE)
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_released_ones(name, stem):
    net = meta_encoder(name, stem)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name][stem != "cifar"]
    assert net.output_dim == OUTPUT_DIM[name]


def test_the_tiny_resnet_has_16_to_128_channels():
    net = meta_encoder("resnet_tiny", "cifar")
    widths = [stage[-1].bn2.num_features for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
    assert widths == [16, 32, 64, 128] and net.conv1.out_channels == 16 and net.output_dim == 128


def test_the_resnet_for_cpus_is_torchvision_s_blocks_at_half_the_resolution():
    torch.manual_seed(0)
    net = encoder("resnet_cpu").eval()
    blocks, width = [], 32
    for planes, stride in ((32, 1), (64, 2), (128, 2), (256, 1)):
        skip = None
        if stride > 1 or width != planes:
            skip = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        blocks.append(nn.Sequential(torchvision.models.resnet.BasicBlock(width, planes, stride, skip)))
        width = planes
    stem = [nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    theirs = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), net.state_dict().values(), strict=True)), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(images), theirs(images))
        assert [x.shape[-1] for x in net.maps(images)] == [16, 8, 4, 4] and net.output_dim == 1024
    assert encoder("resnet_cpu", pool=1)(images).shape == (2, 256)


def test_more_features_by_a_convolution_behind_the_last_block():
    net = encoder("resnet_tiny", output_dim=36, pool=2).eval()
    plain = encoder("resnet_tiny").eval()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k in plain.state_dict()})
    last = net.layer4[-1]
    widened = nn.Sequential(nn.Conv2d(128, 9, 1, bias=False), nn.BatchNorm2d(9), nn.ReLU(), nn.AvgPool2d(2)).eval()
    widened[0].weight, widened[1].weight, widened[1].bias = last.conv.weight, last.bn.weight, last.bn.bias
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(images), widened(plain.maps(images)[-1]).flatten(1))
    assert net.output_dim == 36


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_dim": 0}, "encoder.output_dim must be a positive width or null, not 0"),
        ({"pool": 0}, "encoder.pool must be 1 or more, not 0"),
        ({"output_dim": 10, "pool": 2}, "encoder.output_dim=10 cannot be divided among the 4 cells of encoder.pool=2"),
        ({"layers": [1, 1, 1]}, "encoder.layers must be four positive depths"),
        ({"stem": "round"}, "encoder.stem must be auto or one of"),
        ({"norm": "group"}, "encoder.norm must be one of batch, layer"),
    ],
)
def test_a_resnet_that_cannot_be_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        encoder("resnet_tiny", **changes)


@pytest.mark.parametrize("kind", [torch.channels_last, torch.contiguous_format])
def test_pooled_features_and_their_gradient_have_the_bits_of_torch_s_pooling(kind):
    net = encoder("resnet_tiny").eval().to(memory_format=kind)
    images = [torch.randn(4, 3, 28, 28).to(memory_format=kind).requires_grad_() for _ in range(2)]
    with torch.no_grad():
        images[1].copy_(images[0])
    theirs = nn.functional.adaptive_avg_pool2d(net.maps(images[1])[-1], 1).flatten(1)
    ours = net(images[0])
    assert torch.equal(ours, theirs)
    slope = torch.randn_like(ours)
    ours.backward(slope)
    theirs.backward(slope)
    assert torch.equal(images[0].grad, images[1].grad)


@pytest.mark.parametrize(
    ("name", "stem", "giga"),
    [
        ("resnet18", "cifar", 0.555),
        ("resnet34", "stl", 2.626),
        ("resnet50", "cifar", 1.29781),
        ("resnet50", "stl", 2.93777),
        ("resnet50", "imagenet", 4.087),
        ("resnet50w2", "cifar", 5.188),
        ("resnet50w4", "imagenet", 63.98),
    ],
)
def test_work_per_image_is_the_spec_s(name, stem, giga):
    net = meta_encoder(name, stem)
    size = IMAGE_SIZE[stem]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, 3, size, size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=1e-3)


@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "maps"),
    [
        ("cifar", 3, 1, [32, 16, 8, 4]),
        ("stl", 7, 2, [48, 24, 12, 6]),
        ("imagenet", 7, 2, [56, 28, 14, 7]),
    ],
)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet_tiny"])
def test_stems_give_the_released_feature_maps(name, stem, kernel, stride, maps):
    net = meta_encoder(name, stem)
    conv = net.conv1
    assert conv.kernel_size == (kernel, kernel) and conv.stride == (stride, stride) and conv.bias is None
    assert conv.padding == (kernel // 2, kernel // 2)
    sizes = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        stage.register_forward_hook(lambda module, args, output: sizes.append(output.shape[-1]))
    net(torch.empty(2, 3, IMAGE_SIZE[stem], IMAGE_SIZE[stem], device="meta"))
    assert sizes == maps


@pytest.mark.parametrize(("dataset", "stem"), [("cifar10", "cifar"), ("stl10", "stl")])
def test_the_stem_is_the_dataset_s_unless_asked_for(dataset, stem):
    cfg = build.compose([f"dataset={dataset}"])
    assert build.architecture(cfg)["encoder"]["stem"] == stem
    cfg = build.compose([f"dataset={dataset}", "encoder.stem=imagenet"])
    assert build.architecture(cfg)["encoder"]["stem"] == "imagenet"


@pytest.mark.parametrize("reference", ["timm", "torchvision"])
def test_the_imagenet_resnet50_is_timm_s_and_torchvision_s(reference):
    torch.manual_seed(0)
    ours = encoder("resnet50", stem="imagenet").eval()
    with torch.device("meta"):
        if reference == "timm":
            theirs = timm.create_model("resnet50", num_classes=0)
        else:
            theirs = torchvision.models.resnet50()
            theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training_gives_the_gradients_and_the_statistics_of_timm_s(name):
    torch.manual_seed(0)
    ours = encoder(name, stem="imagenet")
    theirs = timm.create_model(name, num_classes=0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(4, 3, 64, 64)
    for net in (ours.train(), theirs.train()):
        net(images).square().sum().backward()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4 * other.grad.abs().max().item(), msg=key)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("name", "changes"), [("resnet_tiny", {}), ("resnet18", {}), ("resnet50", {"channels": 16})], ids=lambda v: str(v)
)
def test_convolutions_start_kaiming_normal_and_batchnorms_at_one_and_zero(name, changes):
    torch.manual_seed(0)
    net = encoder(name, **changes)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert convolutions and norms
    for conv in convolutions:
        std = math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] ** 2))  # fan_out, relu
        weights, n = conv.weight.flatten(), conv.weight.numel()
        assert conv.bias is None
        assert weights.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))  # five standard errors
        assert abs(weights.mean().item()) < 5 * std / math.sqrt(n)
        if n > 5000:  # normal, not uniform: a uniform's largest draw lies at √3 σ
            assert weights.abs().max().item() > 2.5 * std
    for norm in norms:  # the last ones of the residual branches too
        assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
        assert norm.momentum == 0.1 and norm.eps == 1e-5


# mobilenetv3 puts a wider head behind what timm calls num_features; Swin keeps buffers outside its state dict.
SWIN = {"img_size": 16, "window_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 1]}


@pytest.mark.parametrize(
    ("name", "kwargs", "width"),
    [
        ("mobilenetv3_small_050", {}, 1024),
        ("vit_tiny_patch16_224", {"img_size": 16, "depth": 1}, 192),
        ("swin_tiny_patch4_window7_224", SWIN, 32),
    ],
    ids=["mobilenetv3", "vit", "swin"],
)
def test_a_timm_encoder_reports_the_width_that_comes_out(name, kwargs, width):
    net = encoder("timm", name=name, kwargs=kwargs)
    features = net.eval()(torch.randn(2, 3, 16, 16))
    assert features.shape == (2, width) and net.output_dim == width


def test_measuring_leaves_the_timm_model_on_its_device_and_in_training_mode():
    net = encoder("timm", name="mobilenetv3_small_050")
    assert net.training
    assert {t.device.type for t in net.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "resnet10"}, ["resnet10", "resnet10t"]),
        ({"name": "resnt10t"}, ["resnt10t", "resnet10t"]),
        ({"name": "vit_tiny_patch16_224"}, ["16", "224", "img_size"]),
        ({"kwargs": {"colour": "red"}}, ["resnet10t", "colour"]),
        ({"kwargs": {"act_layer": "nonsense"}}, ["resnet10t", "nonsense"]),
        ({"kwargs": {"features_only": True}}, ["resnet10t"]),
        ({"kwargs": {"global_pool": ""}}, ["resnet10t"]),
        ({"kwargs": {"pretrained": True}}, ["pretrained"]),
    ],
    ids=str,
)
def test_a_timm_model_that_cannot_be_an_encoder_is_refused(changes, words):
    with pytest.raises(UserError) as refusal:
        encoder("timm", **({"name": "resnet10t"} | changes))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_the_way_out_that_a_refusal_names_can_be_typed():
    asked = ["dataset=synthetic", "encoder=timm", "encoder.name=vit_tiny_patch16_224", "decoder=resnet_tiny"]
    with pytest.raises(UserError) as refusal:
        build.model(build.compose(asked))
    hint = re.search(r"\+?encoder\.kwargs\.\S+", str(refusal.value)).group()
    assert build.model(build.compose([*asked, hint])).encoder.output_dim == 192


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stem": "huge"}, ["encoder.stem", "auto", "cifar", "stl", "imagenet"]),
        ({"block": "huge"}, ["encoder.block", "basic", "bottleneck"]),
        ({"layers": [2, 2]}, ["encoder.layers", "four"]),
        ({"layers": [2, 2, 2, 1.5]}, ["encoder.layers", "1.5"]),
        ({"channels": 0}, ["channels", "positive"]),
    ],
    ids=str,
)
def test_a_resnet_that_cannot_be_is_refused_with_what_could(changes, words):
    with pytest.raises(UserError) as refusal:
        encoder("resnet18", **changes)
    assert all(word in str(refusal.value) for word in words), refusal.value
