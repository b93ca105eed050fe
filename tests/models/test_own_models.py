"""Models that nobody here wrote: what they may ask for, and what is said where they ask for too much."""

import json
import sys
from pathlib import Path

import pytest
import torch

from aavae import build
from aavae.augmentations.pipeline import Pipeline, uniform
from aavae.runs.identity import identity
from aavae.training.validation import BATCH

OWN = """
import torch
from torch import nn
from torch.nn import functional as F
from aavae.models import Model


class Noisy(Model):
    noise_dim = 4

    def __init__(self, encoder, **settings):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.output_dim, 4)
        self.settings = settings

    def learn(self, views, x, noise):
        out = self.head(self.encoder(views[0])) + noise
        return out, {"loss": out.square().mean()}

    def features(self):
        return {"proj": lambda x, generator: self.head(self.encoder(x))}

    def groups(self):
        return [(self.head, self.settings)] if self.settings else []


class Pairs(Noisy):
    n_views, per_image, noise_dim = 2, False, 0

    def learn(self, views, x, noise):
        z = F.normalize(self.head(self.encoder(views.flatten(0, 1))), dim=-1).unflatten(0, (2, -1))
        z = self.processes.gather(z, 1)
        return z, {"loss": F.cross_entropy(z[0] @ z[1].T, torch.arange(len(z[0])))}


class Empty(Model):
    def __init__(self, encoder):
        super().__init__()
"""
DEBUG = ("--config-dir", "conf", "trainer=debug", "hydra.run.dir=run", "probe=[]")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with models of one's own, `model=noisy`, `pairs` and `empty`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("conf/model").mkdir(parents=True)
    Path("mine.py").write_text(OWN)
    for name in ("Noisy", "Pairs", "Empty"):
        Path(f"conf/model/{name.lower()}.yaml").write_text(f"_target_: mine.{name}\ntakes: []\n")
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_model_with_noise_is_validated_with_noise(own, train):
    ended = train(*DEBUG, "model=noisy", "epochs=1")
    assert ended.code == 0, ended.err
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert any("val/loss" in line for line in logged)


def test_records_call_a_model_by_its_class_unless_a_method_chose_it(own, train):
    assert "method      noisy" in train(*DEBUG, "model=noisy", "epochs=1").out
    Path("conf/method").mkdir()
    Path("conf/method/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: noisy\nmethod: mine\n"
    )
    assert "method      mine" in train(*DEBUG, "method=mine", "epochs=1", "hydra.run.dir=two").out


def test_its_own_features_are_judged(own, train, evaluate):
    ended = train(*DEBUG[:-1], "model=noisy", "epochs=1", "probe=knn", "features=[h,proj]")
    assert ended.code == 0, ended.err
    assert {r["feature"] for r in json.loads(Path("run/results.json").read_text())} == {"h", "proj"}
    ended = evaluate("run=run", "probe=knn", "features=[proj]", "trust=[mine]")
    assert ended.code == 0, ended.err
    ended = train(*DEBUG[:-1], "model=noisy", "features=[porj]", "probe=knn", "hydra.run.dir=no")
    assert ended.code == 2 and "not 'porj'" in ended.err and "proj" in ended.err and not Path("no").exists()


def test_what_was_learned_is_kept_where_looking_at_it_fails(own, train, monkeypatch):
    monkeypatch.setattr("aavae.models.Model.validate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(*DEBUG, "model=noisy", "epochs=1")
    assert Path("run/last.pt").exists()
    monkeypatch.undo()
    monkeypatch.chdir(own)
    monkeypatch.syspath_prepend(own)
    ended = train(*DEBUG, "model=noisy", "epochs=1")
    assert ended.code == 0 and "from step 8" in ended.out


def test_a_group_that_says_what_nobody_reads_is_refused(own, train):
    ended = train(*DEBUG, "model=noisy", "+model.weight_decay=0.5")
    assert ended.code == 2 and "scale and scheduled, not weight_decay" in ended.err


def test_a_model_without_an_encoder_is_refused(own, train):
    ended = train(*DEBUG, "model=empty")
    assert ended.code == 2 and "Empty must keep its encoder as self.encoder" in ended.err


def test_any_model_maps_images_to_h():
    trainer = build.trainer(build.compose(["trainer=debug", "method=simclr"]))
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(trainer.model.eval()(x), trainer.model.encoder(x))
    assert trainer.model.total_steps == trainer.total_steps > 0


# ---- What a model does not take -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["decoder=resnet50", "loss=elbo", "decoder.channels=8"])
def test_parts_that_a_model_does_not_take_are_refused_where_they_are_typed(train, word):
    ended = train("experiment=digits", "method=simclr", "hydra.run.dir=run", word)
    assert ended.code == 2 and word.split(".")[0].split("=")[0] in ended.err and not Path("run").exists()


def test_a_preset_s_decoder_does_not_make_another_run_of_it():
    plain, without = (
        build.plain(build.compose(["experiment=digits", "method=simclr", *more])) for more in ([], ["decoder=none"])
    )
    assert identity(plain) == identity(without) and plain["decoder"] == {"_target_": None}


def test_the_trainer_of_the_released_code_trains_it_too():
    cfg = build.compose(["trainer=reference", "dataset=synthetic", "encoder=resnet_tiny", "method=simclr"])
    assert build.trainer(build.compose([*_small(), "trainer=reference"])) and cfg.trainer.channels_last is False


def _small() -> list[str]:
    return ["dataset=synthetic", "encoder=resnet_tiny", "method=simclr", "batch_size=32", "probe=[]"]


@pytest.mark.parametrize(
    ("experiment", "name", "lr"),
    [
        ("cifar10", "adam", 0.00025),
        ("stl10", "adam", 0.0005),
        ("digits", "adam", 0.001),
        ("cifar10_cpu", "adamw", 0.002),
    ],
)
def test_an_experiment_s_optimizer_keeps_its_learning_rate(experiment, name, lr):
    cfg = build.compose(["method=simclr", f"experiment={experiment}"])
    settings, factor = build._scaled(cfg, build.dataset(cfg))
    assert (settings["name"], settings["lr"], factor) == (name, lr, 1.0)


def test_another_optimizer_brings_its_own_learning_rate():
    assert build.compose(["method=simclr", "optimizer=adam"]).optimizer == build.compose(["optimizer=adam"]).optimizer


def test_the_recipe_chooses_its_method():
    assert build.compose(["experiment=cifar10_simclr"]).method == "simclr"


# ---- Views and held-out images ------------------------------------------------------------------------------------


def test_equal_views_are_refused(train):
    ended = train("experiment=digits", "method=simclr", "augmentation=none", "hydra.run.dir=run")
    assert ended.code == 2 and "all views of an image are equal" in ended.err


class Shared(Pipeline):
    """Both views get one shift of the grey level, and each a noise of its own."""

    def draws(self, n, size, generators):
        shift = uniform(n, 0, 0.5, generators[0])
        return [
            {"shift": shift, "noise": uniform(n, 0, 0.1, g), "view": torch.full((n,), v)}
            for v, g in enumerate(generators)
        ]

    def apply(self, images, draws, cropped=False):
        self.seen = [*getattr(self, "seen", []), draws]
        return images * 0 + (draws["shift"] + draws["noise"])[:, None, None, None]


def test_views_may_share_a_draw_and_differ_in_kind():
    trainer = build.trainer(build.compose(_small()))
    trainer.augmentation = trainer.inspector.validator.augmentation = own = Shared()
    trainer.model.train()
    trainer.train_step(next(trainer.loader.epoch(0)))
    first, second = own.seen
    assert torch.equal(first["shift"], second["shift"]) and not torch.equal(first["noise"], second["noise"])
    assert (first["view"] == 0).all() and (second["view"] == 1).all()
    trainer.inspector.validate()
    assert torch.equal(own.seen[2]["shift"], own.seen[3]["shift"])


def test_a_loss_over_a_batch_is_recorded_with_what_it_saw(train):
    settings = (
        "trainer=debug",
        "dataset.size=2600",
        "method=simclr",
        "batch_size=500",
        "trainer.max_steps=1",
        "probe=[]",
    )
    trainer = build.trainer(build.compose(settings))
    n = len(trainer.dataset["pretrain_val"])
    assert n > BATCH and n % BATCH
    _, used, how = trainer.inspector.validation_loss()
    assert used == n - n % BATCH and how == f"the loss of training, fixed views, over batches of {BATCH} images"
    trainer = build.trainer(build.compose([s for s in settings if s != "method=simclr"]))
    assert trainer.inspector.validation_loss()[1:] == (
        n,
        "the loss of training, fixed views, 2 latent samples an image",
    )


def test_looking_gathers_nothing_and_leaves_the_processes_as_they_were():
    trainer = build.trainer(build.compose(_small()))

    class Together:
        world, rank = 2, 0

        def gather(self, values, dim=0):
            raise AssertionError("the other process is not here")

    trainer.model.processes = together = Together()
    trainer.inspector.validate()
    assert trainer.model.processes is together
