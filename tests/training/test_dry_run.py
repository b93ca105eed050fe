"""`dry_run=true` of datasets that are not here: nothing is downloaded, and the numbers are facts."""

import re
import urllib.request
from pathlib import Path

import pytest
import torch

from aavae import build
from aavae.datasets.rehearsal import Rehearsal, bytes_not_made
from aavae.errors import UserError

TINY = ("encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("downloaded"))


@pytest.mark.parametrize(
    ("dataset", "images", "size"), [("cifar10", 45_000, 32), ("stl10", 95_000, 96), ("imagenet", 1_271_167, 224)]
)
def test_a_dry_run_answers_before_anything_is_downloaded(train, dataset, images, size):
    ended = train(f"dataset={dataset}", *TINY, "batch_size=8", "epochs=3", "dry_run=true")
    assert ended.code == 0, ended.err
    assert f"{dataset}: {images:,} images for pretraining, {size}²" in ended.out
    assert f"{dataset} is not here" in ended.out and ended.out.count("random images") == 1
    assert (
        f"steps       {3 * (images // 8):,} (3 epochs of {images // 8:,})" in ended.out
        and "time        about" in ended.out
    )
    cfg = build.compose([f"dataset={dataset}", *TINY])
    parameters = sum(p.numel() for p in build.model(cfg).parameters())
    assert f"{parameters:,} parameters" in ended.out
    assert not list(Path().iterdir())


def test_a_dry_run_of_a_sweep_downloads_nothing(quick_jobs, train):
    ended = train("-m", "dataset=cifar10", *TINY, "batch_size=8,9", "epochs=1", "dry_run=true")
    assert ended.code == 0, ended.err
    assert f"steps       {45_000 // 8 + 45_000 // 9:,} in all" in ended.out
    assert ended.out.count("cifar10 is not here") == 1 and not list(Path().iterdir())


def test_memory_counts_the_images_that_are_not_made(train):
    said = [train("dataset=stl10", *TINY, "batch_size=8", "dry_run=true").out]
    (memory,) = re.findall(r"memory +([\d.]+) GiB", said[0])
    assert float(memory) > (95_000 + 4_500 + 5_000 + 500 + 8_000) * 3 * 96**2 / 2**30
    data = build.dataset(build.compose(["dataset=imagenet"])).load(rehearse=True)
    assert data.rehearsed and bytes_not_made(data) == 0  # streamed


def test_what_is_to_be_trained_is_not_random(train):
    ended = train("dataset=imagenet", *TINY, "batch_size=8")
    assert ended.code == 2 and "there is no ImageNet in data/imagenet" in ended.err and "dataset.path=" in ended.err
    ended = train("dataset=imagenet", "dataset.path=typo", *TINY, "dry_run=true")
    assert ended.code == 2 and "dataset.path=typo does not exist" in ended.err
    ended = train("dataset=image_folder", *TINY, "dry_run=true")
    assert ended.code == 2 and "dataset.path=" in ended.err


def test_what_learns_from_images_in_memory_is_refused_in_a_rehearsal_too():
    cfg = build.compose(["dataset=imagenet", *TINY, "batch_size=8", "probe=online", "dry_run=true"])
    with pytest.raises(UserError, match="in_memory"):
        build.trainer(cfg)


def test_a_rehearsal_has_the_interface_of_a_split():
    split = Rehearsal(1000, 4, 10, torch.device("cpu"))
    assert len(split) == 1000 and len(split.labels) == 1000 and split.labels.bincount().tolist() == [100] * 10
    some = torch.tensor([0, 256, 999])
    assert torch.equal(split[some][0], split[some][1]) and torch.equal(split.take(some).images, split[some])
    assert torch.equal(split.take(some).labels, torch.tensor([0, 6, 9]))
    assert [len(batch) for batch in split.batches(400)] == [400, 400, 200]
    assert split.images.float().std() > 60
