"""Weights that are damaged or malformed: none is taken, each is refused in a sentence, and an older one may serve."""

import copy
import json
import math
import os
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import aavae
from aavae import build
from aavae.errors import Damaged, UserError
from aavae.runtime import targets
from aavae.training import resume
from aavae.weights import checkpoint, encoder_file
from aavae.weights.load import load_trained

SMALL = ("dataset=synthetic", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=8")
DEBUG = ("trainer=debug", "hydra.run.dir=run", "probe=[]", "trainer.validate_every=0", "schedule=constant")
FACTS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
ENCODER = {"_target_": "aavae.models.encoders.resnet.resnet", "block": "basic", "layers": [1, 1, 1, 1], "channels": 2}


@pytest.fixture(scope="module")
def trainer():
    """A trainer that has made a step."""
    cfg = build.compose([*SMALL, "trainer=debug", "batch_size=8", "probe=online"])
    trainer = build.trainer(cfg)
    trainer.train_step(next(iter(trainer.loader.epoch(0))))
    return trainer


@pytest.fixture(scope="module")
def good(trainer):
    """The contents of a checkpoint of a run."""
    return resume.state_of(trainer, {}) | {
        "config": {"method": "aavae", "seed": 0, "dataset": {"_target_": "aavae.datasets.synthetic.Synthetic"}},
        "architecture": trainer.model.architecture,
        "data": "0123456789abcdef",
        "version": "1",
    }


@pytest.fixture
def state(good):
    return copy.deepcopy(good)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of one epoch, made once."""
    from aavae.train import main

    folder, before, argv = tmp_path_factory.mktemp("finished"), Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["aavae-train", *DEBUG, "epochs=1"]
    try:
        with pytest.raises(SystemExit):
            main()
    finally:
        os.chdir(before)
        sys.argv = argv
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """The folder `run`, whose checkpoint before the last is good, too."""
    shutil.copy(finished / "last.pt", finished / "previous.pt")
    return shutil.copytree(finished, tmp_path / "run")


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and repr(a) == repr(b)


def flip(path: Path, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        [byte] = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


# ---- A flipped bit ------------------------------------------------------------------------------------------------


def flipped(path: Path, read, bits: list[int]) -> int:
    """Flip each of `bits`, one at a time; says how many were refused, and sees that none changed what is read."""
    before, refused = read(path), 0
    for bit in bits:
        flip(path, bit)
        try:
            assert equal(read(path), before), f"bit {bit} changed something"
        except UserError:
            refused += 1
        flip(path, bit)
    assert equal(read(path), before)
    return refused


def test_no_flipped_bit_of_a_checkpoint_is_taken_for_good(tmp_path):
    path = tmp_path / "last.pt"
    weights = {f"layer.{i}": torch.randn(40) for i in range(4)}
    checkpoint.save(path, {"model": weights, "step": 7, "score": 0.5, **FACTS})
    bits = random.Random(0).sample(range(8 * path.stat().st_size), 600)
    assert flipped(path, checkpoint.load, bits) == 600
    numbers = path.read_bytes().index(weights["layer.2"].numpy().tobytes())
    assert flipped(path, checkpoint.load, list(range(8 * numbers, 8 * numbers + 160))) == 160


def test_no_flipped_bit_of_an_encoder_file_is_taken_for_good(tmp_path):
    path, encoder = tmp_path / "encoder.safetensors", targets.component(ENCODER)
    encoder_file.save(path, encoder, FACTS | {"architecture": ENCODER, "method": "aavae", "epochs": 3.0})
    bits = random.Random(0).sample(range(8 * path.stat().st_size), 1000)
    header = random.Random(1).sample(range(8 * (8 + int.from_bytes(path.read_bytes()[:8], "little"))), 1000)
    assert flipped(path, lambda path: dict(enumerate(encoder_file.read(path))), bits + header) == 2000


def test_nor_by_what_a_user_calls(good, tmp_path):
    def weights(load):
        return lambda path: load(path).state_dict() | {"mean": load(path).mean}

    checkpoint.save(tmp_path / "last.pt", good)
    facts = FACTS | {"architecture": ENCODER}
    encoder_file.save(tmp_path / "e.safetensors", targets.component(ENCODER), facts)
    for path, load in ((tmp_path / "last.pt", aavae.load_model), (tmp_path / "e.safetensors", aavae.load_encoder)):
        bits = random.Random(2).sample(range(8 * path.stat().st_size), 12)
        assert flipped(path, weights(load), bits) == 12


def test_checksums_are_written_whatever_torch_was_told(tmp_path):
    chosen = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint.save(tmp_path / "ours.pt", {"step": 1})
        assert torch.serialization.get_crc32_options() is False
        torch.save({"step": 1, "format": checkpoint.FORMAT}, tmp_path / "without.pt")
    finally:
        torch.serialization.set_crc32_options(chosen)
    assert checkpoint.load(tmp_path / "ours.pt")["step"] == 1
    torch.save({"format": checkpoint.FORMAT}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("without.pt", "legacy.pt"):  # nobody can tell whether they are damaged
        with pytest.raises(Damaged, match="cannot be read"):
            checkpoint.load(tmp_path / name)


MIDDLE = 8 * 5_000_000  # of last.pt: somewhere in a tensor
PASSED = "last.pt cannot be read: it is truncated, damaged or not a checkpoint; previous.pt (step 8) is used instead"


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_and_ends_as_if_nothing_had_happened(train, run, tmp_path):
    shutil.copytree(run, tmp_path / "clean")
    flip(run / "last.pt", MIDDLE)
    with pytest.warns(UserWarning, match=re.escape(PASSED)):
        aavae.load_model(run)
    ended = train(*DEBUG, "epochs=2")
    assert ended.code == 0 and PASSED in ended.out
    assert train(*DEBUG, "epochs=2", "hydra.run.dir=clean").code == 0
    assert equal(*[checkpoint.load(tmp_path / name / "last.pt")["model"] for name in ("run", "clean")])


def test_the_damaged_one_never_takes_the_place_of_the_good_one(train, run, monkeypatch):
    def full(*_):
        raise UserError("the disk is full")

    flip(run / "last.pt", MIDDLE)
    monkeypatch.setattr(checkpoint.torch, "save", full)  # when the first checkpoint afterwards is written
    assert train(*DEBUG, "epochs=2").code == 2
    assert checkpoint.find(run).state["step"] == 8


def test_commands_say_that_an_older_checkpoint_is_used(train, convert, evaluate, run):
    flip(run / "last.pt", MIDDLE)
    for source, said in (("run", True), ("run/previous.pt", False)):
        assert (ended := convert(source, "a.pt", "overwrite=true")).code == 0, ended.err
        assert (PASSED in ended.err) == said
    assert (ended := evaluate("run=run", "probe=knn", "features=[h]")).code == 0 and PASSED in ended.out


def test_a_damaged_encoder_is_refused_until_the_run_writes_it_anew(train, convert, run):
    # It is not taken from the checkpoint: its BatchNorm statistics might be others.
    flip(run / "encoder.safetensors", 8 * 500_000)
    with pytest.raises(Damaged, match=r"is damaged: its content is not what its digest says; .*run/last.pt holds the"):
        aavae.load_encoder(run)
    ended = convert("run", "b.safetensors")
    assert ended.code == 2 and "the command of the run writes encoder.safetensors again" in ended.err
    assert train(*DEBUG, "epochs=1").code == 0
    assert aavae.load_encoder(run)


# ---- Equal runs, equal files --------------------------------------------------------------------------------------


def test_equal_runs_write_equal_files(train, finished):
    assert train(*DEBUG, "epochs=1").code == 0
    for name in ("last.pt", "encoder.safetensors"):
        assert Path("run", name).read_bytes() == (finished / name).read_bytes()


def test_the_digest_is_that_of_any_machine(tmp_path):
    path, layer = tmp_path / "e.safetensors", torch.nn.Linear(2, 1)
    torch.nn.init.constant_(layer.weight, 0.5)
    torch.nn.init.zeros_(layer.bias)
    encoder_file.save(path, layer, FACTS | {"architecture": {"_target_": "β"}})
    with safetensors.safe_open(path, "np") as file:  # which others can read
        assert np.array_equal(file.get_tensor("weight"), [[0.5, 0.5]])
        assert file.metadata()["digest"] == DIGEST
    assert encoder_file.read(path)[1]["architecture"] == {"_target_": "β"}


DIGEST = "sha256:08e73438d0790351f3175714f93e937145fe06c3cba5905632f9427405ffaf7e"


# ---- Malformed contents -------------------------------------------------------------------------------------------


def changed(where: str, value):
    """A change of a checkpoint's contents: at `a.b.c`, `value`, or nothing any more."""

    def change(state: dict) -> None:
        *path, last = [int(part) if part.isdecimal() else part for part in where.split("/")]
        for part in path:
            state = state[part]
        if value is GONE:
            del state[last]
        else:
            state[last] = value

    return change


GONE = object()
WEIGHT = "model/encoder.conv1.weight"
MOMENT = "optimizer/state/0"
OF_A_MODEL = [
    ("architecture", GONE), ("architecture", None), ("architecture", ["resnet"]), ("architecture/encoder", GONE),
    ("architecture/latent_dim", 1e12), ("architecture/latent_dim", 10**12), ("architecture/latent_dim", 10**30),
    ("architecture/latent_dim", -1), ("architecture/latent_dim", "8"), ("architecture/latent_dim", math.nan),
    ("architecture/encoder/layers", [10**12] * 4), ("architecture/encoder/channels", 2**40),
    ("architecture/encoder/block", "x"), ("architecture/encoder/stem", None), ("architecture/strange", 1),
    ("architecture/decoder/image_size", "16"), ("architecture/log_scale", math.nan),
    ("model", GONE), ("model", {}), ("model", None), ("model", [1, 2]), (WEIGHT, GONE), (WEIGHT, [[1.0]]),
    (WEIGHT, torch.zeros(3)), (WEIGHT, torch.full((16, 3, 3, 3), math.nan)),
    (WEIGHT, torch.full((16, 3, 3, 3), -math.inf)),
    (WEIGHT, torch.zeros(16, 3, 3, 3, dtype=torch.float64)), (WEIGHT, torch.zeros(16, 3, 3, 3, dtype=torch.int32)),
    (WEIGHT, torch.zeros(1).expand(16, 3, 3, 3)), (WEIGHT, torch.zeros(16, 3, 3, 3).to_sparse()),
    ("model/own", torch.zeros(1)), ("model/encoder.bn1.running_var", torch.full((16,), math.inf)),
    ("mean", None), ("mean", GONE), ("mean", [0.5]), ("mean", [0.5, 0.5, math.nan]), ("mean", ["a", "b", "c"]),
    ("mean", 0.5), ("std", [0.0, 0.1, 0.1]), ("std", [-0.1, 0.1, 0.1]), ("std", [0.1, math.inf, 0.1]), ("std", None),
    ("std", [True, True, True]),
]  # fmt: skip
TO_JUDGE = [
    ("step", GONE), ("step", -1), ("step", math.nan), ("step", "7"), ("step", 1.5), ("step", None), ("step", 10**40),
    ("steps_per_epoch", 0), ("steps_per_epoch", GONE), ("steps_per_epoch", None), ("steps_per_epoch", math.nan),
    ("steps_per_epoch", 10**400), ("config", None), ("config", [1]), ("config", GONE), ("config/method", GONE),
    ("config/method", 3), ("config/seed", "a"), ("config/seed", 10**30), ("config/dataset", None),
    ("config/trainer", 3), ("config/trainer", {}), ("config/augmentation", 3), ("data", 3), ("dataset", {}),
    ("learners", [1]), ("learners", {"online": 3}),
]  # fmt: skip
TO_CONTINUE = [
    ("optimizer", None), ("optimizer", {}), ("optimizer/name", GONE), ("optimizer/state", GONE),
    ("optimizer/state", [1]),
    ("optimizer/param_groups", GONE), ("optimizer/param_groups", 3), ("optimizer/param_groups/0", None),
    (f"{MOMENT}/exp_avg", GONE), (f"{MOMENT}/exp_avg", torch.zeros(2)), (f"{MOMENT}/exp_avg", [0.0]),
    (f"{MOMENT}/exp_avg", torch.full((16, 3, 3, 3), math.nan)), (f"{MOMENT}/step", torch.zeros(4)),
    (f"{MOMENT}/more", torch.zeros(4)), ("optimizer/state/9999", {}), (MOMENT, None), (MOMENT, {}),
    ("scaler", GONE), ("scaler", 3), ("closed", GONE), ("closed", 1), ("score", "a"), ("epochs", -1), ("epochs", None),
    ("loggers", GONE), ("loggers", [1]), ("loggers", {"wandb": 3}), ("learners/online/head", GONE),
    ("learners/online/head/weight", torch.zeros(2, 2)), ("learners/online/head/weight", torch.zeros(3)),
    ("learners/online/settings", GONE), ("learners/online/settings/every", 0), ("learners/online/settings/lr", "a"),
    ("learners/online/optimizer", {}), ("learners/online/steps", None), ("learners/online/steps", -1),
]  # fmt: skip


def named(cases):
    return pytest.mark.parametrize(("where", "value"), cases, ids=[f"{w}={str(v)[:20]}" for w, v in cases])


@pytest.mark.slow
@named(OF_A_MODEL)
def test_no_model_is_built_from_malformed_contents(state, tmp_path, where, value):
    changed(where, value)(state)
    checkpoint.save(tmp_path / "last.pt", state)
    for load in (aavae.load_model, aavae.load_encoder, load_trained):
        with pytest.raises(UserError) as error:
            load(tmp_path / "last.pt")
        assert "last.pt" in sentence(error)


@named(TO_JUDGE)
def test_nothing_is_judged_that_does_not_say_what_it_is(state, tmp_path, where, value):
    changed(where, value)(state)
    checkpoint.save(tmp_path / "last.pt", state)
    with pytest.raises(Damaged) as error:
        load_trained(tmp_path / "last.pt")
    assert "last.pt" in sentence(error) and where.split("/")[0] in str(error.value)


@named(TO_CONTINUE)
def test_no_training_continues_from_malformed_contents(trainer, good, state, tmp_path, where, value):
    changed(where, value)(state)
    torch.save(good | {"format": checkpoint.FORMAT}, tmp_path / "previous.pt")
    torch.save(state | {"format": checkpoint.FORMAT}, tmp_path / "last.pt")

    def use(state, path):
        resume.restore(trainer, state, str(path))

    with pytest.raises(Damaged) as error:
        use(checkpoint.load(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert "last.pt" in sentence(error)
    found = checkpoint.find(tmp_path, use=use)
    assert (
        found.path.name == "previous.pt" and found.note.startswith("last.pt ") and found.note.endswith("used instead")
    )


def test_what_is_good_is_restored(trainer, state):
    resume.restore(trainer, state, "it")
    assert trainer.step == 1


def test_a_folder_in_the_place_of_a_checkpoint(train, run):
    (run / "last.pt").unlink()
    (run / "last.pt").mkdir()
    ended = train(*DEBUG, "epochs=2")
    assert ended.code == 2 and "run/last.pt is a folder, where a checkpoint is to be written" in ended.err
    with pytest.warns(UserWarning, match="last.pt is not a file; previous.pt"):
        aavae.load_model(run)


FACTS_CHANGED = [
    ("mean", None), ("mean", [0.5]), ("mean", "abc"), ("mean", [0.1, 0.2, math.nan]), ("std", [0, 1, 1]),
    ("std", [0.5, 0.5, -0.5]), ("std", GONE), ("architecture", GONE), ("architecture", None), ("architecture", {}),
    ("architecture", ENCODER | {"layers": [10**9] * 4}), ("architecture", ENCODER | {"channels": 2**50}),
    ("architecture", ENCODER | {"channels": 3}), ("architecture", ENCODER | {"own": 1}), ("epochs", math.nan),
    ("epochs", "many"), ("seed", 0.5), ("method", 3), ("output_dim", 3), ("output_dim", -1), ("results", 3),
    ("results", [{"probe": "knn"}]), ("data", {}), ("image_size", 0),
]  # fmt: skip


@named(FACTS_CHANGED)
def test_no_encoder_is_built_from_malformed_facts(tmp_path, where, value):
    path, facts = tmp_path / "encoder.safetensors", FACTS | {"architecture": ENCODER, where: value}
    encoder_file.save(path, targets.component(ENCODER), {k: v for k, v in facts.items() if v is not GONE})
    for load in (aavae.load_encoder, load_trained):
        with pytest.raises(UserError) as error:
            load(path)
        assert "encoder.safetensors" in sentence(error) or "_target_" in sentence(error)


def test_weights_that_are_no_numbers_are_no_encoder(tmp_path):
    encoder, path = targets.component(ENCODER), tmp_path / "encoder.safetensors"
    torch.nn.init.constant_(encoder.conv1.weight, math.nan)
    encoder_file.save(path, encoder, FACTS | {"architecture": ENCODER})
    with pytest.raises(Damaged, match=r"numbers in conv1.weight that are not finite"):
        aavae.load_encoder(path)
    encoder_file.save(path, targets.component(ENCODER).double(), FACTS | {"architecture": ENCODER})
    with pytest.raises(Damaged, match=r"conv1.weight is float64, not float32"):
        aavae.load_encoder(path)


def test_an_encoder_file_without_a_digest_or_with_a_header_of_its_own_is_refused(tmp_path):
    path, tensors = tmp_path / "encoder.safetensors", targets.component(ENCODER).state_dict()
    facts = {"architecture": json.dumps(ENCODER), "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
    safetensors.torch.save_file(tensors, path, facts)
    with pytest.raises(Damaged, match="has no digest"):
        aavae.load_encoder(path)
    deep = b'{"__metadata__":' + b"[" * 200_000
    headers = [b"", b"[]", b"null", b'{"__metadata__": 3}', b'{"__metadata__": {"architecture": 3}}', deep, b"\xff"]
    for header in headers:
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(Damaged):
            aavae.load_encoder(path)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(Damaged, match="truncated"):
        aavae.load_encoder(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(Damaged, match="is not a file"):
        aavae.load_encoder(path)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_an_optimizer_that_counts_its_steps_elsewhere_goes_on_counting(good, name):
    def three_steps(stop: int) -> dict:
        cfg = build.compose([*SMALL, "trainer=debug", "batch_size=8", f"optimizer={name}", "optimizer.lr=0.01"])
        trainer = build.trainer(cfg)
        batches = list(trainer.loader.epoch(0))[:3]
        for batch in batches[:stop]:
            trainer.train_step(batch)
        if stop < 3:
            state, trainer = copy.deepcopy(resume.state_of(trainer, {})), build.trainer(cfg)
            resume.restore(trainer, good | state, "it")
            for batch in batches[stop:]:
                trainer.train_step(batch)
        return trainer.model.state_dict()

    assert equal(three_steps(1), three_steps(3))
