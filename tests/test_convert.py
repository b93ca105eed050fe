"""`aavae-convert` from the outside: round trips, model cards, and encoders that other libraries load and agree with."""

import functools
import json
import os
import shutil
import sys
from pathlib import Path

import lightning_files
import pytest
import timm
import torch
import torchvision
from conftest import command
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import aavae
from aavae import build
from aavae.datasets.folder import ImageNet
from aavae.errors import UserError
from aavae.models.assemble import assemble
from aavae.runtime import targets
from aavae.weights import checkpoint, encoder_file, libraries

IMAGENET = {"dataset": "imagenet", "remove_first_maxpool": False, "first_conv3x3": False, "input_height": 64}
TIMM = {"_target_": libraries.ANY, "image_size": 32}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """`aavae-convert ARGUMENTS`."""
    from aavae.convert import main

    return command(main, "aavae-convert", tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run folder, made once; tests copy it."""
    from aavae.train import main

    before, argv, folder = Path.cwd(), sys.argv, tmp_path_factory.mktemp("trained")
    os.chdir(folder)
    sys.argv = ["aavae-train", "trainer=debug", "hydra.run.dir=run", "probe=knn", "trainer.clean_pass=off"]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0
    finally:
        os.chdir(before)
        sys.argv = argv
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def seen(model: nn.Module, size: int) -> nn.Module:
    """The model after it has seen some images, so that no BatchNorm is what it was at the start."""
    model.train()(2 + torch.randn(8, 3, size, size))
    return model.eval()


@functools.lru_cache(maxsize=3)
def model_of(dataset, encoder):
    """A model with a small decoder that has seen some images."""
    parts = [f"dataset={dataset}", f"encoder={encoder}", "decoder=resnet_tiny", "latent_dim=8"]
    facts = ImageNet if dataset == "imagenet" else None
    model = assemble(build.architecture(build.compose(parts), facts))
    seen(model.encoder, 64)
    return model.eval()


def released(path, dataset="cifar10", encoder="resnet_tiny", parameters=None):
    """Write a Lightning checkpoint; returns the model in it."""
    model = model_of(dataset, encoder)
    lightning_files.write(path, model.state_dict(), parameters, finetuner=True)
    return model


@torch.no_grad()
def features(model, size=32):
    return model(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


# ---- Round trips --------------------------------------------------------------------------------------------------


def test_a_released_checkpoint_becomes_one_of_ours(convert, tmp_path):
    model = released(tmp_path / "a.ckpt")
    ended = convert("a.ckpt", "a.pt")
    assert (ended.code, ended.out) == (0, "aavae on cifar10, step 70,000\nwritten to a.pt\n")
    assert convert("a.pt", "b.pt").code == 0
    x, noise = torch.randn(2, 3, 32, 32), torch.randn(2, 8)
    for name in ("a.ckpt", "a.pt", "b.pt"):
        loaded = aavae.load_model(name)
        with torch.no_grad():
            assert torch.equal(loaded(x, noise).x_hat, model(x, noise).x_hat)
        assert loaded.mean == aavae.load_model("a.ckpt").mean
    assert checkpoint.load(Path("a.pt")).keys() == checkpoint.load(Path("b.pt")).keys()


def test_its_encoder_becomes_a_file_of_its_own(convert, tmp_path):
    model = released(tmp_path / "a.ckpt")
    assert convert("a.ckpt", "a.safetensors").code == convert("a.safetensors", "b.safetensors").code == 0
    for name in ("a.safetensors", "b.safetensors"):
        encoder = aavae.load_encoder(name)
        assert torch.equal(features(encoder), features(model.encoder))
        assert (encoder.mean, encoder.output_dim) == (aavae.load_encoder("a.ckpt").mean, 128)
        said = metadata(name)
        assert (said["method"], said["dataset"], said["epochs"]) == ("aavae", "cifar10", "400.0")
        assert said["batchnorm_statistics"] == "running, of training"
        assert "Test accuracy of h: not measured." in said["model_card"]


def test_a_run_becomes_a_checkpoint_without_what_only_training_needs(convert, evaluate, run):
    assert convert("run", "slim.pt").code == 0
    slim, last = checkpoint.load(Path("slim.pt")), checkpoint.load(run / "last.pt")
    assert not {"optimizer", "loggers", "learners"} & slim.keys() and slim["config"] == last["config"]
    assert all(torch.equal(v, slim["model"][k]) for k, v in last["model"].items())
    assert evaluate("checkpoint=slim.pt", "probe=knn").code == 0
    found = {(r["probe"], r["feature"], r["split"]): r["value"] for r in results("evaluate_slim")}
    assert found == {(r["probe"], r["feature"], r["split"]): r["value"] for r in results("run")}


def test_an_encoder_file_of_a_run_is_judged_as_the_run_was(convert, evaluate, run):
    assert convert("run", "a.safetensors").code == 0
    assert torch.equal(features(aavae.load_encoder("a.safetensors"), 16), features(aavae.load_encoder("run"), 16))
    assert evaluate("checkpoint=a.safetensors", "dataset=synthetic", "probe=knn", "features=[h]").code == 0
    found = {r["split"]: r["value"] for r in results("evaluate_a")}
    assert found == {r["split"]: r["value"] for r in results("run") if r["feature"] == "h"}


# ---- The model card -----------------------------------------------------------------------------------------------


def test_the_card_says_what_is_known(convert, run):
    records = [r | {"value": i / 100} for i, r in enumerate(results("run"))]  # so that no two are the same
    (run / "results.json").write_text(json.dumps(records))
    ended = convert("run", "a.safetensors")
    said, state = metadata("a.safetensors"), checkpoint.load(run / "last.pt")
    assert (said["format"], said["method"], said["dataset"]) == ("pt", "aavae", "synthetic")
    assert float(said["epochs"]) == state["step"] / state["steps_per_epoch"]
    assert json.loads(said["mean"]) == state["mean"] and json.loads(said["std"]) == state["std"]
    assert said["batchnorm_statistics"] == "recalibrated on clean training images"
    [measured] = json.loads(said["results"])
    [r] = [r for r in results("run") if (r["feature"], r["split"]) == ("h", "test")]
    assert measured == {k: r[k] for k in ("probe", "value", "n", "protocol")}
    card = said["model_card"]
    assert card.startswith("# Encoder of aavae\n") and f"- knn: {100 * r['value']:.2f} % ({r['protocol']})" in card
    for words in ("trained on synthetic, ", "128 features", "0.5000, 0.5000, 0.5000 (mean)", "recalibrated on clean"):
        assert words in card
    assert ended.out == f"{card}\nwritten to a.safetensors\n"


def test_accuracies_are_those_of_the_weights_in_the_file(convert, evaluate, run):
    shutil.copy(run / "last.pt", run.parent / "other.pt")  # its probes saw recalibrated statistics, the file has none
    assert evaluate("checkpoint=other.pt", "probe=knn").code == 0
    for source in ("run/last.pt", "other.pt"):
        assert convert(source, "a.safetensors", "overwrite=true").code == 0
        said = metadata("a.safetensors")
        assert len(json.loads(said["results"])) == 1
        running = "running, of training; accuracies are of statistics recalibrated on clean training images"
        assert said["batchnorm_statistics"] == running and running in said["model_card"]
    shutil.move("a.safetensors", "b.safetensors")
    assert convert("b.safetensors", "a.safetensors").code == 0  # they go with it
    assert metadata("a.safetensors") == metadata("b.safetensors")
    records = [r | {"epoch": r["epoch"] + 1} for r in results("run")]  # of a training that has gone on
    (run / "results.json").write_text(json.dumps(records))
    assert "not measured" in convert("run/last.pt", "a.safetensors", "overwrite=true").out


# ---- timm and torchvision -----------------------------------------------------------------------------------------


def of_torchvision(name):
    model = torchvision.models.get_model(name)
    model.fc = nn.Identity()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_an_imagenet_encoder_computes_the_same_in_timm_and_torchvision(convert, tmp_path, name):
    expected = features(released(tmp_path / "a.ckpt", "imagenet", name, IMAGENET).encoder, 64)
    (tmp_path / "out").mkdir()
    for library, model in (("timm", timm.create_model(name, num_classes=0)), ("torchvision", of_torchvision(name))):
        out = tmp_path / "out" / f"{library}.safetensors"
        ended = convert("a.ckpt", str(out), f"to={library}")
        assert ended.code == 0 and f"It loads into {library}." in ended.out
        model.load_state_dict(load_file(out), strict=True)
        torch.testing.assert_close(features(model.eval(), 64), expected)
    model = timm.create_model(name, num_classes=0, checkpoint_path=str(tmp_path / "out" / "timm.safetensors"))
    torch.testing.assert_close(features(model.eval(), 64), expected)
    for path in (*(tmp_path / "out").iterdir(), tmp_path / "a.ckpt"):
        path.unlink()  # they are large


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), [("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 32})])
def test_an_encoder_of_timm_goes_back_to_timm_alone(convert, tmp_path, name, kwargs):
    node = TIMM | {"name": name, "kwargs": kwargs}
    encoder = seen(targets.component(node), 32)
    facts = {"architecture": node, "mean": [0.5] * 3, "std": [0.25] * 3}
    encoder_file.save(tmp_path / "in.safetensors", encoder, facts)
    ended = convert("in.safetensors", "out.safetensors", "to=timm")
    assert ended.code == 0, ended.err
    called = ended.out.split("It loads into ")[1].splitlines()[0].removesuffix(".")
    model = eval(called, {"timm": timm})  # what is said of it is so
    model.load_state_dict(load_file("out.safetensors"), strict=True)
    torch.testing.assert_close(features(model.eval()), features(encoder))
    ended = convert("in.safetensors", "no.safetensors", "to=torchvision")
    assert ended.code == 2 and "torchvision has no model that computes what" in ended.err
    assert not (tmp_path / "no.safetensors").exists()


def test_an_encoder_of_one_s_own_has_to_be_trusted(convert, tmp_path, monkeypatch):
    (tmp_path / "a_module.py").write_text("from torch import nn\ndef flat(width):\n    return nn.Linear(3, width)\n")
    monkeypatch.syspath_prepend(tmp_path)
    facts = {"architecture": {"_target_": "a_module.flat", "width": 2}, "mean": [0.5] * 3, "std": [0.25] * 3}
    encoder_file.save(tmp_path / "in.safetensors", nn.Linear(3, 2), facts)
    ended = convert("in.safetensors", "out.safetensors")
    assert ended.code == 2 and "if you trust it, say trust=[a_module]" in ended.err
    assert convert("in.safetensors", "out.safetensors", "trust=[a_module]").code == 0
    ended = convert("in.safetensors", "no.safetensors", "trust=a_module", "to=timm")
    assert ended.code == 2 and "timm has no model that computes what a_module.flat does" in ended.err


STEM = "the encoder's stem is {} ({}, no max-pool); {}'s ResNets have ImageNet's (7×7, stride 2, max-pool)"
OTHERS = {
    "cifar10": ({}, STEM.format("cifar", "3×3, stride 1", "{}")),
    "stl10": ({"parameters": {"dataset": "stl10"}}, STEM.format("stl", "7×7, stride 2", "{}")),
    "imagenet": ({"parameters": IMAGENET}, "{} has no ResNet of basic blocks [1, 1, 1, 1] that is 16 channels wide"),
}


@pytest.mark.parametrize("library", libraries.LIBRARIES)
@pytest.mark.parametrize("dataset", OTHERS)
def test_what_would_compute_something_else_is_refused_with_the_reason(convert, tmp_path, library, dataset):
    how, reason = OTHERS[dataset]
    released(tmp_path / "a.ckpt", dataset, **how)
    ended = convert("a.ckpt", "out.safetensors", f"to={library}")
    assert ended.code == 2 and reason.format(library) in ended.err and ended.err.endswith("use to=encoder\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert convert("a.ckpt", "out.safetensors", "to=encoder").code == 0


@pytest.mark.parametrize("library", libraries.LIBRARIES)
@pytest.mark.parametrize(("size", "channels"), [("resnet50w2", 128), ("resnet50w4", 256)])
def test_wide_resnets_are_no_one_elses(library, size, channels):
    architecture = build.architecture(build.compose([f"encoder={size}", "dataset=cifar10"]), ImageNet)["encoder"]
    with pytest.raises(UserError, match=rf"{library} has no ResNet of bottleneck .* {channels} channels wide"):
        libraries.twin(library, architecture)


def test_settings_left_at_their_defaults_are_known(tmp_path):
    node = {"_target_": libraries.OURS, "block": "basic", "layers": [2, 2, 2, 2]}
    with pytest.raises(UserError, match="the encoder's stem is cifar"):
        libraries.twin("timm", node)
    assert libraries.twin("timm", node | {"stem": "imagenet"})[1] == "timm.create_model('resnet18', num_classes=0)"
    with pytest.raises(UserError, match="timm has no ResNet whose features are the means of 2² cells"):
        libraries.twin("timm", node | {"stem": "imagenet", "pool": 2})


# ---- The command line ---------------------------------------------------------------------------------------------

SAY = "the command is aavae-convert IN OUT [NAME=VALUE ...]; see --help"
BAD = (
    ("", SAY),
    ("a.ckpt", SAY),
    ("to=timm a.ckpt out.pt", SAY),
    ("a.ckpt out.pt other.pt", "other.pt is not a setting; settings are written NAME=VALUE, see --help"),
    ("a.ckpt out.pt datset=stl10", "there is no setting datset=; did you mean dataset=?"),
    ("a.ckpt out.pt colour=blue", "there is no setting colour=; see --help"),
    ("a.ckpt out.safetensors --to=timm", "there is no option --to=timm"),
    ("a.ckpt out.pt to=onnx", "to= must be one of checkpoint, encoder, timm, torchvision, hub, not onnx"),
    ("a.ckpt out.pt image_size=big", "image_size= must be a number of pixels, not big"),
    ("a.ckpt out.pt image_size=0", "image_size= must be a number of pixels, not 0"),
    ("a.ckpt out.pt overwrite=yes", "overwrite= must be true or false, not yes"),
    ("a.ckpt out.pt dataset=svhn", "dataset= must be one of cifar10, stl10, imagenet, not 'svhn'"),
    ("a.ckpt out.pt dataset=stl10", "a.ckpt was trained with stem cifar, not stl"),
    ("a.ckpt out.safetensors stem=stl", "a.ckpt was trained with stem cifar, not stl"),
    ("nowhere.ckpt out.pt", "there is no nowhere.ckpt"),
    ("empty out.pt", "empty holds neither last.pt nor previous.pt"),
    ("empty out.safetensors", "empty is not a run folder"),
    ("text.txt out.pt", "text.txt cannot be read"),
    ("a.ckpt out.ckpt", "out.ckpt must end in .pt for to=checkpoint"),
    ("a.ckpt out", "out must end in .pt for to=checkpoint"),
    ("a.ckpt out.pt to=timm", "out.pt must end in .safetensors for to=timm"),
    ("a.ckpt out.safetensors to=checkpoint", "out.safetensors must end in .pt for to=checkpoint"),
    ("a.ckpt there.pt", "there.pt is there already; name another file, or say overwrite=true"),
    ("a.ckpt empty.pt overwrite=true", "cannot write empty.pt"),  # a folder
    ("a.ckpt nowhere/out.pt", "cannot write nowhere/out.pt"),
    ("a.ckpt text.txt/out.safetensors", "cannot write text.txt/out.safetensors"),
    ("there.pt ./there.pt overwrite=true", "there.pt is the file to convert; name another file"),
    ("run run/last.pt overwrite=true", "run/last.pt is the file to convert; name another file"),
    ("run/encoder.safetensors out.pt", "run/encoder.safetensors holds an encoder only"),
)


@pytest.mark.parametrize(("line", "words"), BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(convert, run, tmp_path, line, words):
    released(tmp_path / "a.ckpt")
    shutil.copy("run/last.pt", "there.pt")
    for name in ("empty", "empty.pt"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.txt").write_text("not weights")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    ended = convert(*line.split())
    assert ended.code == 2 and words in ended.err and ended.err.startswith("aavae-convert: ")
    assert ended.err.count("\n") == 1 and not ended.out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_file_is_replaced_when_one_says_so(convert, tmp_path):
    released(tmp_path / "a.ckpt")
    (tmp_path / "out.pt").write_text("old")
    assert convert("a.ckpt", "out.pt", "overwrite=true").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "out.pt"] and aavae.load_model("out.pt")


def test_an_interruption_is_one_sentence_too(convert, tmp_path, monkeypatch):
    def interrupted(**options):
        raise KeyboardInterrupt

    (tmp_path / "a.ckpt").touch()
    monkeypatch.setattr("aavae.convert.convert", interrupted)
    ended = convert("a.ckpt", "out.pt")
    assert (ended.code, ended.err) == (130, "aavae-convert: interrupted; nothing is written\n")


def test_help_and_version_say_what_there_is(convert):
    ended = convert("--help")
    assert ended.code == 0 and "usage: aavae-convert IN OUT [NAME=VALUE ...]" in ended.out
    listed = [line.split()[0] for line in ended.out.splitlines() if line.startswith("  ")]
    assert {"to=", "dataset=", "stem=", "image_size=", "trust=", "overwrite="} <= set(listed)
    assert {"checkpoint", "encoder", *libraries.LIBRARIES} <= set(listed)
    assert convert("--version").out.startswith("aavae ")
