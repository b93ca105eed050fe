"""What later versions must keep: numbers of a few steps, names of runs, and files written by an earlier version.

The losses were written down before the code was moved into rooms (2026-11-28), on an AMD EPYC with torch 2.15. A change
here restarts everybody's runs, or makes their files unreadable: it is a decision, never a repair of this test.
"""

from pathlib import Path

import pytest
import torch

import aavae
from aavae import build
from aavae.models.simclr import SimCLR
from aavae.runs.identity import identity

KEPT = Path(__file__).parent / "kept"
SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8", "batch_size=32", "epochs=2")
SMALL += ("schedule.warmup_epochs=1", "probe=[]", "seed=3")
# The losses of three steps, and of validation after them.
LOSSES = {
    "ae": (1.436758, 1.430459, 1.425601, 1.440551),
    "vae": (1258.8417, 1256.3341, 1254.5027, 1258.9771),
    "aaae": (1.405082, 1.452985, 1.467319, 1.4644),
    "aaae_denoise": (1.436755, 1.43046, 1.425609, 1.440548),
    "aavae": (1257.4806, 1255.0563, 1253.1718, 1258.9292),
    "aavae_mean": (1257.4584, 1255.0413, 1253.1782, 1258.9148),
}
IDENTITIES = {
    "ae": ("d19402b09a", "d1fe97bbc2"),
    "vae": ("506cb337fc", "c42f47731f"),
    "aaae": ("f442a6866a", "6d2dd24c6c"),
    "aavae": ("0b552a95da", "b969373b46"),
}


@pytest.mark.parametrize("method", LOSSES)
def test_steps_have_the_losses_they_had(method):
    trainer = build.trainer(build.compose([*SMALL, f"method={method}"]))
    trainer.model.train()
    batches = trainer.loader.epoch(0)
    found = [trainer.train_step(next(batches))["loss"].item() for _ in range(3)]
    found.append(trainer.inspector.validate()[0]["val/loss"])
    assert found == pytest.approx(LOSSES[method], rel=2e-5)


@pytest.mark.parametrize("method", IDENTITIES)
def test_runs_have_the_names_they_had(method):
    configs = [build.compose([f"method={method}", *more]) for more in ([], ["experiment=digits"])]
    assert tuple(identity(build.plain(cfg)) for cfg in configs) == IDENTITIES[method]


def images() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


@torch.no_grad()
def test_a_kept_autoencoder_is_read():
    model = aavae.load_model(KEPT / "aavae.pt")
    output = model(images(), torch.zeros(2, 4))
    mu = [-0.29636, -0.743543, -0.662681, -0.735917, -0.632785, -1.774687, -1.405274, -2.015224]
    assert output.mu.flatten().tolist() == pytest.approx(mu, abs=1e-4)
    assert output.x_hat.mean().item() == pytest.approx(0.078784, abs=1e-4)
    h = aavae.load_encoder(KEPT / "encoder.safetensors")(images())
    torch.testing.assert_close(h, output.h)


@torch.no_grad()
def test_a_kept_simclr_is_read():
    model = aavae.load_model(KEPT / "simclr.pt")
    assert isinstance(model, SimCLR)
    h = [0.123245, 0.333309, 0.733299, 3.650987, 3.17261, 0.521482]
    assert model.encoder(images())[:, :3].flatten().tolist() == pytest.approx(h, abs=1e-4)
