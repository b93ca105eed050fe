"""Checkpoints: whole or not at all, data only, and the model that comes back is the one that was saved."""

import io
import json
import os
import pickle

import pytest
import safetensors
import safetensors.torch
import torch

from aavae import build
from aavae.errors import UserError
from aavae.models.assemble import assemble
from aavae.runtime import files, targets
from aavae.weights import checkpoint, encoder_file
from aavae.weights.load import load_encoder, load_model

SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8")
CONFIG = {"method": "vae", "seed": None, "dataset": {}, "loss": {"beta": 0.0}}
FACTS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


@pytest.fixture
def run(tmp_path):
    """A run folder with the three files a model can be loaded from, and the model they hold."""
    architecture = build.architecture(build.compose(SMALL))
    model = assemble(architecture)
    model(3 + torch.randn(8, 3, 16, 16), torch.randn(8, 8))  # in training mode, so that BatchNorm has seen something
    state = {"architecture": architecture, "model": model.state_dict(), "step": 1, **FACTS}
    checkpoint.save(tmp_path / "last.pt", state)
    facts = {"architecture": architecture["encoder"], "batchnorm_statistics": "running, of training", **FACTS}
    encoder_file.save(tmp_path / "encoder.safetensors", model.encoder, facts)
    return tmp_path, model.eval()


def folder_of(path):
    return sorted(p.name for p in path.iterdir())


# ---- Writing ------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(tmp_path):
    state = {"model": {"w": torch.randn(3, 2)}, "step": 7, "config": CONFIG}
    checkpoint.save(tmp_path / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert (loaded["step"], loaded["config"]) == (7, state["config"])


def test_the_last_checkpoint_becomes_the_previous_one(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "last.pt", {"step": step})
        checkpoint.save(tmp_path / "epoch_1.pt", {"step": step})
    assert folder_of(tmp_path) == ["epoch_1.pt", "last.pt", "previous.pt"]
    assert [checkpoint.load(tmp_path / n)["step"] for n in ("last.pt", "previous.pt")] == [3, 2]


@pytest.mark.parametrize("at", [1, 2])
def test_a_crash_between_writing_and_renaming_loses_nothing(tmp_path, monkeypatch, at):
    checkpoint.save(tmp_path / "last.pt", {"step": 1})
    renames, replace = [], os.replace

    def crash(source, target):
        renames.append(target)
        if len(renames) == at:
            raise SystemError("power cut")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(files.os, "replace", crash)
        checkpoint.save(tmp_path / "last.pt", {"step": 2})
    assert checkpoint.find(tmp_path).state["step"] == 1
    assert all(name in ("last.pt", "previous.pt") for name in folder_of(tmp_path))


@pytest.mark.parametrize("content", [b"\x00bytes", "text with β"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, content):
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(SystemError))
        files.write(path, content)
    assert path.read_text() == "old" and folder_of(tmp_path) == ["config.yaml"]
    files.write(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


class Disk(io.FileIO):
    """A file on a disk with two thousand bytes left."""

    def write(self, data):
        if self.tell() + len(data) > 2000:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_keeps_the_checkpoint_before_and_says_what_happened(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.pt", {"step": 1})
    monkeypatch.setattr(files, "open", lambda path, mode: Disk(path, "w"), raising=False)
    with pytest.raises((OSError, UserError, RuntimeError)) as error:
        checkpoint.save(tmp_path / "last.pt", {"step": 2, "w": torch.zeros(10_000)})
    assert folder_of(tmp_path) == ["last.pt", "previous.pt"] and checkpoint.load(tmp_path / "last.pt")["step"] == 1
    assert "No space left" in str(error.value)


# ---- Reading ------------------------------------------------------------------------------------------------------


def truncated(path):
    checkpoint.save(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])


WORDS = "cannot be read: it is truncated, damaged or not a checkpoint"
DAMAGE = {
    "truncated": (truncated, WORDS),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read"),
    "garbage": (lambda p: p.write_bytes(bytes(range(256)) * 20), "cannot be read"),
    "text": (lambda p: p.write_text("epochs: 3\n"), "cannot be read"),
    "a whole module": (lambda p: torch.save(torch.nn.Linear(2, 2), p), "cannot be read"),
    "a foreign checkpoint": (lambda p: torch.save({"state_dict": {}}, p), "not a checkpoint of this version of aavae"),
    "a bare tensor": (lambda p: torch.save(torch.zeros(2), p), "not a checkpoint of this version of aavae"),
    "a folder": (lambda p: p.mkdir(), "is not a file"),
    "missing": (lambda p: None, "there is no checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_checkpoint_gets_one_clear_message(tmp_path, damage):
    make, words = DAMAGE[damage]
    make(tmp_path / "model.pt")
    with pytest.raises(UserError, match=words) as error:
        checkpoint.load(tmp_path / "model.pt")
    assert "model.pt" in str(error.value)


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo ran > {self.path}",)


@pytest.mark.parametrize("write", [torch.save, lambda state, p: p.write_bytes(pickle.dumps(state))])
def test_a_pickle_that_would_run_a_command_is_refused_and_does_not_run_it(tmp_path, write):
    write({"format": checkpoint.FORMAT, "step": Command(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_find_takes_the_last_checkpoint_in_silence(tmp_path):
    assert checkpoint.find(tmp_path) is None
    for step in (1, 2):
        checkpoint.save(tmp_path / "last.pt", {"step": step})
    state, _, _, note = checkpoint.find(tmp_path)
    assert (state["step"], note) == (2, None)


def test_find_falls_back_to_the_previous_good_checkpoint_and_says_so(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path / "last.pt", {"step": step})
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:100])
    state, _, _, note = checkpoint.find(tmp_path)
    assert state["step"] == 1
    assert note == f"last.pt {WORDS}; previous.pt (step 1) is used instead"


def test_find_falls_back_to_the_newest_epoch(tmp_path):
    for epoch in (9, 10, 100):
        checkpoint.save(tmp_path / f"epoch_{epoch}.pt", {"step": epoch})
    for name in ("last.pt", "previous.pt", "epoch_100.pt"):
        (tmp_path / name).write_bytes(b"")
    state, _, _, note = checkpoint.find(tmp_path)
    assert state["step"] == 10 and "epoch_10.pt (step 10)" in note


def test_find_says_when_a_crash_left_only_the_previous_one(tmp_path):
    checkpoint.save(tmp_path / "previous.pt", {"step": 1})
    state, _, _, note = checkpoint.find(tmp_path)
    assert state["step"] == 1 and note and "previous.pt" in note


def test_find_gives_up_with_a_way_out_when_nothing_can_be_read(tmp_path):
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"no")
    with pytest.raises(UserError, match=r"no checkpoint .* can be used \(last.pt, previous.pt\): last.pt cannot"):
        checkpoint.find(tmp_path)


# ---- State dicts --------------------------------------------------------------------------------------------------


def test_a_state_dict_that_does_not_fit_is_refused_naming_keys_and_shapes():
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match=r"it does not fit .*: missing bias; unknown b; weight is \(2, 4\), not"):
        checkpoint.fit_state(layer, {"weight": torch.zeros(2, 4), "b": torch.zeros(2)}, "it")
    before = layer.weight.clone()
    with pytest.raises(UserError, match="and 1 more"):
        checkpoint.fit_state(layer, {"x": before, "y": before}, "it")
    assert torch.equal(layer.weight, before)


def test_a_checkpoint_of_another_model_is_refused(run):
    folder, _ = run
    state = checkpoint.load(folder / "last.pt")
    state["architecture"]["latent_dim"] = 16
    checkpoint.save(folder / "last.pt", state)
    with pytest.raises(UserError, match=r"last.pt does not fit this model: .*\(8, .*not \(16"):
        load_model(folder / "last.pt")


# ---- Models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "last.pt"])
def test_the_model_comes_back(run, name):
    folder, model = run
    loaded = load_model(str(folder / name))
    x, noise = torch.randn(4, 3, 16, 16), torch.randn(4, 8)
    with torch.no_grad():
        ours, theirs = loaded(x, noise), model(x, noise)
    assert not any(m.training for m in loaded.modules())
    assert torch.equal(ours.x_hat, theirs.x_hat) and torch.equal(ours.mu, theirs.mu)


@pytest.mark.parametrize("name", ["", "last.pt", "encoder.safetensors"])
def test_the_encoder_comes_back_with_its_facts(run, name):
    folder, model = run
    encoder = load_encoder(folder / name)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        features = encoder(x)
        assert torch.equal(features, model.encoder(x))
    assert not any(m.training for m in encoder.modules())
    assert encoder.output_dim == features.shape[1] == 128
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_after_a_crash_the_previous_checkpoint_serves(run):
    folder, _ = run
    (folder / "last.pt").rename(folder / "previous.pt")
    (folder / "encoder.safetensors").unlink()
    for load in (load_model, load_encoder):
        with pytest.warns(UserWarning, match=r"last.pt is missing; previous.pt \(step 1\) is used instead"):
            assert load(folder)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_timm_encoder_comes_back(tmp_path, name):
    node = {"_target_": "aavae.models.encoders.timm_model.timm_model", "name": name, "image_size": 32}
    node["kwargs"] = {"img_size": 32} if name.startswith("vit") else {}
    encoder = targets.component(node).eval()
    encoder_file.save(tmp_path / "encoder.safetensors", encoder, {"architecture": node, **FACTS})
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        loaded = load_encoder(tmp_path)(x)
        assert torch.equal(loaded, encoder(x)) and loaded.shape[1] == encoder.output_dim


def test_the_safetensors_file_says_which_statistics_it_holds_and_holds_only_tensors(run):
    folder, model = run
    with safetensors.safe_open(folder / "encoder.safetensors", "pt") as handle:
        metadata = handle.metadata()
    assert metadata["batchnorm_statistics"] == "running, of training"
    assert json.loads(metadata["mean"]) == FACTS["mean"]
    tensors = safetensors.torch.load_file(folder / "encoder.safetensors")
    assert tensors.keys() == model.encoder.state_dict().keys()
    assert all(torch.equal(t, tensors[k]) for k, t in model.encoder.state_dict().items())


def test_loading_the_wrong_kind_of_file_says_what_it_is(run, tmp_path_factory):
    folder, _ = run
    with pytest.raises(UserError, match="holds an encoder only; load it with load_encoder"):
        load_model(folder / "encoder.safetensors")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=r"holds neither encoder\.safetensors nor last\.pt nor previous\.pt"):
        load_encoder(empty)
    safetensors.torch.save_file({"w": torch.zeros(1)}, empty / "foreign.safetensors")
    with pytest.raises(UserError, match=r"not an encoder\.safetensors written by aavae"):
        load_encoder(empty / "foreign.safetensors")
    (empty / "short.safetensors").write_bytes((folder / "encoder.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match=r"not an encoder\.safetensors written by aavae"):
        load_encoder(empty / "short.safetensors")


# ---- A checkpoint names only encoders and decoders ----------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.exec",
        "aavae.train.main",
        "aavae.encodersx.resnet",
        "aavae.models.encoders.os.system",
        "aavae.models.encoders..os.system",
        "aavae.models.encoders.torch.load",
        "aavae.models.encoders.torch.hub.load",
        "aavae.models.encoders.torch.os.system",
        "aavae.models.encoders.timm_model.timm.create_model",
        "aavae.models.encoders.timm_model.timm.models.load_checkpoint",
        "aavae.models.decoders.resnet.nn.Linear",
        "aavae.models.decoders.resnet.math.sqrt",
        "aavae.models.decoders.resnet.DecoderBlock.__init__",
        "aavae.models.encoders.resnet.resnet.__globals__",
        "aavae.models.encoders.resnet.",
        "aavae.models.encoders.",
        "aavae.models.encoders.resnet.resnet101",
    ],
)
def test_a_checkpoint_cannot_name_another_function(target):
    with pytest.raises(UserError, match=r"is not among what|there is no"):
        targets.component({"_target_": target})


@pytest.mark.parametrize(
    "target",
    [
        "aavae.models.encoders.resnet.nn",
        "aavae.models.encoders.torch",
        "aavae.models.encoders.resnet.ResNet",
        "aavae.models.encoders.resnet._widen_stem",
        "aavae.models.encoders.timm_model.measure_output_dim",
        "aavae.models.decoders.resnet.Tensor",
        "aavae.models.decoders.resnet.UserError",
    ],
)
def test_nor_what_those_modules_happen_to_import(target):
    with pytest.raises(UserError):
        targets.component({"_target_": target})


def test_an_architecture_cannot_make_timm_read_another_file(tmp_path):
    weights = tmp_path / "elsewhere.pth"
    node = {"_target_": "aavae.models.encoders.timm_model.timm_model", "name": "resnet10t", "image_size": 32}
    torch.save(targets.component(node).state_dict(), weights)  # timm 1.0.15 would unpickle it in full
    with pytest.raises(UserError, match="checkpoint_path"):
        targets.component(node | {"kwargs": {"checkpoint_path": str(weights)}})


@pytest.mark.parametrize(
    "architecture", [None, {}, ["resnet"], {"encoder": {"_target_": "aavae.models.encoders.resnet.resnet"}}]
)
def test_a_checkpoint_with_a_mangled_architecture_gets_a_message_too(tmp_path, architecture):
    checkpoint.save(tmp_path / "last.pt", {"architecture": architecture, "model": {}, "step": 1, **FACTS})
    encoder_file.save(tmp_path / "encoder.safetensors", torch.nn.Linear(1, 1), {"architecture": architecture})
    for load in (load_model, load_encoder):
        with pytest.raises(UserError):
            load(tmp_path)
