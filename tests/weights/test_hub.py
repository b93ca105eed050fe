"""`aavae-convert … to=hub`: a folder that timm and the Hugging Face Hub read."""

import json

import pytest
import timm
import torch
import torchvision
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

import aavae
from aavae.runtime import targets
from aavae.weights import encoder_file, hub, libraries

SIZE = 64
FACTS = {"mean": [0.48, 0.45, 0.4], "std": [0.25, 0.24, 0.26], "image_size": SIZE, "resize": 73, "output_dim": 8}
FACTS |= {"method": "simclr", "dataset": "cifar10", "epochs": 7.0, "seed": 0, "start": "a/run (ae on digits)"}
RESULT = {"probe": "knn", "value": 0.8125, "n": 10_000, "protocol": "k=20, cosine, float32"}
FACTS |= {"results": [RESULT], "batchnorm_statistics": "running, of training"}
VIT = {"image_size": SIZE, "patch_size": 16, "width": 24, "depth": 1, "heads": 2, "pool": "avg"}
ENCODERS = {
    "resnet18": {"_target_": libraries.OURS, "block": "basic", "layers": [2, 2, 2, 2], "stem": "imagenet"},
    "vit_small_patch16_224": {"_target_": libraries.VIT, **VIT},
    "resnet10t": {"_target_": libraries.ANY, "name": "resnet10t.c3_in1k", "image_size": SIZE, "kwargs": {}},
    "convnext_atto": {
        "_target_": libraries.ANY,
        "name": "convnext_atto",
        "image_size": SIZE,
        "kwargs": {"dims": [8] * 4},
    },
}
CIFAR = {"_target_": libraries.OURS, "block": "basic", "layers": [1, 1, 1, 1], "channels": 8, "stem": "cifar"}


def written(path, node, **facts) -> nn.Module:
    """An encoder that has seen images, and its file."""
    torch.manual_seed(0)
    encoder = targets.component(node)
    encoder.train()(1 + torch.randn(4, 3, SIZE, SIZE))
    own = {"architecture": node, **FACTS, "output_dim": encoder.output_dim}
    encoder_file.save(path, encoder, own | facts)
    return encoder.eval()


@torch.no_grad()
def features(encoder):
    return encoder.eval()(torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", ENCODERS)
def test_timm_loads_the_folder_and_computes_the_same(name, convert, tmp_path):
    encoder = written(tmp_path / "in.safetensors", ENCODERS[name])
    ended = convert("in.safetensors", "out", "to=hub", "license=mit")
    assert ended.code == 0, ended.err
    assert 'timm.create_model("local-dir:out", pretrained=True) loads it.' in ended.out
    assert ended.out.endswith("Upload it with: hf upload USER/NAME out\nwritten to out\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors", "out"]
    net = timm.create_model("local-dir:out", pretrained=True)
    torch.testing.assert_close(features(net), features(encoder), rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "out/config.json").read_text())["architecture"] == name
    torch.testing.assert_close(features(aavae.load_encoder("out/model.safetensors")), features(encoder))
    assert ModelCard.load("out/README.md").data.library_name == "timm"


def test_timm_prepares_images_as_the_encoder_s_transform_does(convert, tmp_path):
    written(tmp_path / "in.safetensors", ENCODERS["resnet10t"])
    assert convert("in.safetensors", "out", "to=hub").code == 0
    net = timm.create_model("local-dir:out", pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    pixels = torch.randint(0, 256, (3, 120, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = torchvision.transforms.functional.to_pil_image(pixels)
    torch.testing.assert_close(theirs(image), aavae.load_encoder("out/model.safetensors").transform(image))
    assert isinstance(image, Image.Image)


@pytest.mark.parametrize(("size", "resize"), [(96, 105), (32, 32), (224, 256), (64, 73), (28, 35)])
def test_the_cut_is_what_timm_makes_of_it(size, resize):
    steps = timm.data.create_transform(size, crop_pct=hub.crop_pct(size, resize), interpolation="bilinear").transforms
    assert steps[0].size == resize


def test_the_hub_reads_the_card(convert, tmp_path):
    written(tmp_path / "in.safetensors", CIFAR)
    ended = convert("in.safetensors", "out", "to=hub", "license=cc-by-nc-4.0")
    assert ended.code == 0 and "The encoder's stem is cifar (3×3, stride 1, no max-pool); timm's" in ended.out
    card = ModelCard.load("out/README.md")
    said = card.data
    assert (said.license, said.library_name, said.datasets) == ("cc-by-nc-4.0", "aavae", ["uoft-cs/cifar10"])
    assert {"simclr", "self-supervised-learning"} <= {*said.tags} and said.metrics == ["accuracy"]
    [result] = said.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.8125, "test")
    assert result.metric_name == "kNN on frozen features: k=20, cosine, float32"
    for words in (
        "started from a/run (ae on digits)",
        "knn: 81.25 % (k=20, cosine, float32)",
        "cc-by-nc-4.0.",
        "7 epochs",
    ):
        assert words in card.text
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["encoder"] == CIFAR and config["load"] == "aavae.load_encoder('model.safetensors')"
    code = card.text.split("```python\n")[1].split("```")[0]
    Image.new("RGB", (80, 70)).save("photo.png")
    names: dict = {}
    exec(code.replace('hf_hub_download("USER/NAME", "model.safetensors")', '"out/model.safetensors"'), names)
    assert names["features"].shape == (1, 64)


def test_a_licence_that_nobody_states_is_unknown(convert, tmp_path):
    written(tmp_path / "in.safetensors", CIFAR, results=[], start=None)
    ended = convert("in.safetensors", "out", "to=hub")
    assert "license=NAME sets it, for example apache-2.0" in ended.out
    card = ModelCard.load("out/README.md")
    assert card.data.license == "unknown" and not card.data.eval_results and "has not stated a licence" in card.text
    assert "started from random weights" in card.text and "Test accuracy of h: not measured." in card.text


BAD = (
    ("in.safetensors there to=hub", "there is there already; name another folder, or say overwrite=true"),
    ("in.safetensors there to=hub overwrite=true", "there holds other files (mine.txt), which would be lost"),
    ("in.safetensors nowhere/out to=hub", "cannot write nowhere/out (No such file or directory)"),
    ("in.safetensors out to=hub license=My.Own", "license= is for to=hub, and a name such as apache-2.0"),
    ("in.safetensors out.safetensors license=mit", "license= is for to=hub, and a name such as apache-2.0"),
)


@pytest.mark.parametrize(("line", "words"), BAD)
def test_what_cannot_be_written_leaves_everything_as_it_is(convert, tmp_path, line, words):
    written(tmp_path / "in.safetensors", CIFAR)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    ended = convert(*line.split())
    assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1 and not ended.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_is_replaced_whole_or_not_at_all(convert, tmp_path, monkeypatch):
    written(tmp_path / "in.safetensors", CIFAR)
    assert convert("in.safetensors", "out", "to=hub").code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    save = encoder_file.save
    monkeypatch.setattr(encoder_file, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    ended = convert("in.safetensors", "out", "to=hub", "overwrite=true", "license=mit")
    assert ended.code == 2 and "cannot write out (No space left on device)" in ended.err
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    monkeypatch.setattr(encoder_file, "save", save)
    assert convert("in.safetensors", "out", "to=hub", "overwrite=true", "license=mit").code == 0
    assert ModelCard.load("out/README.md").data.license == "mit"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors", "out"]
