"""What probes are shown: each representation against a computation of its own, on a copy of the trained model."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from frozen import Cropped, autoencoder, representing, shown
from torch import nn
from torch.nn import functional as F

from aavae import build
from aavae.augmentations.digits import DigitViews
from aavae.augmentations.simclr import SimCLRViews
from aavae.errors import UserError
from aavae.probes import representations

# ---- Each of them -------------------------------------------------------------------------------------------------


def test_h_is_the_encoder_in_eval_mode_on_the_target_part_of_normalised_images():
    model, _ = autoencoder()
    data = Cropped()
    features, labels = representing(model.train(), data)["h"]("test")
    with torch.no_grad():
        torch.testing.assert_close(features, model.eval().encoder(shown(data, "test")))
    assert labels.tolist() == [0, 1, 2] * 4 and features.dtype == torch.float32 and not features.requires_grad


def test_pixels_are_those_images_as_rows():
    model, _ = autoencoder()
    data = Cropped()
    features, _ = representing(model, data)["pixels"]("val")
    assert features.shape == (12, 3 * 16 * 16)
    torch.testing.assert_close(features, shown(data, "val").flatten(1))


def test_mu_is_what_the_projection_makes_of_h():
    model, _ = autoencoder()
    made = representing(model)
    h, mu = made["h"]("test")[0], made["mu"]("test")[0]
    state = model.state_dict()
    first = {k.rpartition(".")[2]: v for k, v in state.items() if k.startswith("projection.first_layer.1.")}
    hidden = F.linear(h, state["projection.first_layer.0.weight"], state["projection.first_layer.0.bias"])
    hidden = (hidden - first["running_mean"]) / (first["running_var"] + 1e-5).sqrt() * first["weight"] + first["bias"]
    torch.testing.assert_close(mu, hidden.relu() @ state["projection.mu.weight"].T, rtol=1e-4, atol=1e-5)


def test_z_is_drawn_from_the_posterior():
    model, _ = autoencoder()
    with torch.no_grad():
        model.projection.logvar.weight *= 20  # widths that are not all 1
    data = Cropped(train=400)
    z = representing(model, data)["z"]("train")[0]
    with torch.no_grad():
        code = model.eval().encode(shown(data, "train"))
    noise = ((z - code.mu) / (code.log_var / 2).exp()).numpy()
    assert noise.shape == (400, 6)
    for latent in noise.T:
        assert scipy.stats.kstest(latent, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(6)).max() < 0.2


def test_z_is_drawn_again_as_before_and_leaves_torchs_own_generator_alone():
    model, _ = autoencoder()
    torch.manual_seed(5)
    first = representing(model)["z"]("test")[0]
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first, representing(model)["z"]("test")[0])


def test_the_untrained_encoder_has_the_weights_of_before_and_statistics_of_clean_images():
    model, cfg = autoencoder()
    data, made = Cropped(), []

    def untrained():
        made.append(build.model(cfg).encoder)
        return made[-1]

    representation = representing(model, data, untrained)["h_untrained"]
    conv, norm = made[0].conv1, representation.encoder.bn1
    assert torch.equal(representation.encoder.conv1.weight, conv.weight)
    before_norm = F.conv2d(shown(data, "pretrain"), conv.weight, stride=conv.stride, padding=conv.padding)
    by_channel = before_norm.detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), by_channel.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), by_channel.var(1), rtol=1e-4, atol=1e-5)
    assert not torch.equal(made[0].bn1.running_mean, norm.running_mean)  # a copy


# ---- The copy that probes see -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recalibrates", [False, True])
def test_probes_get_a_copy_and_the_trained_model_keeps_its_numbers_and_its_mode(recalibrates):
    model, _ = autoencoder()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = representing(model, recalibrates=recalibrates)
    for name in ("h", "mu", "z"):
        made[name]("test")
    with torch.no_grad():
        for parameter in made["h"].encoder.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules()) and not any(m.training for m in made.model.modules())


@pytest.mark.parametrize(
    ("asked_for", "sizes"), [(100, [100]), (501, [251, 250]), (502, [251, 251]), (10_000, [401, 401, 400])]
)
def test_recalibration_takes_as_many_images_as_asked_for_in_equal_batches(asked_for, sizes, monkeypatch):
    monkeypatch.setattr(representations, "BATCH", 500)
    monkeypatch.setattr(representations, "LARGEST", 0)
    model, _ = autoencoder()
    data, seen = Cropped(train=1202), []
    data.target = lambda images: seen.append(len(images)) or images[..., 4:20, 4:20]
    made = representing(model, data, recalibrates=True, recalibration_images=asked_for)
    assert seen == sizes and made.encoder.bn1.num_batches_tracked == len(seen)
    assert not torch.equal(made.encoder.bn1.running_mean, model.encoder.bn1.running_mean)


def test_recalibrated_features_are_those_of_one_exact_pass_over_all_images():
    model, _ = autoencoder()
    data = Cropped(train=502)
    exact = copy.deepcopy(model).double().eval()
    for layer in exact.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # torch's own cumulative average, here of a single batch
            layer.train()
    with torch.no_grad():
        exact.encode(shown(data, "pretrain").double())
        expected = exact.eval().encode(shown(data, "test").double())
    made = representing(model, data, recalibrates=True)
    for name, features in (("h", expected.h), ("mu", expected.mu)):
        found = made[name]("test")[0]
        assert (found - features).norm() < 3e-6 * features.norm(), name  # what float32 itself rounds away


def test_an_encoder_alone_is_shown_as_the_same_encoder_in_its_autoencoder():
    model, _ = autoencoder()
    whole, alone = representing(model), representing(model.encoder)
    assert torch.equal(whole["h"]("test")[0], alone["h"]("test")[0])
    assert alone["h"].model is None and whole["h"].model is whole.model


@pytest.fixture
def settings_of_a_fast_run():
    """What training on CUDA sets for the whole process."""
    before = arithmetic()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def arithmetic():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("recalibrates", [False, True])
def test_features_are_full_float32_whatever_the_run_used(recalibrates, settings_of_a_fast_run):
    model, cfg = autoencoder()
    seen = set()
    hook = nn.modules.module.register_module_forward_hook(lambda *_: seen.add(arithmetic()))
    try:
        reduced = representing(model, untrained=lambda: build.model(cfg).encoder, precision="bf16",
                               recalibrates=recalibrates)  # fmt: skip
        features = {name: reduced[name]("test")[0] for name in ("h", "mu", "z", "h_untrained")}
    finally:
        hook.remove()
    assert seen == {("highest", False, False)} and arithmetic() == ("high", True, True)
    full = representing(model, untrained=lambda: build.model(cfg).encoder, recalibrates=recalibrates)
    assert all(torch.equal(values, full[name]("test")[0]) for name, values in features.items())


def test_views_are_those_of_training_and_the_dataset_s_own_where_training_had_none():
    model, _ = autoencoder()
    trained_with = DigitViews()
    assert representing(model, augmentation=trained_with)["h"].views is trained_with
    views = representing(model)["pixels"].views
    assert isinstance(views, SimCLRViews) and (views.strength, views.blur_p) == (0.5, 0.0)


# ---- What cannot be had -------------------------------------------------------------------------------------------


NO_Z = "this model has no z, only h and mu"


@pytest.mark.parametrize(
    ("method", "name", "words"),
    [
        ("method=ae", "z", NO_Z),
        ("method=aavae_mean", "z", NO_Z),
        ("seed=0", "z", None),
    ]
    + [(m, "mu", None) for m in ("method=ae", "method=aavae_mean")],
)
def test_a_model_without_noise_has_mu_but_no_z(method, name, words):
    made = representing(autoencoder(method)[0])
    assert (made.missing(name) is None) if words is None else words in made.missing(name)
    if words is None:
        assert made[name]("test")[0].shape == (12, 6)


def test_an_encoder_alone_has_neither_mu_nor_z_and_perhaps_no_history():
    made = representing(autoencoder()[0].encoder)
    assert "whole model" in made.missing("mu") and "whole model" in made.missing("z")
    assert "initialised" in made.missing("h_untrained") and made.missing("h") is None


def test_pixels_are_left_out_where_the_largest_split_takes_too_much_memory(monkeypatch):
    made = representing(autoencoder()[0])
    size = made["pixels"]("train")[0].numpy().nbytes  # the largest of the splits
    monkeypatch.setattr(representations, "PIXEL_BYTES", size)
    assert made.missing("pixels") is None
    monkeypatch.setattr(representations, "PIXEL_BYTES", size - 1)
    assert "raw pixels would take" in made.missing("pixels")


def test_features_that_are_not_finite_are_refused():
    model, _ = autoencoder()
    with torch.no_grad():
        nn.init.constant_(model.encoder.conv1.weight, float("nan"))
    with pytest.raises(UserError, match="features h are not finite"):
        representing(model)["h"]("test")
