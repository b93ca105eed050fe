"""Densities against what they estimate: the mass of 8-bit images, and the evidence of a linear Gaussian model."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from aavae.augmentations.pipeline import NoAugmentation
from aavae.datasets import Split
from aavae.datasets.synthetic import Synthetic
from aavae.models.autoencoder import AutoEncoder
from aavae.models.losses import NegativeELBO
from aavae.models.output import STD_FLOOR
from aavae.runtime.device import Precision
from aavae.training.validation import Validator

CPU = torch.device("cpu")


class Data(Synthetic):
    mean, std = (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)


class InFloat64(Data):
    def normalize(self, images: Tensor) -> Tensor:
        return super().normalize(images.double())


class Encoder(nn.Flatten):
    def __init__(self, output_dim: int):
        super().__init__()
        self.output_dim = output_dim


class Posterior(nn.Module):
    """q(z|x) = N(Ax, σ²), the same σ for every image; log σ² is such that the code's floor adds up to it."""

    def __init__(self, a: Tensor, sigma: Tensor):
        super().__init__()
        self.a, self.logvar = nn.Parameter(a), nn.Parameter(2 * (sigma - STD_FLOOR).log())

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return h @ self.a.T, self.logvar.expand(len(h), -1)


class Decoder(nn.Module):
    """x̂ = Wz + b."""

    def __init__(self, w: Tensor, b: float):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.w.T + self.b).view(len(z), 3, *[math.isqrt(len(self.w) // 3)] * 2)


def linear_gaussian(a: Tensor, posterior_sigma: Tensor, w: Tensor, width: float, b: float = 0.0) -> AutoEncoder:
    """x = Wz + b + `width`·ε with a linear posterior."""
    log_scale = 2 * math.log(width - STD_FLOOR)
    model = AutoEncoder(Encoder(len(w)), Decoder(w, b), w.shape[1], log_scale=log_scale)
    model.loss = NegativeELBO(1.0)
    model.projection = Posterior(a, posterior_sigma)
    model.log_scale.data = torch.tensor([log_scale], dtype=w.dtype)
    return model


def measured(model: AutoEncoder, data: Synthetic, split: Split, samples: int, seed: int = 0) -> dict[str, float]:
    validator = Validator(data, NoAugmentation(), samples, seed, CPU)
    return validator.run(model, split, Precision.float32(CPU))


# ---- 8-bit images -------------------------------------------------------------------------------------------------


def bits_of_bins(images: Tensor, data: Synthetic, x_hat: float, width: float) -> float:
    """−log2 of the mass that N(x̂, width²), in normalised units, gives to [k, k+1)/255, a dimension, in float64."""
    mean, std = (torch.tensor(c, dtype=torch.float64).view(1, 3, 1, 1) for c in (data.mean, data.std))
    edges = [((images.double() + offset) / 255 - mean) / std for offset in (0, 1)]
    # The tail above the mean is mirrored: near 1 a cdf keeps no digits.
    low, high = (e - x_hat for e in edges)
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    likelihood = Normal(0.0, torch.tensor(width, dtype=torch.float64))
    return -(likelihood.cdf(high) - likelihood.cdf(low)).log2().mean().item()


@pytest.fixture(scope="module")
def eight_bit():
    """A dataset, and 24 images of it whose pixels lie around its mean."""
    data, generator = Data(image_size=8), torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, 8, 8, generator=generator)
    mean, std = data.constants(x)
    return data, Split(((x * std + mean) * 255).round().clamp(0, 255).byte())


def estimated(data: Synthetic, split: Split, x_hat: float, width: float, draws: int = 64) -> float:
    """`bpd_8bit` of a model whose code says nothing, averaged over draws of the dequantisation noise."""
    silent = linear_gaussian(torch.zeros(1, 192), torch.ones(1), torch.zeros(192, 1), width, x_hat)
    return sum(measured(silent, data, split, 1, seed)["bpd_8bit"] for seed in range(draws)) / draws


@pytest.mark.parametrize(("width", "rest"), [(0.5, 1e-3), (1.0, 1e-4), (3.0, 1e-5)])
def test_bits_of_8_bit_images_are_those_of_their_bins_where_the_likelihood_is_smooth(eight_bit, width, rest):
    data, split = eight_bit
    exact = bits_of_bins(split.images, data, 0.5, width)
    assert estimated(data, split, 0.5, width) == pytest.approx(exact, abs=rest)


def test_dequantisation_never_promises_fewer_bits_than_the_bins_cost(eight_bit):
    # The mean of a logarithm is below the logarithm of the mean, most where the density changes within a bin.
    data, _ = eight_bit
    narrow = Split((torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1) * 255).round().byte().expand(4, 3, 8, 8).clone())
    excess = []
    for width in (0.01, 0.02, 0.04):
        exact = bits_of_bins(narrow.images, data, 0.0, width)
        excess.append(estimated(data, narrow, 0.0, width, 16) - exact)
    assert excess[0] > 0.05 and excess[0] > excess[1] > excess[2] > 0


# ---- The evidence -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence():
    """A linear Gaussian model with orthogonal columns W, its exact diagonal posterior, and log p(x) of 64 images."""
    data, width = InFloat64(size=128, image_size=2), 0.6
    draws = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = torch.linalg.qr(draws).Q * torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    variance = 1 / (1 + (w**2).sum(0) / width**2)
    split = data.load()["pretrain_val"]
    x = data.normalize(split.images / 255).flatten(1)
    covariance = w @ w.T + width**2 * torch.eye(12, dtype=torch.float64)
    log_px = MultivariateNormal(torch.zeros(12, dtype=torch.float64), covariance).log_prob(x).mean().item()
    return data, split, (variance[:, None] * w.T / width**2, variance.sqrt(), w, width), log_px


@pytest.mark.parametrize("samples", [1, 5])
def test_the_bound_is_the_evidence_where_the_posterior_is_exact(evidence, samples):
    data, split, exact, log_px = evidence
    found = measured(linear_gaussian(*exact), data, split, samples)
    assert found["log_px_iw"] == pytest.approx(log_px, rel=1e-9)
    assert found["bpd_raw"] == pytest.approx(-log_px / 12 / math.log(2), rel=1e-9)


def test_with_another_posterior_it_is_below_and_rises_to_it_with_the_samples(evidence):
    data, split, (a, sigma, w, width), log_px = evidence
    other = linear_gaussian(0.9 * a, 1.5 * sigma, w, width)
    gaps = [log_px - measured(other, data, split, samples)["log_px_iw"] for samples in (1, 8, 64, 512)]
    assert gaps[0] > 0.5 and all(after < before / 2 for before, after in itertools.pairwise(gaps))
    assert 0 < gaps[-1] < 0.02
