"""The autoencoder: sizes and names as released, and what `model(x, noise)` gives."""

import json
from functools import cache

import pytest
import torch
from torch import nn

from aavae import build
from aavae.errors import UserError
from aavae.models.autoencoder import AutoEncoder, Projection
from aavae.models.encoders.resnet import resnet

SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=6")


@cache
def config(*overrides: str):
    return build.compose([*SMALL, *overrides])


def build_model(*overrides: str) -> AutoEncoder:
    return build.model(config(*overrides))


def meta_model(*overrides: str) -> AutoEncoder:
    with torch.device("meta"):
        return build.model(build.compose(overrides))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def x():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(2))


# ---- Sizes and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latent_dim", "variational", "count"),
    [
        (64, True, 4_462_592),
        (128, True, 4_724_736),
        (256, True, 5_249_024),
        (512, True, 6_297_600),
        (128, False, 4_462_592),
    ],
)
def test_projection_has_the_released_size(latent_dim, variational, count):
    with torch.device("meta"):
        projection = Projection(2048, latent_dim, variational)
    assert parameters(projection) == count
    assert projection.mu.bias is None and projection.first_layer[0].bias is not None


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["method=vae", "dataset=cifar10"], 41_516_292),
        (["method=aavae", "dataset=cifar10"], 41_516_292),
        (["method=vae", "dataset=stl10"], 41_523_972),
        (["method=ae", "dataset=cifar10"], 41_254_147),
    ],
)
def test_totals_are_the_released_ones(overrides, count):
    assert parameters(meta_model(*overrides)) == count


@pytest.mark.parametrize("learn_scale", [False, True])
def test_the_model_owns_log_scale_and_learns_it_only_when_asked(learn_scale):
    model = build_model(f"loss.learn_scale={learn_scale}", "loss.log_scale=-1.5")
    log_scale = dict(model.named_parameters())["log_scale"]
    assert log_scale.tolist() == [-1.5] and log_scale.requires_grad == learn_scale


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet50_cifar_beta"])
def test_state_dict_is_the_released_checkpoint_s(name, shared):
    path = shared / "parity" / f"{name}.json"
    if not path.exists():
        pytest.skip("../shared/parity is not here")
    released = json.loads(path.read_text())
    size = released["config"]["encoder"]
    model = meta_model(f"encoder={size}", f"decoder={size}", f"latent_dim={released['config']['latent_dim']}")
    assert {k: list(t.shape) for k, t in model.state_dict().items()} == released["state_dict"]


def test_the_seed_decides_the_weights():
    first, again, other = (build_model(f"seed={seed}").state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["encoder.conv1.weight"], other["encoder.conv1.weight"])


def test_latents_start_at_the_measured_spread():
    torch.manual_seed(0)
    projection = Projection(2048, 128, variational=True)
    with torch.no_grad():
        mu, log_var = projection(torch.rand(256, 2048))
    assert mu.std().item() == pytest.approx(0.42, abs=0.03)  # spec §1.2
    assert log_var.std().item() == pytest.approx(0.41, abs=0.03)


# ---- model(x, noise) ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_without_noise_there_is_a_code_but_no_reconstruction(x, mode):
    output = getattr(build_model(), mode)()(x)
    assert output.h.shape == (4, 128) and output.mu.shape == output.log_var.shape == (4, 6)
    assert output.z is None and output.x_hat is None


def test_one_noise_per_image_gives_one_reconstruction_per_image(x, noise):
    model = build_model().eval()
    output = model(x, noise[0])
    floored = (output.log_var / 2).exp() + 1e-6
    torch.testing.assert_close(output.z, output.mu + floored * noise[0])
    assert output.x_hat.shape == x.shape
    torch.testing.assert_close(output.x_hat, model.decoder(output.z))


def test_k_noises_per_image_give_k_reconstructions_each_as_if_alone(x, noise):
    model = build_model().eval()
    output = model(x, noise)
    assert output.z.shape == (5, 4, 6) and output.x_hat.shape == (5, 4, 3, 16, 16)
    for k in range(5):
        alone = model(x, noise[k])
        torch.testing.assert_close(output.z[k], alone.z)
        torch.testing.assert_close(output.x_hat[k], alone.x_hat, rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_output(x, noise):
    model = build_model().eval()
    expected = model(x, noise).x_hat
    model.to(memory_format=torch.channels_last)
    found = model(x.contiguous(memory_format=torch.channels_last), noise).x_hat
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sigma_has_a_floor(x, noise):
    model = build_model().eval()
    model.projection.logvar.weight.data.fill_(-1e6)
    output = model(x, noise[0])
    torch.testing.assert_close(output.sigma, torch.full((4, 6), 1e-6), rtol=1e-3, atol=0)
    assert output.x_hat.isfinite().all()


@pytest.mark.parametrize("shape", [None, (4, 6), (5, 4, 6)])
@pytest.mark.parametrize("method", ["ae", "aaae", "aaae_denoise"])
def test_an_autoencoder_ignores_noise(method, shape, x):
    model = build_model(f"method={method}").eval()
    output = model(x, None if shape is None else torch.randn(shape))
    assert output.log_var is None and "log_scale" not in model.state_dict()
    assert torch.equal(output.z, output.mu) and output.x_hat.shape == x.shape
    assert torch.equal(output.x_hat, model(x).x_hat)


@pytest.mark.parametrize("several", [False, True])
def test_sample_mean_decodes_mu_whatever_the_noise(x, noise, several):
    model = build_model("method=aavae_mean").eval()
    drawn = noise if several else noise[0]
    output = model(x, drawn)
    assert torch.equal(output.z, output.mu.expand_as(drawn))
    assert torch.equal(output.x_hat, model(x, torch.zeros_like(drawn)).x_hat)


@pytest.mark.parametrize("decoder", ["resnet18", "resnet50w2"])
@pytest.mark.parametrize(
    "encoder",
    [
        ["encoder=resnet18"],
        ["encoder=resnet50w2"],
        ["encoder=resnet_tiny"],
        ["encoder=timm", "encoder.name=edgenext_xx_small", "dataset.image_size=32"],  # 168 features, 16 · 10.5
    ],
    ids=lambda overrides: overrides[0],
)
def test_any_encoder_works_with_any_decoder(encoder, decoder):
    model = meta_model(*SMALL, *encoder, f"decoder={decoder}")
    size = model.decoder.image_size
    output = model(torch.empty(2, 3, size, size, device="meta"), torch.empty(2, 6, device="meta"))
    assert output.h.shape == (2, model.encoder.output_dim) and output.x_hat.shape == (2, 3, size, size)


@pytest.mark.parametrize("overrides", [["method=vae", "loss.learn_scale=true"], ["method=aaae"]], ids=["vae", "aaae"])
def test_every_learned_number_gets_a_gradient(overrides, x, noise):
    cfg = config(*overrides)
    model = build.model(cfg)
    build.loss(cfg)(model(x, noise[0]), x)["loss"].backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # In front of a BatchNorm a bias has no effect.
    assert set(still) <= {"projection.first_layer.0.bias"}


@pytest.mark.parametrize("method", ["vae", "aavae_mean", "ae"])
def test_bf16_autocast_keeps_code_and_losses_in_float32(method, x, noise):
    cfg = config(f"method={method}")
    model, objective = build.model(cfg), build.loss(cfg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x, noise[0])
        terms = objective(output, x)
    assert output.h.dtype is torch.bfloat16  # the precision was in force
    assert output.mu.dtype is torch.float32 and output.z.dtype is torch.float32
    assert {value.dtype for value in terms.values()} == {torch.float32}
    # Sums over 768 pixels are good to float32, not to bfloat16's three digits.
    exact = objective(output._replace(x_hat=output.x_hat.float()), x)
    for name, value in terms.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-5, atol=0)


def test_float64_stays_float64(x, noise):
    cfg = config("method=vae")
    model = build.model(cfg).double()
    output = model(x.double(), noise[0].double())
    assert output.x_hat.dtype is torch.float64
    assert build.loss(cfg)(output, x.double())["loss"].dtype is torch.float64


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("latent_dim=0", ["latent_dim", "1 or more"]),
        ("loss.sample=median", ["loss.sample", "reparam", "mean"]),
        ("loss.log_scale=nan", ["loss.log_scale", "nan"]),
    ],
)
def test_values_out_of_range_are_refused(override, words):
    with pytest.raises(UserError) as refusal:
        build_model(override)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_the_classes_work_without_a_config(x):
    decoder = nn.Sequential(nn.Linear(3, 3 * 16 * 16), nn.Unflatten(1, (3, 16, 16)))
    model = AutoEncoder(resnet("basic", [1, 1, 1, 1], channels=8), decoder, latent_dim=3)
    assert model(x, torch.randn(4, 3)).x_hat.shape == x.shape
