"""Ranks, alignment, uniformity and latent statistics against SciPy and torch.distributions."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import svdvals
from scipy.spatial.distance import pdist
from scipy.stats import entropy
from torch import nn
from torch.distributions import Normal, kl_divergence

from aavae import build
from aavae.augmentations.crops import Crops
from aavae.datasets import Dataset, Split
from aavae.errors import UserError
from aavae.models.autoencoder import AutoEncoder
from aavae.models.losses import kl_to_prior
from aavae.probes.geometry import (
    Geometry,
    alignment,
    centred,
    effective_rank,
    inner_products,
    posterior,
    rankme,
    singular_values,
    uniformity,
)
from aavae.probes.representations import Representation
from aavae.reports.canvas import blank
from aavae.reports.figures import _spectra, geometry_figure


def cloud(n, dims, offset=1.0, decay=0.5):
    g = torch.Generator().manual_seed(n + dims)
    spectrum = torch.arange(1, dims + 1.0) ** -decay
    return torch.randn(n, dims, generator=g) * spectrum + offset * torch.randn(dims, generator=g)


def spectrum(features, about_mean=False):
    products = inner_products(features)
    return singular_values(centred(products) if about_mean else products, min(features.shape))


# ---- Ranks --------------------------------------------------------------------------------------------------------

SHAPES = [(40, 7), (7, 40), (20, 20), (30, 5000), (50, 1)]  # the last but one has more columns than one piece


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("about_mean", [False, True])
def test_singular_values_equal_scipy(shape, about_mean):
    features = cloud(*shape)
    matrix = features.double().numpy()
    expected = svdvals(matrix - matrix.mean(0) if about_mean else matrix)
    np.testing.assert_allclose(spectrum(features, about_mean), expected, atol=1e-6 * expected[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_rankme_is_the_exponential_of_the_entropy_of_singular_values(shape):
    sigma = svdvals(cloud(*shape).double().numpy())
    p = sigma / sigma.sum() + 1e-7
    assert rankme(spectrum(cloud(*shape))).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_effective_rank_is_that_of_the_covariance(shape):
    covariance = np.atleast_2d(np.cov(cloud(*shape).double().numpy().T)) if shape[1] < 100 else None
    if covariance is None:  # the Gram matrix has the same eigenvalues
        x = cloud(*shape).double().numpy()
        covariance = (x - x.mean(0)) @ (x - x.mean(0)).T
    expected = np.exp(entropy(np.linalg.eigvalsh(covariance).clip(0)))
    assert effective_rank(spectrum(cloud(*shape), True)).item() == pytest.approx(expected, rel=1e-6)


def test_ranks_count_directions():
    hadamard = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    assert rankme(spectrum(hadamard)).item() == pytest.approx(4, abs=1e-4)
    assert rankme(spectrum(hadamard[:, :2])).item() == pytest.approx(2, abs=1e-4)
    assert rankme(spectrum(hadamard[:, :1].expand(4, 3))).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(spectrum(hadamard, True)).item() == pytest.approx(3)  # the first column is constant


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-20, 3e10])
def test_constant_features_have_no_rank_about_their_mean(value):
    constant = torch.full((9, 5), value)
    assert effective_rank(spectrum(constant, True)) == 0
    assert rankme(spectrum(constant)).item() == pytest.approx(float(value > 0), abs=1e-4)


def test_rounding_is_no_direction():
    features = torch.full((50, 20), 0.7)
    features += 6e-8 * torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert effective_rank(spectrum(features, True)) == 0
    features[:, 3] += 0.01 * torch.arange(50)
    assert effective_rank(spectrum(features, True)).item() == pytest.approx(1, abs=1e-3)


# ---- Alignment and uniformity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (30, 6), (10, 5000)])
def test_uniformity_equals_wang_and_isola(shape):
    features = cloud(*shape).double()
    unit = features / features.norm(dim=1, keepdim=True)
    expected = math.log(np.exp(-2 * pdist(unit.numpy()) ** 2).mean())
    assert uniformity(inner_products(features)).item() == pytest.approx(expected, abs=1e-9)


def test_uniformity_of_one_point_and_of_two_poles():
    assert uniformity(inner_products(torch.full((6, 3), 2.0))).item() == pytest.approx(0, abs=1e-12)
    assert uniformity(inner_products(torch.tensor([[3.0, 0], [-1, 0]]))).item() == pytest.approx(-8)
    assert uniformity(inner_products(torch.zeros(4, 3))).item() == 0


def test_alignment_is_the_squared_distance_of_unit_vectors():
    pairs = torch.tensor([[[2.0, 0], [0, 5]], [[1, 1], [3, 3]], [[1, 0], [-1, 0]], [[0, 0], [0, 0]]])
    torch.testing.assert_close(alignment(pairs).float(), torch.tensor([2.0, 0, 4, 0]))


# ---- The latent code ----------------------------------------------------------------------------------------------


class Stripes(Dataset):
    """Unlabelled images of noise, 23 of them."""

    name, num_classes, image_size = "stripes", 0, 4
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)

    def __init__(self, size: int = 23):
        super().__init__()
        self.size = size

    def read(self, device):
        images = torch.randint(256, (self.size, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        return {"pretrain_val": Split(images.to(torch.uint8))}


class Flat(nn.Flatten):
    output_dim = 48


def encoder_of_mu(variational=True, data=None):
    torch.manual_seed(0)
    data = data or Stripes()
    model = AutoEncoder(Flat(), nn.Identity(), latent_dim=5, variational=variational).eval()
    encode = Representation("mu", lambda x, g: model.encode(x).mu, data, torch.device("cpu"), batch_size=10)
    encode.model, encode.views = model, Crops(1)
    return encode, data


def measured(found, what="value"):
    return {r["metric"]: r[what] for r in found if isinstance(r, dict)}


def test_kl_per_latent_is_that_of_torch_distributions_and_adds_up_to_the_losses():
    encode, data = encoder_of_mu()
    kl, sigma = posterior(encode, data["pretrain_val"])
    with torch.no_grad():
        code = encode.model.encode(encode.normalized(data["pretrain_val"].images))
    expected = kl_divergence(Normal(code.mu, code.sigma), Normal(0, 1)).mean(0)
    torch.testing.assert_close(kl.float(), expected, rtol=1e-4, atol=1e-6)
    assert kl.sum().item() == pytest.approx(kl_to_prior(code.mu, code.sigma).mean().item(), rel=1e-5)
    torch.testing.assert_close(sigma.float(), code.sigma.mean(0))


def test_records_of_mu_are_those_of_its_clean_images():
    encode, data = encoder_of_mu()
    values = measured(found := Geometry().run(encode, data))
    mu, _ = encode.of(data["pretrain_val"])
    kl, sigma = posterior(encode, data["pretrain_val"])
    assert values["active_units"] == (np.var(mu.numpy(), axis=0) > 0.01).sum() > 0
    assert (values["kl_mean"], values["kl_max"]) == pytest.approx((kl.mean().item(), kl.max().item()))
    assert values["sigma_mean"] == pytest.approx(sigma.mean().item())
    assert values["rankme"] == pytest.approx(rankme(spectrum(mu)).item())
    assert values["effective_rank"] == pytest.approx(effective_rank(spectrum(mu, True)).item())
    assert values["uniformity"] == pytest.approx(uniformity(inner_products(mu)).item())
    assert 0 < values["alignment"] < 4
    assert {r["n"] for r in found if isinstance(r, dict)} == {23}
    protocol = measured(found, "protocol")
    assert "at most 5" in protocol["rankme"] and "2 views by crops from images padded" in protocol["alignment"]
    assert "5 dimensions" in protocol["rankme"] and "nats" in protocol["kl_max"]


def test_an_autoencoder_has_active_units_but_no_kl():
    encode, data = encoder_of_mu(variational=False)
    assert set(measured(Geometry().run(encode, data))) == {
        "rankme", "effective_rank", "alignment", "uniformity", "active_units",
    }  # fmt: skip


def test_other_features_have_no_latents_and_alignment_is_zero_where_views_are_images():
    data = Stripes()
    encode = Representation("pixels", lambda x, g: x, data, torch.device("cpu"))
    found = Geometry(images=11).run(encode, data)
    assert measured(found, "n") == dict.fromkeys(("rankme", "effective_rank", "alignment", "uniformity"), 11)
    assert measured(found)["alignment"] == 0
    assert "at most 11" in measured(found, "protocol")["rankme"]
    assert "at most 10" in measured(found, "protocol")["effective_rank"]  # less the mean


# ---- As a guest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [lambda x: 0 * x[:, 0, 0], lambda x: 0 * x + 3, lambda x: x[:, 0, 0, :1]])
@pytest.mark.parametrize("size", [2, 3])
def test_degenerate_features_give_finite_numbers_and_a_picture(features, size):
    data = Stripes(size)
    encode = Representation("h", lambda x, g: features(x), data, torch.device("cpu"))
    *records, picture = Geometry().run(encode, data)
    assert all(math.isfinite(r["value"]) for r in records)
    assert Image.open(io.BytesIO(picture.png)).size[0] > 300


def test_a_spectrum_is_drawn_relative_to_its_largest_value_down_to_rounding():
    axis = blank(3, 3).subplots()
    _spectra(axis, {"a": torch.tensor([4.0, 1, 0]), "nothing": torch.zeros(2)})
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [1, 0.25, 1e-8])
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [1e-8, 1e-8])


def test_a_collapsed_code_can_be_drawn():
    latents = {"variance": (torch.zeros(4), 0.01), "KL": (torch.zeros(4, dtype=torch.float64), None)}
    picture = geometry_figure({"a": torch.zeros(4), "b": torch.zeros(3)}, latents, "title")
    assert Image.open(io.BytesIO(picture)).size[0] > 1000  # three panels


def test_geometry_refuses_one_image():
    with pytest.raises(UserError, match="images must be 2 or more, not 1"):
        Geometry(images=1)
    encode, _ = encoder_of_mu(data=Stripes(1))
    assert "pretrain_val has 1" in Geometry().missing(encode)
    assert Geometry().missing(encoder_of_mu(data=Stripes(2))[0]) is None


def test_geometry_as_configured_works_on_a_model():
    cfg = build.compose(["trainer=debug", "experiment=digits", "probe=[geometry]"])
    trainer = build.trainer(cfg)
    (guest,) = build.probes(cfg)
    representations = trainer.inspector.representations(lambda: trainer.untrained_encoder)
    assert guest.features == ("h", "mu", "pixels", "h_untrained") and not guest.probe.needs_labels
    *records, picture = guest.probe.run(representations["mu"], trainer.dataset)
    assert picture.name == "geometry_mu" and len(records) == 8
    assert 1 <= measured(records)["rankme"] <= 32


@pytest.mark.parametrize("images", [2, 4, 20])
def test_nothing_is_cut_off_where_values_are_close(monkeypatch, images):
    from aavae.reports import figures

    drawn = []
    monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or b"")
    spectrum = torch.linspace(1, 0.8, images)
    geometry_figure({"a": spectrum, "b": spectrum[1:]}, {"c": (torch.linspace(0.011, 0.009, 8), 0.01)}, "title")
    (figure,) = drawn
    figure.canvas.draw()
    first, second = boxes = [axis.get_tightbbox() for axis in figure.axes]
    whole = figure.bbox
    assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in boxes)
    assert first.x1 <= second.x0
