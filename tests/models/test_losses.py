"""The objectives against torch.distributions, and the reductions, floors and constants of spec §1.4."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

from aavae import build
from aavae.errors import UserError
from aavae.models.losses import (
    NegativeELBO,
    ReconstructionLoss,
    bits_per_dim,
    kl_between,
    kl_to_prior,
    log_importance_weight,
    log_likelihood,
    log_posterior,
    log_prior,
)
from aavae.models.output import Output

B, D, SHAPE = 5, 7, (3, 8, 8)


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def output_of(mu, log_var, noise, x_hat=None, view=None) -> Output:
    sigma = (log_var / 2).exp() + 1e-6
    return Output(view, None, mu, log_var, noise, mu + sigma * noise, x_hat, torch.zeros(1).to(mu))


def nll_of(image, x_hat, sigma):
    return -Independent(Normal(x_hat, sigma), 3).log_prob(image).mean()


@pytest.fixture
def output():
    mu, log_var, noise = (draw(B, D, seed=seed) for seed in (1, 2, 3))
    return output_of(mu, log_var, noise, draw(B, *SHAPE, seed=4), draw(B, *SHAPE, seed=5))


@pytest.fixture
def x():
    return draw(B, *SHAPE, seed=6)


# ---- Against torch.distributions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [(), (4,)])
def test_log_likelihood_equals_torch_distributions(samples, x):
    x_hat, sigma = draw(*samples, B, *SHAPE, seed=7), torch.tensor([0.7], dtype=torch.float64)
    expected = Independent(Normal(x_hat, sigma), 3).log_prob(x)
    assert expected.shape == (*samples, B)
    torch.testing.assert_close(log_likelihood(x, x_hat, sigma), expected)


def test_kl_to_prior_equals_torch_distributions(output):
    expected = kl_divergence(Normal(output.mu, output.sigma), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_prior(output.mu, output.sigma), expected)


def test_kl_between_equals_torch_distributions(output):
    mu, sigma = draw(B, D, seed=8), draw(B, D, seed=9).exp()
    expected = kl_divergence(Normal(output.mu, output.sigma), Normal(mu, sigma)).sum(-1)
    torch.testing.assert_close(kl_between(output.mu, output.sigma, mu, sigma), expected)


def test_log_posterior_and_prior_equal_torch_distributions(output):
    posterior = Normal(output.mu, output.sigma).log_prob(output.z).sum(-1)
    torch.testing.assert_close(log_posterior(output.noise, output.sigma), posterior)
    torch.testing.assert_close(log_prior(output.z), Normal(0.0, 1.0).log_prob(output.z).sum(-1))


def test_log_posterior_survives_a_sigma_that_z_rounds_away():
    mu, noise = torch.full((1, D), 100.0), draw(1, D, dtype=torch.float32)
    output = output_of(mu, torch.full((1, D), -80.0), noise)
    assert torch.equal(output.z, mu)  # float32 has lost the noise
    mu, sigma = mu.double(), output.sigma.double()
    expected = Normal(mu, sigma).log_prob(mu + sigma * noise).sum(-1)
    torch.testing.assert_close(log_posterior(noise, output.sigma).double(), expected, rtol=1e-4, atol=0)


def test_monte_carlo_kl_is_the_analytic_one_in_expectation():
    many = output_of(draw(1, D, seed=1), draw(1, D, seed=2), draw(100_000, 1, D, seed=3))
    estimates = NegativeELBO(beta=1.0, kl="mc").divergence(many)
    analytic = NegativeELBO(beta=1.0, kl="analytic").divergence(many).item()
    error = estimates.std().item() / math.sqrt(len(estimates))
    assert estimates.std() > 0.1  # an estimate, not the analytic value
    assert estimates.mean().item() == pytest.approx(analytic, abs=4 * error)


def test_importance_weights_of_the_exact_posterior_are_the_evidence():
    # x = W z + σ ε with orthogonal columns W: the posterior is diagonal, and every weight equals log p(x).
    n, d, sigma = math.prod(SHAPE), 4, 0.6
    w = torch.linalg.qr(draw(n, d, seed=1)).Q * torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    x = draw(B, n, seed=2)
    variance = 1 / (1 + (w**2).sum(0) / sigma**2)
    log_var = 2 * (variance.sqrt() - 1e-6).log()
    output = output_of(variance * (x @ w) / sigma**2, log_var.expand(B, d), draw(6, B, d, seed=3))
    x_hat = (output.z @ w.T).view(6, B, *SHAPE)
    likelihood = log_likelihood(x.view(B, *SHAPE), x_hat, torch.tensor([sigma], dtype=torch.float64))
    covariance = w @ w.T + sigma**2 * torch.eye(n, dtype=torch.float64)
    evidence = MultivariateNormal(torch.zeros(n, dtype=torch.float64), covariance).log_prob(x)
    torch.testing.assert_close(log_importance_weight(output, likelihood), evidence.expand(6, B))


# ---- The negative ELBO --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_loss_is_beta_kl_minus_log_likelihood_averaged_over_images(output, x, beta):
    terms = NegativeELBO(beta)(output, x)
    nll = -Normal(output.x_hat, 1 + 1e-6).log_prob(x).sum() / B
    kl = kl_divergence(Normal(output.mu, output.sigma), Normal(0.0, 1.0)).sum() / B
    for name, expected in {"nll": nll, "kl": kl, "neg_elbo": nll + kl, "loss": nll + beta * kl}.items():
        torch.testing.assert_close(terms[name], expected)


def test_the_average_runs_over_samples_too(output, x):
    objective = NegativeELBO(1.0, kl="mc")
    several = output_of(output.mu, output.log_var, draw(4, B, D, seed=9), draw(4, B, *SHAPE, seed=10))
    alone = [
        objective(several._replace(noise=several.noise[k], z=several.z[k], x_hat=several.x_hat[k]), x)["loss"]
        for k in range(4)
    ]
    torch.testing.assert_close(objective(several, x)["loss"], torch.stack(alone).mean())


@pytest.mark.parametrize(("scale_param", "sigma"), [("logvar", math.exp(-0.75)), ("logstd", math.exp(-1.5))])
def test_log_scale_is_a_log_variance_or_a_log_standard_deviation(output, x, scale_param, sigma):
    scaled = output._replace(log_scale=torch.tensor([-1.5], dtype=torch.float64))
    found = NegativeELBO(0.0, scale_param=scale_param)(scaled, x)["loss"]
    torch.testing.assert_close(found, nll_of(x, output.x_hat, sigma + 1e-6))


@pytest.mark.parametrize("scale_param", ["logvar", "logstd"])
def test_the_likelihood_s_width_has_a_floor(output, scale_param):
    narrow = output._replace(log_scale=torch.tensor([-1000.0]))
    assert NegativeELBO(0.0, scale_param=scale_param).scale(narrow).item() == pytest.approx(1e-6)


@pytest.mark.parametrize("target", ["original", "view"])
def test_the_target_is_the_clean_image_or_the_view(output, x, target):
    image = {"original": x, "view": output.view}[target]
    elbo = NegativeELBO(0.0, target=target)(output, x)["loss"]
    torch.testing.assert_close(elbo, nll_of(image, output.x_hat, 1 + 1e-6))
    mse = ReconstructionLoss(target=target)(output, x)["loss"]
    torch.testing.assert_close(mse, F.mse_loss(output.x_hat, image))


def test_beta_zero_skips_an_infinite_kl(output, x):
    mu, log_var = (torch.full((B, D), value, dtype=torch.float64, requires_grad=True) for value in (1e200, 0.0))
    broken = output._replace(mu=mu, log_var=log_var, x_hat=output.x_hat.requires_grad_())
    terms = NegativeELBO(0.0)(broken, x)
    assert terms["kl"].item() == math.inf and terms["loss"].isfinite()
    terms["loss"].backward()
    assert mu.grad is None and log_var.grad is None and broken.x_hat.grad.isfinite().all()


def test_beta_weighs_the_gradient_of_the_kl(output, x):
    mu, log_var = output.mu.requires_grad_(), output.log_var.requires_grad_()
    NegativeELBO(0.5)(output, x)["loss"].backward()
    kl = kl_divergence(Normal(mu, (log_var / 2).exp() + 1e-6), Normal(0.0, 1.0)).sum() / B
    for got, expected in zip((mu.grad, log_var.grad), torch.autograd.grad(0.5 * kl, (mu, log_var)), strict=True):
        torch.testing.assert_close(got, expected)


def test_learned_scale_s_gradient_pulls_towards_the_error(output, x):
    # d/ds of the Gaussian nll with variance e^s at s = 0: (D − SSE) / 2 per image.
    log_scale = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    NegativeELBO(0.0)(output._replace(log_scale=log_scale), x)["loss"].backward()
    expected = (math.prod(SHAPE) - ((x - output.x_hat) ** 2).sum() / B) / 2
    assert log_scale.grad.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kl", ["analytic", "mc"])
def test_logged_terms_carry_no_graph(output, x, kl):
    output = output._replace(mu=output.mu.requires_grad_(), x_hat=output.x_hat.requires_grad_())
    terms = NegativeELBO(1.0, kl=kl)(output, x)
    assert terms["loss"].requires_grad and not any(t.requires_grad for k, t in terms.items() if k != "loss")


@pytest.mark.parametrize("objective", [NegativeELBO(0.0), ReconstructionLoss(target="view")])
def test_half_precision_inputs_are_summed_in_float32(output, x, objective):
    single = Output(*(t if t is None else t.float() for t in output))
    half = single._replace(x_hat=single.x_hat.bfloat16(), view=single.view.bfloat16())
    widened = half._replace(x_hat=half.x_hat.float(), view=half.view.float())
    loss = objective(half, x.float())["loss"]
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, objective(widened, x.float())["loss"])


# ---- The autoencoder's error --------------------------------------------------------------------------------------


def test_reductions_of_the_squared_error(output, x):
    mean = ReconstructionLoss(reduction="mean")(output, x)["loss"]
    half_sum = ReconstructionLoss(reduction="half_sum")(output, x)["loss"]
    torch.testing.assert_close(mean, F.mse_loss(output.x_hat, x))
    torch.testing.assert_close(half_sum, 0.5 * F.mse_loss(output.x_hat, x, reduction="sum") / B)


def test_half_sum_is_the_likelihood_at_sigma_one_without_its_constant(output, x):
    nll = NegativeELBO(0.0)(output, x)["loss"].item()
    constant = 0.5 * math.prod(SHAPE) * math.log(2 * math.pi)
    half_sum = ReconstructionLoss(reduction="half_sum")(output, x)["loss"].item()
    assert half_sum == pytest.approx(nll - constant, rel=1e-4)


# ---- Constants of the spec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "constant"), [(32, 2822.98), (96, 25406.81)])
def test_a_perfect_reconstruction_at_sigma_one_costs_the_spec_s_constant(size, constant):
    x = draw(2, 3, size, size, dtype=torch.float32)
    nll = -log_likelihood(x, x, torch.ones(1))
    assert nll.tolist() == pytest.approx([constant] * 2, abs=0.02)
    assert bits_per_dim(-nll, x[0].numel()).tolist() == pytest.approx([1.3257] * 2, abs=1e-4)


def test_the_first_loss_on_standardised_cifar_images_is_the_spec_s():
    cfg = build.compose(["dataset=synthetic", "dataset.image_size=32", "encoder=resnet_tiny", "decoder=resnet_tiny"])
    x, noise = draw(8, 3, 32, 32, dtype=torch.float32), draw(8, 128, dtype=torch.float32)
    loss = build.loss(cfg)(build.model(cfg)(x, noise), x)["loss"]
    assert loss.item() == pytest.approx(4.36e3, rel=0.02)


# ---- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "override", "words"),
    [
        ("vae", "loss.beta=-1", ["loss.beta", "-1"]),
        ("vae", "loss.beta=nan", ["loss.beta", "nan"]),
        ("vae", "loss.beta=inf", ["loss.beta", "inf"]),
        ("vae", "loss.scale_param=variance", ["loss.scale_param", "logvar", "logstd"]),
        ("vae", "loss.kl=exact", ["loss.kl", "analytic", "mc"]),
        ("vae", "loss.target=both", ["loss.target", "original", "view"]),
        ("ae", "loss.target=both", ["loss.target", "original", "view"]),
        ("ae", "loss.reduction=sum", ["loss.reduction", "mean", "half_sum"]),
    ],
)
def test_values_out_of_range_are_refused(method, override, words):
    with pytest.raises(UserError) as refusal:
        build.loss(build.compose([f"method={method}", override]))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_monte_carlo_kl_of_a_z_that_was_not_sampled_is_refused():
    # log q of a noise that z = μ never saw rewards σ → ∞: the loss falls without bound.
    cfg = build.compose(["method=aavae_mean", "loss.kl=mc", "loss.beta=1"])
    with torch.device("meta"), pytest.raises(UserError, match=r"loss\.kl"):
        build.model(cfg)
