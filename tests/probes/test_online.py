"""The online probe: it learns while the encoder does, and the encoder never notices."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aavae import build
from aavae.errors import UserError
from aavae.probes import online
from aavae.probes.online import Online
from aavae.runtime.device import Precision
from aavae.training.trainer import Trainer
from aavae.weights import checkpoint

DEBUG = ("trainer=debug", "trainer.max_steps=6", "probe=[online]", "trainer.log_every=1")
CPU = torch.device("cpu")


def synthetic():
    return build.dataset(build.compose(["dataset=synthetic"])).load()


def begun(encoder_dim, data, **arguments):
    probe = Online(**arguments)
    probe.begin(encoder_dim, data, CPU, Precision("fp32", "cpu", None))
    return probe


def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, 16), nn.ReLU())


def weights(folder):
    return checkpoint.load(Path(folder) / "last.pt")


def test_training_is_the_same_to_the_bit_with_and_without_it(train):
    assert train(*DEBUG, "hydra.run.dir=with").code == 0
    assert train(*DEBUG, "probe=knn", "hydra.run.dir=without").code == 0
    a, b = weights("with")["model"], weights("without")["model"]
    assert all(torch.equal(a[k], b[k]) for k in b)  # parameters, and the statistics of BatchNorm


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_classifier(train, monkeypatch):
    assert train(*DEBUG, "hydra.run.dir=whole").code == 0
    step = Trainer.train_step

    def interrupted_step(self, *args, **kwargs):
        terms = step(self, *args, **kwargs)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    assert train(*DEBUG, "hydra.run.dir=run").code == 128 + signal.SIGTERM
    monkeypatch.setattr(Trainer, "train_step", step)
    assert train(*DEBUG, "hydra.run.dir=run").code == 0
    whole, resumed = (weights(f)["learners"]["online"] for f in ("whole", "run"))
    assert torch.equal(whole["head"]["weight"], resumed["head"]["weight"]) and resumed["steps"] == 6


@pytest.mark.slow
def test_its_accuracy_is_logged_judged_and_judged_again(train, evaluate):
    assert train(*DEBUG, "hydra.run.dir=run").code == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert sum("train/online_accuracy" in row for row in rows) == 6
    logged = [row["val/online"] for row in rows if "val/online" in row][-1]
    records = json.loads(Path("run/results.json").read_text())
    assert {(r["feature"], r["split"]) for r in records} == {("h", "val"), ("h", "test")}
    assert [r["value"] for r in records if r["split"] == "val"] == [logged]
    assert "6 steps" in records[0]["protocol"]
    assert json.loads(Path("run/status.json").read_text())["score"] == logged
    assert evaluate("run=run", "probe=[online]", "probe.online.lr=0.5").code == 0  # which it has not learned by
    assert json.loads(Path("run/results.json").read_text()) == records
    assert train(*DEBUG, "hydra.run.dir=off", "trainer.clean_pass=off").code == 0
    for folder, recalibrated in (("run", False), ("off", True)):
        for record in json.loads(Path(folder, "results.json").read_text()):
            assert record["protocol"].endswith("with recalibrated BatchNorm statistics") == recalibrated


@pytest.mark.slow
def test_a_run_without_it_says_so(train, evaluate):
    assert train(*DEBUG, "probe=knn", "hydra.run.dir=run").code == 0
    ended = evaluate("run=run", "probe=[online]")
    assert ended.code == 0 and "online of h is left out: it has to learn while the encoder does" in ended.out


def test_steps_are_those_of_adam_on_softmax_regression():
    data, encoder = synthetic(), flat()
    probe = begun(16, data, lr=0.01, batch_size=32)
    oracle = nn.Linear(16, data.num_classes)
    oracle.load_state_dict(probe.head.state_dict())
    adam = torch.optim.Adam(oracle.parameters(), 0.01)
    for step in range(1, 12):  # past the end of an epoch of 8 batches
        x, labels = probe._batch(step)
        with torch.no_grad():
            h = encoder.eval()(x)
        loss = F.cross_entropy(oracle(h), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        terms = probe.learn(encoder.train(), step)
        torch.testing.assert_close(terms["online_loss"], loss.detach())
    torch.testing.assert_close(probe.head.weight, oracle.weight)


def test_the_encoder_stays_as_it_is_and_in_the_mode_it_was_in():
    data, encoder = synthetic(), flat().train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    probe = begun(16, data)
    for step in range(3):
        probe.learn(encoder, step)
    assert encoder.training and all(m.training for m in encoder.modules())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())


def test_every_labelled_image_comes_once_an_epoch_in_another_order_each_time():
    data = synthetic()
    data.splits["train"].labels = torch.arange(256)  # names
    data.num_classes = 256
    probe = begun(16, data, batch_size=64)
    epochs = [torch.cat([probe._batch(4 * e + i)[1] for i in range(4)]) for e in range(2)]
    assert all(torch.equal(epoch.sort().values, torch.arange(256)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(probe._batch(5)[0], begun(16, data, batch_size=64)._batch(5)[0])


def test_an_order_is_drawn_once_an_epoch(monkeypatch):
    drawn, generator_for = [], online.generator_for
    monkeypatch.setattr(online, "generator_for", lambda *keys: drawn.append(keys) or generator_for(*keys))
    probe = begun(16, synthetic(), batch_size=64)  # four batches an epoch
    for index in range(8):
        probe._batch(index)
    assert [keys for keys in drawn if keys[1] == "online" and isinstance(keys[2], int)] == [
        (0, "online", 0),
        (0, "online", 1),
    ]


def test_every_so_many_steps_means_just_that():
    probe, encoder = begun(16, synthetic(), every=3), flat()
    assert [bool(probe.learn(encoder, step)) for step in range(1, 7)] == [False, False, True, False, False, True]
    assert probe.steps == 2


@pytest.mark.parametrize("arguments", [{"lr": 0.0}, {"batch_size": 0}, {"every": 0}])
def test_it_refuses_what_makes_no_sense(arguments):
    with pytest.raises(UserError, match="lr must be positive, batch_size and every 1 or more"):
        Online(**arguments)


def test_streamed_images_are_refused_before_training(train, tmp_path):
    from PIL import Image

    for i in range(40):
        path = tmp_path / "photos" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(path)
    photos = ("dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "dataset.in_memory=false")
    ended = train(*DEBUG, *photos, "batch_size=8", "hydra.run.dir=run")
    assert ended.code == 2 and "dataset.in_memory=true" in ended.err and not Path("run").exists()


@pytest.mark.slow
def test_probes_can_be_run_every_so_many_epochs(train):
    # trainer=debug has 8 steps an epoch.
    ended = train("trainer=debug", "epochs=3", "probe=[knn]", "trainer.probe_every=1", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    probed = {row["step"]: row for row in rows if "probe/knn/h/test/accuracy" in row}
    assert set(probed) == {8, 16}  # the end has its own
    assert not any("pixels" in name or "untrained" in name for row in rows for name in row)
