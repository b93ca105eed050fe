"""BatchNorm recalibration against numpy over the same images."""

import copy

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from aavae import build
from aavae.datasets import to_float
from aavae.models.batchnorm import recalibrated
from aavae.models.encoders.resnet import resnet


def batches(sizes=(8, 8, 3), shape=(3, 6, 6)):
    g = torch.Generator().manual_seed(0)
    return [2 + i + (i + 1) * torch.randn(n, *shape, generator=g) for i, n in enumerate(sizes)]


def numpy_statistics(inputs):
    """Mean and unbiased variance per channel of all batches together, in float64."""
    flat = [np.moveaxis(x.numpy().astype(np.float64), 1, -1).reshape(-1, x.shape[1]) for x in inputs]
    return np.concatenate(flat).mean(0), np.concatenate(flat).var(0, ddof=1)


@pytest.mark.parametrize("sizes", [(8, 8, 3), (500, 500, 2), (500, 500, 1), (7,)])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_statistics_are_those_of_one_pass_over_all_images(sizes, offset):
    layer = nn.BatchNorm2d(3)
    layer(100 + torch.randn(8, 3, 6, 6))  # what was there before must not count
    images = [offset + x for x in batches(sizes, shape=(3, 4, 4))]
    twin = recalibrated(layer, images)
    mean, var = numpy_statistics(images)
    np.testing.assert_allclose(twin.running_mean.numpy(), mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(twin.running_var.numpy(), var, rtol=1e-6)
    assert twin.num_batches_tracked == len(sizes) and twin.momentum == layer.momentum == 0.1


def test_one_batch_of_all_images_makes_a_deep_network_exact():
    """Torch's own cumulative average over a single float64 batch is the exact pass."""
    data = build.dataset(build.compose(["experiment=digits"])).load()
    images = data.normalize(to_float(data["pretrain"].images[:202]))
    encoder = build.model(build.compose(["experiment=digits"]), data).encoder
    exact = copy.deepcopy(encoder).double().eval()
    for layer in exact.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        exact(images.double())
        features = recalibrated(encoder.double(), [images.double()])(images.double())
        expected = exact.eval()(images.double())
    torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-6)


def test_a_later_layer_sees_what_batch_statistics_make_of_its_input():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), BatchNormAct2d(5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))
    twin = recalibrated(net, batches())
    with torch.no_grad():
        inputs = [net[2](nn.functional.relu(nn.functional.batch_norm(y, None, None, training=True)))
                  for y in (net[0](x) for x in batches())]  # fmt: skip
    mean, var = numpy_statistics(inputs)
    np.testing.assert_allclose(twin[3].running_mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(twin[3].running_var.numpy(), var, rtol=1e-4)


def test_the_original_is_left_as_it_is():
    encoder = resnet("basic", [1, 1, 1, 1], channels=8).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    twin = recalibrated(encoder, batches(sizes=(4, 4), shape=(3, 16, 16)))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(m.training for m in encoder.modules()) and not any(m.training for m in twin.modules())
    assert all(m.momentum == 0.1 for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))
    assert not torch.equal(twin.state_dict()["bn1.running_mean"], before["bn1.running_mean"])
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), twin.parameters(), strict=True))


def test_only_batchnorm_trains_meanwhile():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))
    mean, _ = numpy_statistics(batches())
    np.testing.assert_allclose(recalibrated(net, batches())[1].running_mean.numpy(), mean, rtol=1e-5)


def test_what_the_images_do_not_pass_keeps_its_statistics():
    net = nn.ModuleDict({"encoder": nn.BatchNorm2d(3), "decoder": nn.BatchNorm2d(3)})
    net["decoder"].running_mean.fill_(7.0)
    twin = recalibrated(net, batches(), lambda module, x: module["encoder"](x))
    assert twin["decoder"].running_mean.tolist() == [7.0] * 3 and not twin["encoder"].running_mean.eq(0).any()


def test_a_model_without_batchnorm_is_copied_and_no_image_is_read():
    def never():
        raise AssertionError("there is nothing to measure")
        yield

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    twin = recalibrated(net, never())
    assert twin is not net and torch.equal(twin[0].weight, net[0].weight)
