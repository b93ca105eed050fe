"""Files that strangers made: whatever reads them executes nothing of them, and says in a sentence what is wrong."""

import json
import shutil
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from pickles import archive, call, named, text
from PIL import Image
from run_folders import a_run, a_sweep, record

import aavae
from aavae.errors import UserError
from aavae.reports.means import summarize
from aavae.reports.page import page
from aavae.runtime import seals
from aavae.weights import checkpoint, encoder_file

ENCODER = {"_target_": "aavae.models.encoders.resnet.resnet", "block": "basic", "layers": [1, 1, 1, 1], "channels": 2}
SYNTHETIC = {"_target_": "aavae.datasets.synthetic.Synthetic"}
TAGS = (
    "a: !!python/object/apply:os.system ['touch executed']",
    "a: !!python/object/new:os.system [touch executed]",
    "a: !!python/name:os.system ''",
    "a: !!python/module:executed",
    "!!python/object/apply:subprocess.check_call [[touch, executed]]",
)
TARGETS = (
    "os.system", "subprocess.check_call", "builtins.exec", "executed.Class", "aavae.runtime.files.write",
    "aavae.models.encoders.resnet.nn.Module", "aavae.models.encoders.resnet.__builtins__", "posix.system",
    "aavae.models.encoders..executed.Class", "aavae.models.encoders.executed.Class",
)  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder of commands, in which a module `executed`, once imported, and `touch executed` leave a file."""
    (tmp_path / "executed.py").write_text("open('executed', 'w').close()\nclass Class: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    from conftest import command

    from aavae.report import main

    return command(main, "aavae-report", tmp_path, monkeypatch, capsys)


def one_sentence(ended) -> str:
    assert ended.code == 2 and ended.err.count("\n") == 1 and "Traceback" not in ended.err, ended
    return ended.err


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_names_no_python(here, report, runs, train, tag):
    a_run(here / "outputs/a", record())
    (here / "outputs/a/config.yaml").write_text(f"{tag}\n")
    assert "could not determine a constructor" in (ended := report("outputs")).out and ended.code == 2
    assert runs("show", "outputs/a").code == 0 and "damaged" in runs("ls").out
    (here / "own/optimizer").mkdir(parents=True)
    (here / "own/optimizer/mine.yaml").write_text(f"# @package _global_\n{tag}\n")
    assert "could not determine a constructor" in one_sentence(train("--config-dir", "own", "optimizer=mine"))


@pytest.mark.parametrize("target", TARGETS)
def test_targets_of_files_are_not_called(here, report, runs, evaluate, convert, embed, target):
    node = {"_target_": target, "command": "touch executed"}
    a_run(here / "outputs/a", record(), encoder=node, dataset=node, augmentation=node, model=node)
    a_sweep(here / "outputs", "seed=0")
    state = {
        "format": checkpoint.FORMAT, "architecture": {"encoder": ENCODER, "decoder": node, "latent_dim": 4},
        "model": {"w": torch.zeros(1)}, "mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 16, "step": 1,
        "steps_per_epoch": 1, "data": None, "dataset": "synthetic",
        "config": {"method": "aavae", "seed": 0, "dataset": node, "augmentation": node},
    }  # fmt: skip
    places = [state | {"architecture": state["architecture"] | {key: node}} for key in ("encoder", "decoder")]
    places.append(state | {"architecture": state["architecture"] | {"_target_": target}})
    Image.new("RGB", (16, 16)).save(here / "a.png")
    with zipfile.ZipFile("a.zip", "w") as images:
        images.write("a.png")
    for content in places:
        checkpoint.save(here / "outputs/a/last.pt", content)
        for run in ("outputs/a", "outputs/a/last.pt"):
            one_sentence(convert(run, "b.pt"))
            one_sentence(embed(f"run={run}", "images=a.zip", "out=b.npz"))
        one_sentence(evaluate("run=outputs/a", "probe=knn"))
    layer = torch.nn.Linear(1, 1)
    encoder_file.save(here / "e.safetensors", layer, {"architecture": node, "mean": [0.5] * 3, "std": [0.5] * 3})
    one_sentence(convert("e.safetensors", "b.safetensors"))
    one_sentence(evaluate("checkpoint=e.safetensors", "dataset=synthetic"))
    assert report("outputs").code in (0, 1) and runs("ls").code == 0 and runs("show", "outputs/a").code == 0


def test_a_dataset_of_a_checkpoint_is_not_built_unless_it_is_trusted(here, evaluate):
    kept = checkpoint.load(aavae_kept() / "aavae.pt")
    for target in TARGETS:
        node = {"_target_": target, "command": "touch executed"}
        for part in ("dataset", "augmentation"):
            config = kept["config"] | {"dataset": SYNTHETIC} | {part: node}
            checkpoint.save(here / "last.pt", kept | {"config": config})
            one_sentence(evaluate("checkpoint=last.pt", "probe=knn"))


def aavae_kept():
    from test_kept import KEPT

    return KEPT


def test_pickles_are_not_run(here, evaluate, convert, embed):
    calls = [
        call(named("os.system"), text("touch executed")),
        call(named("posix.system"), text("touch executed")),
        call(named("builtins.eval"), text("open('executed', 'w')")),
        call(named("torch", "hub.os.system"), text("touch executed")),
        named("executed.Class"),
        call(named("executed.Class")),
    ]
    for run in calls:
        archive(here / "last.pt", b"\x80\x02" + run + b".")
        (here / "run").mkdir(exist_ok=True)
        shutil.copy("last.pt", "run/last.pt")
        for source in ("last.pt", "run"):
            one_sentence(convert(source, "b.pt"))
            one_sentence(embed(f"run={source}", "images=.", "out=b.npz"))
        one_sentence(evaluate("run=run", "probe=knn"))
        one_sentence(evaluate("checkpoint=last.pt", "probe=knn"))


def test_a_zip_writes_nothing_anywhere(here, embed):
    (here / "inner").mkdir()
    Image.new("RGB", (16, 16)).save("inner/a.png")
    data = (here / "inner/a.png").read_bytes()
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile("inner/evil.zip", "w") as images:
        for name in ("../../up.png", "/absolute.png", "a/../../up.png", "good/a.png", "good/b.png"):
            images.writestr(name, data)
        images.writestr(link, "/etc/passwd")
    before = {*here.rglob("*")}
    shutil.copy(aavae_kept() / "encoder.safetensors", here / "e.safetensors")
    ended = embed("run=e.safetensors", "images=inner/evil.zip", "out=inner/b.npz", "workers=0", "image_size=16")
    assert ended.code == 0, ended.err
    assert "1 links" in ended.out and "2 hidden" in ended.out
    assert {*here.rglob("*")} - before == {here / "e.safetensors", here / "inner/b.npz"}


def test_bombs_are_refused_before_they_take_the_memory(here):
    a_run(here / "outputs/a", record())
    with zipfile.ZipFile("outputs/a/last.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(10**8))
    with pytest.raises(UserError, match="cannot be read"):
        aavae.load_model("outputs/a")
    with warnings.catch_warnings(action="ignore"):
        Image.new("1", (30_000, 30_000)).save("outputs/a/reconstructions.png")
        Image.new("1", (10_000, 10_000)).save("outputs/a/similarity_h.png")
    said = page(summarize(here / "outputs"))
    assert "reconstructions.png cannot be read (Image size (900000000 pixels) exceeds limit" in said
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
    (here / "e.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match=r"e\.safetensors"):
        aavae.load_encoder("e.safetensors")
    (here / "outputs/a/results.json").write_bytes(seals.seal_json("[" * 100_000))
    assert "is damaged" in summarize(here / "outputs").jobs[0].line


def test_readers_of_others_are_not_deceived(here):
    safetensors.torch.save_file({"w": torch.zeros(1)}, "e.safetensors", {"architecture": "{}"})
    with pytest.raises(UserError, match="has no digest"):
        aavae.load_encoder("e.safetensors")
