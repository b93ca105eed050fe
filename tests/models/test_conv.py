"""The convolution with a weight gradient of its own, against torch's."""

import copy

import pytest
import torch
from torch import nn

from aavae.models.conv import Conv2d


def gradients(conv: nn.Conv2d, x: torch.Tensor, out: torch.Tensor | None, bf16: bool) -> list[torch.Tensor]:
    """Output and gradients of input and parameters, where `out` is the gradient of the output."""
    conv, x = copy.deepcopy(conv), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = conv(x)
    y.backward(torch.ones_like(y) if out is None else out.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in conv.parameters())]


def pair(*args, **kwargs) -> tuple[Conv2d, nn.Conv2d]:
    ours, torchs = Conv2d(*args, **kwargs), nn.Conv2d(*args, **kwargs)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((4, 4), {"kernel_size": 3, "padding": 1}),
        ((8, 8), {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False}),
        ((4, 4), {"kernel_size": 1}),
        ((8, 8), {"kernel_size": 1, "stride": 2}),
        ((3, 5), {"kernel_size": (3, 5), "padding": (1, 2), "stride": (1, 2)}),
        ((7, 6), {"kernel_size": (4, 3), "padding": (0, 2), "stride": (3, 2)}),  # the last rows are not seen
    ],
)
def test_small_maps_have_the_gradients_of_torch(size, settings, layout):
    torch.manual_seed(0)
    ours, torchs = pair(24, 40, **settings)
    x = torch.randn(16, 24, *size).to(memory_format=layout)
    ours, torchs = ours.to(memory_format=layout), torchs.to(memory_format=layout)
    out = torch.randn_like(ours(x))
    truth = gradients(torchs.double(), x.double(), out.double(), bf16=False)
    torchs.float()
    for mine, torchs_own, exact in zip(
        gradients(ours, x, out, bf16=True), gradients(torchs, x, out, bf16=True), truth, strict=True
    ):
        assert mine.shape == torchs_own.shape
        assert mine.dtype == torchs_own.dtype
        error, theirs = (mine.double() - exact).abs().max(), (torchs_own.double() - exact).abs().max()
        assert error <= 1.5 * theirs + 1e-6 * exact.abs().max()
        assert theirs < 0.02 * exact.abs().max()


@pytest.mark.parametrize(
    ("size", "bf16", "settings"),
    [
        ((8, 8), True, {}),
        ((4, 4), False, {}),
        ((4, 4), True, {"groups": 2}),
        ((4, 4), True, {"dilation": 2}),
        ((4, 4), True, {"padding_mode": "circular"}),
        ((4, 4), True, {"padding": "same"}),
    ],
)
def test_everything_else_is_torchs(size, bf16, settings, monkeypatch):
    monkeypatch.setattr("aavae.models.conv._ByPatches.apply", lambda *args: pytest.fail("went by patches"))
    ours, torchs = pair(8, 8, **{"kernel_size": 3, "padding": 1, **settings})
    x = torch.randn(4, 8, *size)
    for mine, theirs in zip(gradients(ours, x, None, bf16), gradients(torchs, x, None, bf16), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("channels", "size", "settings"),
    [
        (4, (8, 8), {"stride": 2, "bias": False}),
        (6, (7, 5), {"stride": (2, 3)}),
        (2, (9, 9), {"stride": 3, "groups": 2}),
        (3, (8, 8), {"stride": (1, 2)}),
    ],
)
def test_narrow_convolutions_that_skip_pixels_have_the_gradients_of_torch(channels, size, settings, monkeypatch):
    """torch's in float64, since in float32 it damages the heap on CPUs with AVX2."""
    torch.manual_seed(0)
    ours, torchs = pair(channels, 8, 1, **settings)
    x = torch.randn(4, channels, *size).contiguous(memory_format=torch.channels_last)
    ours = ours.to(memory_format=torch.channels_last)
    out = torch.randn_like(ours(x))
    truth = gradients(torchs.double(), x.double(), out.double(), bf16=False)
    strides, call = [], nn.functional.conv2d
    monkeypatch.setattr(
        "torch.nn.functional.conv2d",
        lambda *args, **kwargs: strides.append(kwargs.get("stride", 1)) or call(*args, **kwargs),
    )
    for mine, exact in zip(gradients(ours, x, out, bf16=False), truth, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)
    assert strides == [1]


def test_the_networks_for_cpus_go_by_patches(monkeypatch):
    """The last two stages of resnet_cpu, and the decoder's convolution at 4²."""
    from aavae.models import conv
    from aavae.models.decoders.shuffle import ShuffleDecoder
    from aavae.models.encoders.resnet import resnet

    seen, apply = [], conv._ByPatches.apply
    monkeypatch.setattr(
        "aavae.models.conv._ByPatches.apply",
        lambda x, weight, *rest: seen.append(weight.shape) or apply(x, weight, *rest),
    )
    encoder = resnet("basic", [1, 1, 1, 1], channels=32, stem="half")
    decoder = ShuffleDecoder(128, 256, 32, [128, 64, 32])
    with torch.autocast("cpu", torch.bfloat16):
        encoder(torch.randn(2, 3, 32, 32))
        decoder(torch.randn(2, 128))
    assert [shape[:2] for shape in seen] == [
        (128, 64), (128, 128), (128, 64), (256, 128), (256, 256), (256, 128), (256, 128),
    ]  # fmt: skip


def test_compiled_it_computes_the_same():
    torch.manual_seed(0)
    ours, _ = pair(16, 16, kernel_size=3, padding=1)
    x = torch.randn(4, 16, 4, 4)
    plain = gradients(ours, x, None, bf16=True)
    ours.compile(backend="aot_eager")
    for a, b in zip(plain, gradients(ours, x, None, bf16=True), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=1e-3)
