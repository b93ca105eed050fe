"""What is logged beside the loss, and validation over a whole split."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from aavae import build
from aavae.datasets import Split
from aavae.models.diagnostics import active_units, agreement, density, latent_statistics, log_weights, shifted
from aavae.models.losses import NegativeELBO
from aavae.models.output import Output
from aavae.runtime.device import pick_precision
from aavae.training import validation
from aavae.training.validation import Validator

CPU = torch.device("cpu")
SMALL = ("dataset=synthetic", "dataset.size=24", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=5")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def code(seed: int, variational: bool = True) -> Output:
    mu, log_var, noise = (draw(6, 5, seed=seed + i) for i in range(3))
    z = mu + noise * ((log_var / 2).exp() + 1e-6)
    return Output(None, draw(6, 9, seed=seed + 3), mu, log_var if variational else None, noise, z, None, None)


# ---- Densities ----------------------------------------------------------------------------------------------------


def test_the_importance_weighted_bound_is_a_log_mean_exp_averaged_over_images():
    weights = 50 * draw(16, 7) - 2000
    expected = (logsumexp(weights.double().numpy(), axis=0) - np.log(16)).mean()
    assert density(weights, weights, 12, torch.ones(3))["log_px_iw"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("dataset", "bits"), [("cifar10", 5.998), ("stl10", 6.087)])
def test_bits_of_8_bit_pixels_add_the_change_of_units(dataset, bits):
    std = torch.tensor(build.dataset(build.compose([f"dataset={dataset}"])).std)
    numbers = density(draw(2, 3), torch.zeros(2, 3), 3072, std)
    assert numbers["bpd_8bit"].item() == pytest.approx(bits, abs=1e-3)


def test_raw_bits_are_nats_over_dimensions_and_ln_2():
    weights = torch.full((4, 3), -3072 * np.log(2) * 1.5)
    numbers = density(weights, torch.zeros(4, 3), 3072, torch.ones(3))
    assert numbers["bpd_raw"].item() == pytest.approx(1.5)


@pytest.mark.parametrize("target", ["original", "view"])
def test_dequantised_bits_stay_positive_where_raw_ones_do_not(target):
    # A narrow likelihood of un-dequantised pixels is as dense as one likes; 8-bit images cannot cost less than 0 bits.
    generator, std = torch.Generator().manual_seed(0), torch.tensor([0.3, 0.2, 0.1])
    level = 1 / 255 / std.view(3, 1, 1)
    x = torch.randint(256, (4, 3, 8, 8), generator=generator) * level
    offset = torch.rand(x.shape, generator=generator) * level
    mu = torch.zeros(4, 1)
    exact = Output(x, None, mu, mu, mu, mu, x, torch.tensor([-25.0]))
    width = 2 * level.mean().log().view(1)
    centred = exact._replace(x_hat=x + level / 2, log_scale=width)  # the best a decoder can do
    objective = NegativeELBO(0.0, target=target)
    raw, eight = log_weights(objective, exact, x), log_weights(objective, *shifted(centred, x, offset))
    dequantised = Normal(centred.x_hat, (width / 2).exp()).log_prob(x + offset).sum((1, 2, 3))
    torch.testing.assert_close(eight, dequantised, rtol=1e-3, atol=0.1)  # with μ = z = 0 and σ = 1, p(z) = q(z)
    numbers = density(raw[None], eight[None], 192, std)
    assert numbers["bpd_raw"].item() < -10
    assert 0 < numbers["bpd_8bit"].item() < 3


def test_weights_are_likelihood_times_prior_over_posterior():
    output, x = code(0)._replace(x_hat=draw(6, 3, 4, 4, seed=8), log_scale=torch.zeros(1)), draw(6, 3, 4, 4, seed=9)
    expected = (
        Normal(output.x_hat, 1.0).log_prob(x).sum((1, 2, 3))
        + Normal(0.0, 1.0).log_prob(output.z).sum(1)
        - Normal(output.mu, output.sigma).log_prob(output.z).sum(1)
    )
    torch.testing.assert_close(log_weights(NegativeELBO(0.0), output, x), expected, rtol=1e-4, atol=1e-3)


# ---- Codes --------------------------------------------------------------------------------------------------------


def test_statistics_of_the_code():
    output = code(0)
    numbers = latent_statistics(output)
    mu, sigma = output.mu.numpy(), np.exp(output.log_var.numpy() / 2)
    assert numbers["mu_norm"].item() == pytest.approx(np.sqrt((mu**2).sum(1)).mean(), rel=1e-5)
    assert numbers["sigma_mean"].item() == pytest.approx(sigma.mean(), rel=1e-5)
    assert numbers["snr"].item() == pytest.approx((np.abs(mu) / sigma).mean(), rel=1e-4)


def test_an_autoencoder_s_code_has_a_length_only():
    assert set(latent_statistics(code(0, variational=False))) == {"mu_norm"}


def test_agreement_compares_both_samples_and_both_means():
    clean, view, noise = code(0), code(10), draw(6, 5, seed=30)
    numbers = agreement(clean, view, noise)
    z_clean = clean.mu + noise * (clean.log_var / 2).exp()
    for name, a, b in (
        ("cos_sim", z_clean, view.z),
        ("cos_sim_mu", clean.mu, view.mu),
        ("cos_sim_h", clean.h, view.h),
    ):
        assert numbers[name].item() == pytest.approx(F.cosine_similarity(a, b).mean().item(), rel=1e-4), name
    kl = kl_divergence(Normal(view.mu, view.sigma), Normal(clean.mu, clean.sigma)).sum(1).mean()
    assert numbers["kl_augmentation"].item() == pytest.approx(kl.item(), rel=1e-4)


def test_a_code_agrees_with_itself():
    numbers = agreement(code(0), code(0))
    assert [numbers[f"cos_sim{suffix}"].item() for suffix in ("", "_mu", "_h")] == pytest.approx([1, 1, 1])
    assert numbers["kl_augmentation"].item() == pytest.approx(0, abs=1e-5)


def test_an_autoencoder_s_agreement_is_that_of_mu():
    numbers = agreement(code(0, variational=False), code(10, variational=False))
    assert torch.equal(numbers["cos_sim"], numbers["cos_sim_mu"]) and "kl_augmentation" not in numbers


def test_active_units_are_those_whose_mean_moves():
    mu = draw(5000, 6) * torch.tensor([0.0, 0.05, 0.09, 0.11, 0.2, 3.0]) + 7
    assert active_units(mu).item() == 3  # variances 0.0121, 0.04 and 9 exceed 0.01


# ---- A whole split ------------------------------------------------------------------------------------------------


@cache
def config(*overrides: str):
    return build.compose([*SMALL, *overrides])


def validate(*overrides: str, samples: int = 3, model=None, split=None) -> dict[str, float]:
    cfg = config(*overrides)
    data = build.dataset(cfg).load()
    model = model or build.model(cfg, data)
    validator = Validator(data, build.augmentation(cfg, data), samples, 0, CPU)
    return validator.run(model, split or data["pretrain_val"], pick_precision("fp32", CPU))


ALWAYS = {"loss", "mu_norm", "active_units", "cos_sim"}
VARIATIONAL = {"nll", "kl", "neg_elbo", "kl_augmentation", "sigma_mean", "snr"}
DENSITIES = {"log_px_iw", "bpd_raw", "bpd_8bit"}


@pytest.mark.parametrize(
    ("method", "names", "absent"),
    [
        ("aavae", ALWAYS | VARIATIONAL | DENSITIES, set()),
        ("vae", ALWAYS | VARIATIONAL | DENSITIES, set()),
        ("aavae_mean", ALWAYS | VARIATIONAL, DENSITIES),  # z has no density there
        ("ae", ALWAYS, VARIATIONAL | DENSITIES),
        ("aaae_denoise", ALWAYS, VARIATIONAL | DENSITIES),
    ],
)
def test_every_promised_number_is_measured_and_finite(method, names, absent):
    numbers = validate(f"method={method}")
    assert names <= set(numbers) and not absent & set(numbers)
    assert np.isfinite(list(numbers.values())).all()


@pytest.mark.parametrize("batch_size", [5, 12])  # five leaves a smaller last batch, which is not dropped
def test_validation_is_the_mean_over_all_images_in_eval_mode(batch_size, monkeypatch):
    monkeypatch.setattr(validation, "BATCH", batch_size)
    cfg = config("method=ae")
    data = build.dataset(cfg).load()
    model = build.model(cfg, data)
    numbers = validate("method=ae", model=model)
    x = data.normalize(data["pretrain_val"].images / 255)
    with torch.no_grad():
        output = model.eval()(x)
    assert numbers["loss"] == pytest.approx(F.mse_loss(output.x_hat, x).item(), rel=1e-5)
    assert numbers["active_units"] == (np.var(output.mu.numpy(), axis=0, ddof=1) > 0.01).sum()


def test_validation_changes_neither_weights_nor_statistics_nor_mode():
    model = build.model(config()).train()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    validate(model=model)
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", ["aavae", "aaae_denoise"])
def test_validation_is_the_same_every_time(method):
    torch.manual_seed(1)
    first = validate(f"method={method}")
    torch.manual_seed(2)
    assert validate(f"method={method}") == first


def test_runs_of_all_batch_sizes_are_judged_by_the_same_views_and_noise():
    few, many = (build.trainer(config(f"batch_size={b}")).inspector.validate()[0] for b in (4, 12))
    assert few == many


def test_more_samples_tighten_the_bound():
    # With the Monte-Carlo KL the negative ELBO is the mean of the very weights, so Jensen's inequality is exact.
    one, many = (validate("loss.kl=mc", "loss.beta=1", samples=k) for k in (1, 8))
    assert one["log_px_iw"] == pytest.approx(-one["neg_elbo"], rel=1e-5)
    assert many["log_px_iw"] > -many["neg_elbo"]


def test_the_bound_over_a_split_is_scipy_s():
    model = build.model(config("method=vae"))
    decode, seen = model.decode, []

    def spy(encoded, noise):
        seen.append(decode(encoded, noise))
        return seen[-1]

    model.decode = spy
    numbers = validate("method=vae", model=model, samples=4)
    weights = [
        Normal(o.x_hat, 1.0).log_prob(o.view).sum((1, 2, 3)).double()
        + Normal(0.0, 1.0).log_prob(o.z).sum(1)
        - Normal(o.mu, o.sigma).log_prob(o.z).sum(1)
        for o in seen
    ]
    expected = (logsumexp(torch.stack(weights).numpy(), axis=0) - np.log(4)).mean()
    assert len(weights) == 4 and numbers["log_px_iw"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("method", "decoded"), [("aavae", 3), ("aavae_mean", 1), ("ae", 1)])
def test_only_a_latent_that_is_drawn_is_decoded_more_than_once(method, decoded):
    model, calls = build.model(config(f"method={method}")), []
    model.decoder.register_forward_hook(lambda *_: calls.append(torch.backends.cudnn.benchmark))
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        validate(f"method={method}", model=model, samples=3)
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = before
    assert calls == [False] * decoded  # and cuDNN searches for no kernels of a last batch's shape


def test_a_split_of_one_image_is_measured_without_complaint():
    data = build.dataset(config()).load()
    one = Split(data["pretrain_val"].images[:1])
    assert validate("method=ae", split=one)["active_units"] == 0
