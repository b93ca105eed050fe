"""What a checkpoint leaves open is asked for, and what only the user says of it is marked as such."""

import lightning_files
import pytest
import torch

from aavae import build, load_model
from aavae.errors import UserError
from aavae.weights import unpickle
from aavae.weights.load import load_trained


@pytest.fixture
def silent(tmp_path):
    """A checkpoint of the released code that does not say whether it is STL-10's or ImageNet's."""
    model = build.model(build.compose(["dataset=stl10", "encoder=resnet_tiny", "decoder=resnet_tiny"]))
    return lightning_files.write(tmp_path / "silent.ckpt", model.state_dict(), lightning_files.NO_PARAMETERS)


def test_what_only_the_user_says_is_noted(silent, tmp_path):
    assert load_trained(silent, dataset="stl10").note == "it does not say that it was trained on stl10; you do"
    assert load_trained(silent, dataset="stl10").dataset == "stl10"
    weights = dict(unpickle.read(silent)["state_dict"])
    said = lightning_files.write(tmp_path / "said.ckpt", weights, {"dataset": "stl10"})
    assert load_trained(said).note is None


def test_images_that_the_released_code_has_not_are_asked_for(tmp_path):
    model = build.model(build.compose(["dataset=cifar10", "encoder=resnet_tiny", "decoder=resnet_tiny"]))
    path = lightning_files.write(
        tmp_path / "svhn.ckpt", model.state_dict(), lightning_files.CIFAR | {"dataset": "svhn"}
    )
    with pytest.raises(UserError, match="was trained on 'svhn'; say with dataset= whose stem, mean and std it has"):
        load_model(path)
    assert load_model(path, dataset="cifar10").architecture["encoder"]["stem"] == "cifar"


def test_a_checkpoint_without_a_config_is_loaded_but_not_judged(tmp_path):
    cfg = build.compose(["dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny"])
    model = build.model(cfg)
    content = {
        "format": 1,
        "architecture": model.architecture,
        "model": model.state_dict(),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    torch.save(content, tmp_path / "bare.pt")
    assert load_model(tmp_path / "bare.pt").latent_dim == cfg.latent_dim
    with pytest.raises(UserError, match="it has no config"):
        load_trained(tmp_path / "bare.pt")
