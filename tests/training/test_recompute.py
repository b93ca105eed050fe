"""Gradient checkpointing: the same numbers, from less that is kept."""

import itertools

import pytest
import torch

from aavae import build
from aavae.errors import UserError

COMPARING = ("encoder=resnet_tiny", "model.hidden_dim=16", "model.output_dim=8")
METHODS = {
    "aavae": ("encoder=resnet_tiny", "decoder=resnet_tiny"),
    "aavae, timm": ("encoder=timm", "encoder.name=resnet10t", "decoder=shuffle", "trainer.clean_pass=off"),
    "aavae, virtual_batch": ("encoder=resnet_tiny", "decoder=resnet_tiny", "trainer.virtual_batch=8"),
    "aavae, accumulate": ("encoder=resnet_tiny", "decoder=resnet_tiny", "trainer.accumulate=2", "precision=bf16"),
    "aavae, 224²": (
        "encoder=resnet_tiny",
        "encoder.stem=imagenet",
        "decoder=resnet_tiny",
        "dataset.image_size=224",
        "trainer.clean_pass=off",
        "batch_size=2",
        "dataset.size=8",
    ),
    "byol": ("method=byol", *COMPARING),
    "mae": (
        "method=mae",
        "encoder=vit_tiny",
        "trainer.clean_pass=off",
        "model.decoder_depth=1",
        "model.decoder_heads=2",
    ),
}


def trainer(*overrides: str):
    words = ["dataset=synthetic", "dataset.size=48", "batch_size=16", "latent_dim=8", "probe=[]", *overrides]
    t = build.trainer(build.compose([*words, "schedule.warmup_epochs=0"]))
    t.model.train()
    return t


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_statistics_are_the_same_to_the_bit(method):
    def trained(*overrides: str) -> tuple[list[float], dict]:
        t = trainer(*METHODS[method], *overrides)
        losses = [t.train_step(batch)["loss"].item() for batch in itertools.islice(t.loader.epoch(0), 3)]
        return losses, t.model.state_dict()

    losses, weights = trained()
    again, same = trained("trainer.grad_checkpointing=true")
    assert losses == again and len(losses) == 3
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_far_less_is_kept_for_the_backward_pass():
    def kept(*overrides: str) -> int:
        t = trainer("encoder=resnet18", "decoder=resnet18", "trainer.clean_pass=off", *overrides)
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), t._recompute():
            images = torch.randn(8, 3, 16, 16)
            t.model.learn(images[None], images, torch.randn(8, 8))
        return sum(seen.values())

    assert kept("trainer.grad_checkpointing=true") < kept() / 3


def test_nothing_is_left_on_the_blocks():
    t = trainer(*METHODS["aavae"], "trainer.grad_checkpointing=true")
    t.train_step(next(iter(t.loader.epoch(0))))
    assert not any("forward" in vars(module) for module in t.model.modules())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=spark", "encoder=resnet_tiny", "model.decoder_dim=32"], "SparK, whose layers change"),
        (["encoder=timm", "encoder.name=test_vit", "trainer.compile=true"], "cannot be used together"),
    ],
)
def test_where_it_cannot_be_used_it_is_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        trainer(*overrides, "trainer.clean_pass=off", "trainer.grad_checkpointing=true")
