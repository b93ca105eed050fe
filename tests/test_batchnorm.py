"""BatchNorm recalibration against numpy over the same batches."""

import numpy as np
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from aavae.batchnorm import recalibrated
from aavae.encoders.resnet import resnet


def batches(sizes=(8, 8, 3), shape=(3, 6, 6)):
    g = torch.Generator().manual_seed(0)
    return [2 + i + (i + 1) * torch.randn(n, *shape, generator=g) for i, n in enumerate(sizes)]


def numpy_statistics(inputs):
    """Average over batches of each batch's mean and unbiased variance per channel, every batch counting the same."""
    flat = [np.moveaxis(x.numpy().astype(np.float64), 1, -1).reshape(-1, x.shape[1]) for x in inputs]
    return np.mean([x.mean(0) for x in flat], 0), np.mean([x.var(0, ddof=1) for x in flat], 0)


def test_statistics_are_the_cumulative_average_over_batches():
    layer = nn.BatchNorm2d(3)
    layer(100 + torch.randn(8, 3, 6, 6))  # what was there before must not count
    twin = recalibrated(layer, batches())
    mean, var = numpy_statistics(batches())
    np.testing.assert_allclose(twin.running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(twin.running_var.numpy(), var, rtol=1e-5)


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


def test_a_model_without_batchnorm_is_copied_and_no_image_is_read():
    def never():
        raise AssertionError("there is nothing to measure")
        yield

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    twin = recalibrated(net, never())
    assert twin is not net and torch.equal(twin[0].weight, net[0].weight)
