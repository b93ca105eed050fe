"""`aavae-evaluate` from the outside: what training found, found again from a run, a checkpoint or an encoder."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from aavae import build
from aavae.probes.knn import KNN
from aavae.weights import checkpoint
from aavae.weights.load import Trained

DEBUG = (
    "trainer=debug",
    "hydra.run.dir=run",
    "trainer.max_steps=4",
    "probe=[knn,few_label]",
    "probe.few_label.draws=3",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run folder, made once; tests copy it."""
    import sys

    from aavae.train import main

    folder = tmp_path_factory.mktemp("trained")
    before, argv = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["aavae-train", *DEBUG]
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


def results(folder="run"):
    return json.loads((Path(folder) / "results.json").read_text())


def by_name(records):
    return {(r["probe"], r["feature"], r["split"], r["metric"]): r["value"] for r in records}


@pytest.mark.slow
def test_it_repeats_what_training_found(run, evaluate):
    before = results()
    (run / "results.json").unlink()
    ended = evaluate("run=run", "probe=[knn,few_label]", "probe.few_label.draws=3")
    assert ended.code == 0, ended.err
    assert results() == before  # raw pixels and the untrained encoder included


@pytest.mark.slow
@pytest.mark.parametrize("clean_pass", ["every_step", "off"])
def test_batchnorm_is_what_training_would_have_shown_the_probes(train, evaluate, clean_pass):
    assert train(*DEBUG, f"trainer.clean_pass={clean_pass}").code == 0
    before = results()
    assert evaluate("run=run", "probe=[knn,few_label]", "probe.few_label.draws=3").code == 0
    assert results() == before


def test_a_run_keeps_what_other_probes_found(run, evaluate):
    assert evaluate("run=run", "probe=knn", "probe.knn.k=3", "features=[h,mu]").code == 0
    protocols = {(r["probe"], r["feature"]): r["protocol"] for r in results()}
    assert "k=3" in protocols["knn", "h"] and "k=3" in protocols["knn", "mu"]
    assert "k=20" in protocols["knn", "pixels"] and ("few_label_1", "h") in protocols


def test_what_is_printed_is_what_is_written(run, evaluate):
    ended = evaluate("run=run", "probe=knn")
    values = by_name(results())
    [line] = [line for line in ended.out.splitlines() if "kNN" in line]
    shown = [f"{100 * values['knn', feature, 'test', 'accuracy']:.1f}" for feature in ("h", "pixels", "h_untrained")]
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["kNN", *shown]
    [heads] = [line for line in ended.out.splitlines() if "raw pixels" in line]
    assert heads.index(" h ") < heads.index("raw pixels") < heads.index("untrained")
    assert "\x1b" not in ended.out  # a pipe gets no colours


def test_the_trained_model_is_what_it_was_before(run, evaluate):
    before = (run / "last.pt").read_bytes(), (run / "encoder.safetensors").read_bytes()
    ended = evaluate("run=run", "probe=[knn,similarity]")
    assert "checksum" in ended.out
    assert ((run / "last.pt").read_bytes(), (run / "encoder.safetensors").read_bytes()) == before


def test_a_probe_that_changes_the_model_is_found_out(run, evaluate, monkeypatch):
    def meddle(self, encode, dataset):
        encode.dataset.trained.encoder.conv1.weight.data += 1
        return []

    images = Trained.images

    def with_the_model(self, changes):
        dataset = images(self, changes)
        dataset.trained = self.model
        return dataset

    monkeypatch.setattr(Trained, "images", with_the_model)
    monkeypatch.setattr(KNN, "run", meddle)
    with pytest.raises(RuntimeError, match="changed the trained model"):
        from aavae.evaluate import Evaluate

        monkeypatch.setattr("sys.argv", ["aavae-evaluate", "run=run", "probe=knn"])
        Evaluate().main()


def test_a_checkpoint_is_judged_beside_itself(run, evaluate):
    shutil.copy(run / "last.pt", run / "epoch_7.pt")
    before = (run / "results.json").read_bytes()
    assert evaluate("checkpoint=run/epoch_7.pt", "probe=knn").code == 0
    judged = by_name(results("run/evaluate_epoch_7"))
    assert judged.items() <= by_name(results()).items() and judged
    assert (run / "results.json").read_bytes() == before


def test_an_encoder_alone_is_judged_on_the_dataset_one_names(run, evaluate):
    assert evaluate("checkpoint=run/encoder.safetensors", "probe=knn").code == 2
    ended = evaluate(
        "checkpoint=run/encoder.safetensors", "dataset=synthetic", "probe=knn", "features=[h,mu,h_untrained]"
    )
    assert ended.code == 0 and "mu is left out" in ended.out
    judged = by_name(results("run/evaluate_encoder"))
    assert judged.items() <= by_name(results()).items() and len(judged) == 4


def test_every_protocol_names_another_size_than_that_of_training(run, evaluate):
    larger = ("dataset=synthetic", "dataset.image_size=24", "probe=[knn,few_label]", "features=[h,pixels]")
    ended = evaluate("checkpoint=run/encoder.safetensors", *larger)
    assert ended.code == 0 and "images of 24², trained on 16²" in ended.out
    (found,) = run.glob("evaluate_encoder/**/results.json")
    records = json.loads(found.read_text())
    assert records and all(r["protocol"].endswith(", images of 24², trained on 16²") for r in records)
    assert not any("trained on" in r["protocol"] for r in results())


def test_another_dataset_is_normalised_as_in_training(run, evaluate):
    before = (run / "results.json").read_bytes()
    ended = evaluate("run=run", "dataset=digits", "probe=knn", "features=[pixels]")
    assert "not the images it was trained on" in ended.out
    data = build.dataset(build.compose(["dataset=digits"]))
    pixels = {s: ((data[s].images.float() / 255 - 0.5) / 0.25).flatten(1) for s in ("train", "test")}
    from sklearn.neighbors import KNeighborsClassifier

    weights = lambda d: torch.exp(torch.from_numpy((1 - d) / 0.07)).numpy()  # noqa: E731
    oracle = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=weights)
    oracle.fit(pixels["train"].double().numpy(), data["train"].labels)
    score = oracle.score(pixels["test"].double().numpy(), data["test"].labels)
    [apart] = run.glob("digits_*")  # the run's own results are what they were
    assert by_name(results(apart))["knn", "pixels", "test", "accuracy"] == pytest.approx(score, abs=0.004)
    assert (run / "results.json").read_bytes() == before


@pytest.mark.slow
def test_images_that_have_moved_are_found_where_one_says(train, evaluate, tmp_path):
    data = build.dataset(build.compose(["dataset=synthetic"]))["pretrain"]
    for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = tmp_path / "photos" / str(int(label)) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    photos = ("dataset=image_folder", "dataset.path=photos", "dataset.image_size=16")
    assert train(*DEBUG, *photos).code == 0
    before = results()
    (tmp_path / "photos").rename(tmp_path / "moved")
    ended = evaluate("run=run", "probe=knn")
    assert ended.code == 2 and "photos" in ended.err
    ended = evaluate("run=run", "dataset.path=moved", "probe=[knn,few_label]", "probe.few_label.draws=3")
    assert ended.code == 0 and "not the images" not in ended.out and results() == before


@pytest.mark.slow
def test_images_without_labels_are_judged_by_what_needs_none(train, evaluate, tmp_path):
    data = build.dataset(build.compose(["dataset=synthetic"]))["pretrain"]
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(data.images[:64]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i}.png")
    photos = ("dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "batch_size=16")
    assert train(*DEBUG, *photos).code == 0
    ended = evaluate("run=run", "probe=[knn,similarity]", "probe.similarity.images=4", "probe.similarity.shown=3")
    assert ended.code == 0, ended.err
    assert "knn is left out" in ended.out and ("similarity", "h") in {(r["probe"], r["feature"]) for r in results()}


def test_an_encoder_of_one_s_own_has_to_be_trusted(train, evaluate, tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Sequential):\n"
        "    def __init__(self, image_size, width):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3 * image_size**2, width), nn.BatchNorm1d(width))\n"
        "        self.output_dim = width\n"
    )
    (tmp_path / "conf" / "encoder").mkdir(parents=True)
    (tmp_path / "conf" / "encoder" / "flat.yaml").write_text(
        "# Mine.\n_target_: own_encoder.Flat\nimage_size: auto\nwidth: 20\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert train("--config-dir", "conf", *DEBUG, "encoder=flat").code == 0
    before = results()
    ended = evaluate("run=run", "probe=knn")
    assert ended.code == 2 and "own_encoder.Flat" in ended.err and "trust" in ended.err
    assert evaluate("run=run", "probe=knn", "trust=[own_encoder]").code == 0
    assert by_name(results()) == by_name(before)


def test_what_was_found_survives_an_interruption(run, evaluate, monkeypatch):
    (run / "results.json").unlink()
    probe = KNN.run

    def interrupted(self, encode, dataset):
        if encode.name == "pixels":
            os.kill(os.getpid(), signal.SIGTERM)
        return probe(self, encode, dataset)

    monkeypatch.setattr(KNN, "run", interrupted)
    ended = evaluate("run=run", "probe=[few_label,knn]", "probe.few_label.draws=3")
    assert ended.code == 128 + signal.SIGTERM and "Traceback" not in ended.err
    assert "what was found so far is in run/results.json" in ended.out
    assert {(r["probe"], r["feature"]) for r in results() if r["feature"] == "h"} == {
        ("few_label_1", "h"), ("few_label_5", "h"), ("knn", "h"),
    }  # fmt: skip
    assert not [r for r in results() if (r["probe"], r["feature"]) == ("knn", "pixels")]


def test_several_runs_are_judged_one_after_the_other(run, evaluate):
    shutil.copytree(run, "other")
    for folder in ("run", "other"):
        (Path(folder) / "results.json").unlink()
    ended = evaluate("-m", "run=run,other", "probe=knn")
    assert ended.code == 0, ended.err
    assert results("run") == results("other")


def test_a_run_that_is_not_there_is_said_before_any_is_judged(run, evaluate):
    before = sorted(run.parent.rglob("*"))
    ended = evaluate("-m", "run=run,nowhere", "probe=knn")
    assert ended.code == 2 and "there is no run folder nowhere" in ended.err
    assert sorted(run.parent.rglob("*")) == before


def test_a_run_that_cannot_be_read_does_not_keep_the_others_from_being_judged(run, evaluate):
    shutil.copytree(run, "broken")
    for path in Path("broken").glob("*.pt"):
        path.write_bytes(b"no checkpoint")
    (run / "results.json").unlink()
    ended = evaluate("-m", "run=broken,run", "probe=knn")
    assert ended.code == 1 and "broken" in ended.err and "1 job failed" in ended.err
    assert results("run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "run=FOLDER"),
        (("run=run", "checkpoint=run/last.pt"), "one of them"),
        (("run=nowhere",), "there is no run folder nowhere"),
        (("run=run/last.pt",), "checkpoint="),
        (("checkpoint=run",), "run="),
        (("checkpoint=run/config.yaml",), "not a checkpoint"),
        (("run=run", "prob=knn"), "did you mean probe"),
        (("run=run", "probe=kn"), "did you mean knn"),
        (("run=run", "probe=knn", "probe.knn.k=0"), "k must be 1 or more"),
        (("run=run", "features=[g]"), "features knows h"),
        (("run=run", "encoder=resnet18"), "encoder is not chosen here"),
        (("run=run", "device=cuda:9"), "device=cpu"),
        (("run=run", "dataset.path=photos"), "dataset.path"),
        (("run=run", "dataset=cifar10", "dataset.path=photos"), "photos does not exist"),
        (("run=run", "probe=few_label", "probe.few_label.labels_per_class=[1000]"), "1,000 labels a class"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(run, evaluate, tmp_path, arguments, words):
    before = sorted(tmp_path.rglob("*"))
    ended = evaluate(*arguments)
    assert ended.code == 2
    assert words in ended.err and ended.err.startswith("aavae-evaluate: ")
    assert ended.err.count("\n") == 1 and "Traceback" not in ended.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_use_is_left_alone(run, evaluate):
    from aavae.runtime import files

    with files.only_one(run):
        ended = evaluate("run=run", "probe=knn")
    assert ended.code == 2 and "another process is busy in" in ended.err


def test_the_help_names_groups_dials_and_examples(evaluate, train):
    for ask, group in ((evaluate, "probe=        "), (train, "method=       ")):
        ended = ask("--help")
        assert ended.code == 0 and group in ended.out and "device: auto # auto, cpu" in ended.out
        examples = [line for line in ended.out.splitlines() if line.strip().startswith("aavae-")]
        assert len(examples) >= 5


def test_reading_a_checkpoint_does_not_alter_it(run, evaluate):
    state = checkpoint.load(run / "last.pt")
    assert evaluate("run=run", "probe=knn").code == 0
    again = checkpoint.load(run / "last.pt")
    assert all(torch.equal(v, again["model"][k]) for k, v in state["model"].items())


@pytest.mark.parametrize(
    ("command", "line", "completed"),
    [
        ("evaluate", "aavae-evaluate probe=lin", "probe=linear probe=linear_cached"),
        ("evaluate", "aavae-evaluate check", "checkpoint="),
        ("train", "aavae-train experiment=cifar10_", "experiment=cifar10_cpu"),
    ],
)
def test_tab_completion_knows_options_and_keys(request, monkeypatch, command, line, completed):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert completed in request.getfixturevalue(command)("-sc", "query=bash").out


def test_the_config_is_shown_and_nothing_else_happens(evaluate, run):
    before = sorted(run.parent.rglob("*"))
    shown = OmegaConf.create(evaluate("run=run", "probe=linear", "--cfg", "job").out)
    assert shown.run == "run" and shown.probe.linear.epochs == 90
    assert sorted(run.parent.rglob("*")) == before
