"""`aavae-train` from the outside: what a run leaves behind, how it stops and goes on, what bad input gets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from aavae import build
from aavae.errors import UserError
from aavae.runs.identity import identity
from aavae.training.loop import Loop
from aavae.training.trainer import Trainer
from aavae.weights import checkpoint

DEBUG = ("trainer=debug", "hydra.run.dir=run")
METHODS = ("ae", "vae", "aaae", "aaae_denoise", "aavae", "aavae_mean")


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(folder) / "last.pt")["model"]


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(folder: str = "run") -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


# ---- A run --------------------------------------------------------------------------------------------------------


def test_a_run_leaves_everything_a_researcher_needs(train, tmp_path):
    ended = train(*DEBUG)
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    present = {p.name for p in run.iterdir()}
    assert present >= {
        "config.yaml", "metrics.jsonl", "status.json", "last.pt", "encoder.safetensors", "reconstructions.png",
        "results.json",
    }  # fmt: skip
    assert OmegaConf.load(run / "config.yaml").optimizer.lr == 0.00025
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (run / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    records = json.loads((run / "results.json").read_text())
    assert {r["feature"] for r in records} == {"h", "pixels", "h_untrained"}
    assert {r["probe"] for r in records} == {"knn", "linear_cached", "few_label_1", "few_label_5"}
    for r in records:
        assert set(r) == {"probe", "feature", "split", "metric", "value", "n", "protocol", "epoch"}
        assert 0 <= r["value"] <= 1 and r["n"] > 0 and r["protocol"] and r["epoch"] == 2
    banner = ended.out.split("epoch 0.5/2")[0]
    assert all(word in banner for word in ("cpu", "fp32", "815,844 parameters", "16 steps", "run"))
    assert len(banner.splitlines()) <= 12


@pytest.mark.parametrize(
    ("capabilities", "precision", "hint"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "auto", "fp32 (precision=bf16 is faster on this CPU)"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16", "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False}, "bf16", "bf16 (precision=fp32 is faster on this CPU)"),
        ({"avx512_bf16": False, "amx_bf16": False}, "auto", "fp32"),
        ({"sve": True}, "bf16", "bf16"),  # ARM, of which nothing is known here
    ],
)
def test_the_banner_says_which_precision_is_faster_on_the_cpu(train, monkeypatch, capabilities, precision, hint):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    ended = train(*DEBUG, "probe=[]", f"precision={precision}", "device=cpu", "epochs=0")
    device = next(line for line in ended.out.splitlines() if line.startswith("device"))
    assert device.split(", ")[-1] == hint


def test_the_logged_names_are_those_promised(train):
    train(*DEBUG, "probe=[]")
    names = {key.removeprefix("val/") for row in metrics() for key in row if key.startswith("val/")}
    assert names >= {
        "loss", "nll", "kl", "neg_elbo", "log_px_iw", "bpd_raw", "bpd_8bit", "cos_sim", "kl_augmentation", "sigma_mean",
        "mu_norm", "snr", "active_units", "knn",
    }  # fmt: skip


def test_without_the_clean_pass_agreement_is_measured_at_validation_only(train):
    train(*DEBUG, "probe=[]", "trainer.clean_pass=off")
    training = [row for row in metrics() if "train/loss" in row]
    assert training and not any("train/cos_sim" in row or "train/kl_augmentation" in row for row in training)
    assert any("val/cos_sim" in row and "val/kl_augmentation" in row for row in metrics())


@pytest.mark.parametrize("method", [m if m == "aaae" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_every_method_runs_and_names_itself(train, method):
    ended = train(*DEBUG, f"method={method}", "trainer.max_steps=2", "probe=knn")
    assert ended.code == 0, ended.err
    assert f"method      {method}" in ended.out


def test_zero_epochs_judge_the_untrained_encoder(train):
    assert train(*DEBUG, "epochs=0").code == 0
    values = {(r["probe"], r["feature"], r["split"]): r for r in json.loads(Path("run/results.json").read_text())}
    assert values["knn", "h", "test"]["epoch"] == 0
    assert ("knn", "h_untrained", "test") in values


@pytest.mark.parametrize("every", [1, 0])
def test_images_without_labels_are_scored_by_their_validation_loss(train, tmp_path, every):
    images = build.dataset(build.compose(["dataset=synthetic"]))["pretrain"].images[:64]
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i}.png")
    photos = ("dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "batch_size=16")
    ended = train(*DEBUG, *photos, f"trainer.validate_every={every}")
    assert ended.code == 0, ended.err
    [result] = json.loads(Path("run/results.json").read_text())
    assert result["metric"] == "loss" and result["split"] == "pretrain_val"
    assert json.loads(Path("run/status.json").read_text())["score"] == pytest.approx(-result["value"])


def test_the_released_step_is_one_word(train):
    assert train("trainer=reference", "--cfg", "job").code == 0
    cfg = build.compose(["trainer=reference"])
    assert cfg.precision == "fp32" and not cfg.trainer.channels_last and cfg.decoder.skip_order == "official"


# ---- Stopping and going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["aavae", pytest.param("ae", marks=pytest.mark.slow)])
def test_a_run_stopped_by_a_signal_continues_to_the_same_bits(train, monkeypatch, method):
    assert train("trainer=debug", "hydra.run.dir=whole", f"method={method}", "probe=knn").code == 0
    step = Trainer.train_step

    def interrupted_step(self, *args, **kwargs):
        terms = step(self, *args, **kwargs)
        if self.step == 5:  # in the middle of the first epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    ended = train(*DEBUG, f"method={method}", "probe=knn")
    assert ended.code == 128 + signal.SIGTERM
    assert f"aavae-train trainer=debug hydra.run.dir=run method={method} probe=knn" in ended.out
    assert json.loads(Path("run/status.json").read_text())["state"] == "interrupted"
    monkeypatch.setattr(Trainer, "train_step", step)
    ended = train(*DEBUG, f"method={method}", "probe=knn")
    assert ended.code == 0 and "from step 5" in ended.out
    assert same_bits(weights("run"), weights("whole"))
    steps = [row["step"] for row in metrics()]
    assert steps == sorted(steps) and steps[-1] == 16


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_continues_to_the_same_bits(train, tmp_path):
    arguments = ("trainer=debug", "epochs=6", "trainer.validate_every=0", "probe=[]")
    assert train(*arguments, "hydra.run.dir=whole").code == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "aavae.train", *arguments, f"hydra.run.dir={killed}"]
    threads = {"OMP_NUM_THREADS": "1"}  # as many as here: only then do sums have the same bits
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, env=os.environ | threads)
    until = time.monotonic() + 120
    while not (killed / "previous.pt").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert checkpoint.find(killed)[0]["step"] < 48
    ended = train(*arguments, f"hydra.run.dir={killed}")
    assert ended.code == 0 and "from step" in ended.out
    assert same_bits(weights(killed), weights("whole"))


def test_a_truncated_checkpoint_is_replaced_by_the_one_before(train):
    last = Path("run/last.pt")
    assert train(*DEBUG, "probe=knn", "trainer.max_steps=4").code == 0
    before = last.read_bytes()
    assert train(*DEBUG, "probe=knn").code == 0
    expected = weights("run")
    assert not last.with_name("previous.pt").exists()  # a finished run needs one
    last.with_name("previous.pt").write_bytes(before)
    last.write_bytes(last.read_bytes()[:1000])
    Path("run/results.json").unlink()
    ended = train(*DEBUG, "probe=knn")
    assert ended.code == 0
    assert "last.pt cannot be read: it is truncated, damaged or not a checkpoint; previous.pt" in ended.out
    assert same_bits(weights("run"), expected)


@pytest.mark.slow
def test_a_finished_run_shows_its_results_again(train):
    train(*DEBUG, "probe=knn")
    ended = train(*DEBUG, "probe=knn")
    assert ended.code == 0 and "is finished" in ended.out and "raw pixels" in ended.out


@pytest.mark.slow
def test_a_constant_schedule_is_extended_and_another_is_not(train):
    assert train(*DEBUG, "probe=[]", "epochs=1").code == 0
    ended = train(*DEBUG, "probe=[]", "epochs=2")
    assert ended.code == 0 and "from step 8" in ended.out
    assert train("trainer=debug", "hydra.run.dir=whole", "probe=[]").code == 0
    assert same_bits(weights("run"), weights("whole"))
    assert train(*DEBUG, "probe=[]", "epochs=1").code == 2
    assert train("trainer=debug", "hydra.run.dir=cosine", "schedule=cosine", "probe=[]", "epochs=1").code == 0
    ended = train("trainer=debug", "hydra.run.dir=cosine", "schedule=cosine", "probe=[]", "epochs=2")
    assert ended.code == 2 and "only schedule=constant can be extended" in ended.err


def test_a_method_with_schedules_of_its_own_cannot_be_extended(train):
    words = ("trainer=debug", "hydra.run.dir=byol", "method=byol", "schedule=constant", "probe=[]")
    assert train(*words, "epochs=1").code == 0
    ended = train(*words, "epochs=2")
    assert ended.code == 2 and "schedules of BYOL depend" in ended.err and "resume=never" in ended.err
    assert train(*words, "epochs=1").code == 0
    assert train(*words, "epochs=1", "resume=never", "model.final_momentum=0.99").code == 0
    assert train(*words, "epochs=2", "model.final_momentum=0.99").code == 0


def test_a_run_that_goes_on_leaves_no_encoder_of_before(train, monkeypatch):
    assert train(*DEBUG, "probe=[]", "epochs=1").code == 0
    encoder = Path("run/encoder.safetensors")
    for words in (("epochs=2",), ("epochs=1", "latent_dim=4", "resume=never")):
        assert encoder.exists()
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "run", lambda loop: (_ for _ in ()).throw(UserError("stopped")))
            assert train(*DEBUG, "probe=[]", *words).code == 2
        assert not encoder.exists()
        assert train(*DEBUG, "probe=[]", *words).code == 0


def test_a_run_without_probes_is_finished_too(train):
    assert train(*DEBUG, "probe=[]", "epochs=1").code == 0
    before = Path("run/metrics.jsonl").read_bytes(), Path("run/last.pt").stat().st_mtime_ns
    ended = train(*DEBUG, "probe=[]", "epochs=1")
    assert ended.code == 0 and "is finished" in ended.err + ended.out
    assert before == (Path("run/metrics.jsonl").read_bytes(), Path("run/last.pt").stat().st_mtime_ns)
    assert train(*DEBUG, "probe=knn", "epochs=1").code == 0  # judged now
    assert {r["probe"] for r in json.loads(Path("run/results.json").read_text())} == {"knn"}


def test_a_continued_run_does_not_take_the_name_of_another(train):
    assert train(*DEBUG, "probe=[]", "epochs=1").code == 0
    ended = train("trainer=debug", "probe=[]", "epochs=2", "seed=1", "resume=run")
    assert ended.code == 2 and "seed=0 (now 1)" in ended.err and "hydra.run.dir=" in ended.err
    assert not Path("outputs").exists()
    assert train("trainer=debug", "probe=[]", "epochs=2", "resume=run").code == 0  # what an unbroken run would be
    assert train("trainer=debug", "probe=[]", "epochs=2", "seed=1", "resume=run", "hydra.run.dir=mixed").code == 0


def test_another_run_in_the_same_folder_is_refused_by_name(train):
    assert train(*DEBUG, "trainer.max_steps=2", "probe=[]").code == 0
    ended = train(*DEBUG, "latent_dim=4")
    assert ended.code == 2 and "latent_dim=8 (now 4)" in ended.err and "resume=never" in ended.err
    assert train(*DEBUG, "latent_dim=4", "resume=never", "trainer.max_steps=2", "probe=[]").code == 0


def test_a_checkpoint_that_does_not_fit_is_refused(train):
    assert train(*DEBUG, "trainer.max_steps=2", "probe=knn").code == 0
    ended = train("trainer=debug", "hydra.run.dir=other", "latent_dim=4", "resume=run")
    assert ended.code == 2 and "does not fit this model" in ended.err and "projection.mu.weight" in ended.err
    Path("broken.pt").write_bytes(Path("run/last.pt").read_bytes()[:500])
    ended = train("trainer=debug", "hydra.run.dir=other", "resume=broken.pt")
    assert ended.code == 2 and "truncated" in ended.err
    assert not Path("other").exists()


@pytest.mark.slow
def test_settings_of_the_optimizer_are_those_asked_for_and_its_state_is_the_checkpoints(train):
    assert train(*DEBUG, "epochs=1", "probe=[]").code == 0
    ended = train("trainer=debug", "hydra.run.dir=b", "resume=run", "optimizer.weight_decay=0.5", "probe=[]")
    assert ended.code == 0, ended.err
    saved = checkpoint.load(Path("b/last.pt"))["optimizer"]
    assert saved["param_groups"][0]["weight_decay"] == 0.5 and saved["state"][0]["step"] == 16
    ended = train("trainer=debug", "hydra.run.dir=c", "resume=run", "optimizer=sgd")
    assert ended.code == 2 and "Adam" in ended.err and "SGD" in ended.err and not Path("c").exists()
    ended = train("trainer=debug", "hydra.run.dir=b", "resume=run/last.pt", "optimizer.weight_decay=0.5")
    assert ended.code == 2 and "holds a run already" in ended.err


@pytest.mark.slow
def test_other_probes_judge_a_finished_run_anew(train):
    assert train(*DEBUG, "probe=knn").code == 0
    assert train(*DEBUG, "probe=few_label").code == 0
    both = {"knn", "few_label_1", "few_label_5"}
    assert {r["probe"] for r in json.loads(Path("run/results.json").read_text())} == both
    for asked in ("few_label", "knn", "[knn,few_label]", "[]"):  # all of these have judged it
        assert "is finished" in train(*DEBUG, f"probe={asked}").out
    assert "probing     knn" in train(*DEBUG, "probe=knn", "probe.knn.k=3").out
    assert "probing     knn" in train(*DEBUG, "probe=knn").out  # its results are those of k=3
    assert train(*DEBUG, "probe=few_label", "epochs=5").code == 0  # other weights
    assert {r["probe"] for r in json.loads(Path("run/results.json").read_text())} == both - {"knn"}


def test_a_run_that_cannot_begin_anew_is_what_it_was(train, monkeypatch):
    assert train(*DEBUG, "probe=knn").code == 0
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}

    def start(self, run):
        raise UserError("the board is not at home")

    monkeypatch.setattr("aavae.loggers.tensorboard.TensorBoard.start", start)
    ended = train(*DEBUG, "probe=knn", "resume=never", "logger=tensorboard")
    assert ended.code == 2 and "not at home" in ended.err
    assert {p.name: p.read_bytes() for p in Path("run").iterdir()} == before


def test_a_run_without_steps_begins_anew_too(train):
    settings = (*DEBUG, "epochs=0", "probe=knn")
    assert train(*settings).code == 0 and "is finished" in train(*settings).out
    ended = train(*settings, "resume=never")
    assert ended.code == 0 and "is finished" not in ended.out and "probing     knn" in ended.out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(train):
    assert train(*DEBUG, "probe=[]", "epochs=1").code == 0
    good = weights("run")
    ended = train("trainer=debug", "hydra.run.dir=bad", "optimizer.lr=1e30", "schedule.warmup_epochs=0")
    assert ended.code == 2 and "between steps" in ended.err
    assert json.loads(Path("bad/status.json").read_text())["state"] == "failed"
    assert all(torch.isfinite(t).all() for t in good.values())
    if Path("bad/last.pt").exists():
        assert all(torch.isfinite(t).all() for t in weights("bad").values())


# ---- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("bath_size=64", "did you mean batch_size"),
        ("+bath_size=64", "did you mean batch_size"),
        ("++bath_size=64", "did you mean batch_size"),
        ("beta=1", "did you mean loss.beta"),
        ("encoder=resnet51", "resnet18, resnet34, resnet50"),
        ("method=aave", "did you mean aavae"),
        ("batch_size=many", "whole number"),
        ("batch_size=0", "batch_size must be 2 or more"),
        ("batch_size=1000", "larger than the training set of 256"),
        ("latent_dim=0", "latent_dim must be 1 or more"),
        ("loss.beta=-1", "loss.beta must be 0 or more"),
        ("dataset.image_size=20", "multiple of 8"),
        ("epochs=-1", "epochs must be 0 or more"),
        ("optimizer.lr=-1", "optimizer.lr must be 0 or more"),
        ("trainer.clip=0", "trainer.clip must be positive"),
        ("precision=fp8", "auto, fp32, tf32, bf16, fp16"),
        ("device=cuda:99", "cuda:99"),
        ("device=abacus", "auto, cpu, cuda"),
        ("dataset=cifar10 dataset.path=nowhere.zip", "nowhere.zip does not exist"),
        ("resume=nowhere.pt", "there is no checkpoint nowhere.pt"),
        ("~loss.beta", "cannot be deleted"),
        ("~loss", "cannot be left out"),
        ("loss=null", "cannot be left out"),
        ("trainer.clip=abc", "trainer.clip must be a number or null, not 'abc'"),
        ("trainer.clip=nan", "trainer.clip must be a number or null, not nan"),
        ("probe.knn.k=0", "k must be 1 or more"),
        ("hydra.run.dir=/dev/null/run", "cannot be made"),
        ("+experiment=digits", "without the +"),
        ("seed=0,1 bath_size=3 -m", "hydra.run.dir=run is for one run"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(train, tmp_path, override, says):
    ended = train(*DEBUG, *override.split())
    assert ended.code == 2
    assert says in ended.err and "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_arguments_of_other_peoples_constructors_may_be_added(train):
    ended = train(*DEBUG, "+optimizer.kwargs.amsgrad=true", "trainer.max_steps=1", "probe=knn")
    assert ended.code == 0, ended.err
    ended = train("trainer=debug", "+optimizer.kwargs.amsgrd=true")
    assert ended.code == 2 and "amsgrd" in ended.err


# ---- Dry runs and identity ------------------------------------------------------------------------------------------


def test_a_dry_run_estimates_and_writes_nothing(train, tmp_path):
    ended = train("trainer=debug", "dry_run=true")
    assert ended.code == 0
    assert all(word in ended.out for word in ("16 (2 epochs of 8)", "memory", "time"))
    assert not list(tmp_path.iterdir())


def test_identity_ignores_what_does_not_change_the_weights():
    def of(*overrides):
        return identity(build.plain(build.compose(["trainer=debug", *overrides])))

    for same in ("device=cpu", "epochs=9", "logger=wandb", "data_dir=elsewhere", "resume=never", "trainer.log_every=1"):
        assert of(same) == of(), same
    assert of("optimizer.lr=1") == of("optimizer.lr=1.0")
    for other in ("seed=1", "latent_dim=9", "method=vae", "optimizer.lr=1", "augmentation.strength=0.1"):
        assert of(other) != of(), other


def test_default_folders_are_named_by_identity(train, tmp_path):
    assert train("trainer=debug", "trainer.max_steps=1", "probe=knn").code == 0
    folder, link = sorted((tmp_path / "outputs").iterdir())
    assert link.name == "latest" and link.resolve() == folder.resolve()
    assert folder.name == identity(build.plain(build.compose(["trainer=debug"])))
