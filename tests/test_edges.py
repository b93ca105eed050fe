"""`aavae-evaluate` and its neighbours at their edges: what an adversary found once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aavae import build
from aavae.errors import UserError
from aavae.probes.few_label import FewLabel

DEBUG = ("trainer=debug", "trainer.max_steps=4", "probe=[knn,online]", "hydra.run.dir=run")


def results(f="run"):
    return json.loads((Path(f) / "results.json").read_text())


def test_z_of_two_splits_has_noise_of_its_own():
    from frozen import Cropped, autoencoder, representing, shown

    model, _ = autoencoder()
    data = Cropped()
    made = representing(model, data)
    noise = {}
    for split in ("val", "test"):
        with torch.no_grad():
            code = model.eval().encode(shown(data, split))
        noise[split] = (made["z"](split)[0] - code.mu) / code.sigma
    assert (noise["val"] - noise["test"]).abs().max() > 0.1


@pytest.mark.slow
def test_another_dataset_does_not_overwrite_the_run_s_results(train, evaluate):
    assert train(*DEBUG).code == 0
    before = results()
    assert evaluate("run=run", "dataset=digits", "probe=knn").code == 0
    assert results() == before and len([*Path("run").glob("digits_*/results.json")]) == 1


@pytest.mark.slow
def test_moved_images_that_are_others_do_not_share_a_table(train, evaluate, tmp_path):
    from PIL import Image

    data = build.dataset(build.compose(["dataset=synthetic"]))["pretrain"]
    for root, first in (("one", 0), ("two", 64)):
        for i in range(first, first + 120):
            p = tmp_path / root / str(int(data.labels[i])) / f"{i}.png"
            p.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[i].permute(1, 2, 0).numpy()).save(p)
    photos = ("dataset=image_folder", "dataset.path=one", "dataset.image_size=16")
    assert train(*DEBUG, *photos).code == 0
    before = results()
    ended = evaluate("run=run", "dataset.path=two", "probe=knn")
    assert ended.code == 0 and results() == before and len([*Path("run").glob("image_folder_*/results.json")]) == 1


@pytest.mark.slow
def test_the_online_probe_is_not_judged_on_other_classes_nor_before_it_learned(train, evaluate):
    assert train(*DEBUG).code == 0
    ended = evaluate("run=run", "dataset=digits", "probe=[online]")
    assert "online of h is left out" in ended.out
    assert train(*DEBUG[:2], "probe=[knn]", "hydra.run.dir=late").code == 0
    assert "online of h is left out" in train(*DEBUG[:3], "hydra.run.dir=late").out


def test_the_online_protocol_says_how_it_learned(train, evaluate):
    assert train(*DEBUG, "probe.online.lr=0.01", "probe.online.batch_size=64").code == 0
    before = results()
    assert evaluate("run=run", "probe=[online]").code == 0
    assert {r["protocol"] for r in results()} == {r["protocol"] for r in before}


def test_streamed_images_can_be_judged_with_the_default_probes(train, evaluate, tmp_path):
    from PIL import Image

    data = build.dataset(build.compose(["dataset=synthetic"]))["pretrain"]
    for i in range(64):
        p = tmp_path / "photos" / str(int(data.labels[i])) / f"{i}.png"
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[i].permute(1, 2, 0).numpy()).save(p)
    photos = (
        "dataset=image_folder",
        "dataset.path=photos",
        "dataset.image_size=16",
        "dataset.in_memory=false",
        "dataset.workers=0",
    )
    assert train(*DEBUG[:2], "probe=[]", *photos, "hydra.run.dir=run").code == 0
    ended = evaluate("run=run", "probe=[knn,online]")
    assert ended.code == 0 and "online of h is left out" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("precision=bf16",)])
def test_every_digit_is_that_of_the_end_of_training(train, evaluate, extra):
    probes = ("probe=[knn,similarity,geometry]", "features=[h,mu]", "probe.similarity.images=20")
    assert train(*DEBUG[:2], *probes, *extra, "hydra.run.dir=run").code == 0
    assert evaluate("run=run", *probes, "hydra.run.dir=again").code == 0
    assert results("again") == results()
    assert all("float32" in r["protocol"] for r in results())
    if extra:
        assert evaluate("run=run", *probes, "precision=fp32", "hydra.run.dir=full").code == 0
        assert results("full") == results()


def test_classifiers_compute_in_full_float32_whatever_the_run_used(train, monkeypatch):
    from aavae.probes import few_label, knn, linear_cached

    seen = {}

    def spy(module, name):
        function = getattr(module, name)

        def spied(*arguments):
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return function(*arguments)

        monkeypatch.setattr(module, name, spied)

    for module, name in ((knn, "knn_predict"), (linear_cached, "fit_softmax"), (few_label, "draw_per_class")):
        spy(module, name)
    before = torch.get_float32_matmul_precision()
    probes = "probe=[knn,few_label,linear_cached,finetune]"
    ended = train("trainer=debug", "trainer.max_steps=2", "precision=bf16", "features=[h]", "probe.finetune.epochs=1",
                  "probe.finetune.features=[h]", probes, "hydra.run.dir=run")  # fmt: skip
    assert torch.get_float32_matmul_precision() == "high"  # training's own
    torch.set_float32_matmul_precision(before)
    assert ended.code == 0, ended.err
    assert seen == {key: {"highest"} for key in ("knn_predict", "fit_softmax", "draw_per_class")}
    precision = {r["probe"]: r["protocol"].rpartition(", ")[2] for r in results()}
    assert precision.pop("finetune") == "bf16 autocast"
    assert all("float32" in r["protocol"] for r in results() if r["probe"] in precision)


@pytest.mark.parametrize("argument", ["run=''", "run=3", "run=[a]", "checkpoint=3", "run=${a}", "checkpoint=true"])
def test_a_path_that_is_none_gets_one_sentence(evaluate, argument):
    ended = evaluate(argument, "probe=knn")
    assert ended.code == 2 and ended.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b'[{"probe":"x","feature":"h","split":"test","metric":"accuracy","epoch":0.5}]']
)
def test_damaged_results_get_one_sentence_and_are_found_again_by_training(train, evaluate, content):
    assert train(*DEBUG).code == 0
    Path("run/results.json").write_bytes(content)
    ended = evaluate("run=run", "probe=knn")
    assert ended.code == 2 and "damaged" in ended.err and ended.err.count("\n") == 1
    assert train(*DEBUG).code == 0 and results()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"[]", b"\xff", b"null"])
def test_a_damaged_status_means_evaluating_again(train, content):
    assert train(*DEBUG).code == 0
    Path("run/status.json").write_bytes(content)
    assert train(*DEBUG).code == 0


def test_a_folder_one_cannot_write_in_gets_one_sentence(train, evaluate):
    assert train(*DEBUG).code == 0
    Path("run/.lock").unlink()
    Path("run/.lock").mkdir()
    ended = evaluate("run=run", "probe=knn")
    assert ended.code == 2 and "hydra.run.dir=" in ended.err


def test_an_empty_folder_of_the_user_s_stays(train, evaluate):
    assert train(*DEBUG).code == 0
    Path("mine").mkdir()
    assert evaluate("-m", "run=mine,run", "probe=knn").code == 2
    assert Path("mine").is_dir()


def test_labels_per_class_are_whole_before_anything_is_trained():
    with pytest.raises(UserError):
        FewLabel(labels_per_class=(1.5,))


@pytest.mark.parametrize("argument", ["seed=glob(*)", "latent_dim=${foo}"])
def test_what_cannot_be_resolved_gets_one_sentence(train, argument):
    ended = train("-m", *DEBUG, argument) if "glob" in argument else train(*DEBUG, argument)
    assert ended.code == 2 and ended.err.count("\n") == 1


def test_data_dir_goes_with_any_dataset(train, evaluate):
    assert train(*DEBUG).code == 0
    assert evaluate("run=run", "dataset=synthetic", "data_dir=elsewhere", "probe=knn", "hydra.run.dir=o").code == 0


def test_sigterm_during_imports_ends_it():
    lines = (
        "import os, signal, sys",
        "from aavae import command; from aavae.runtime import signals",
        "try:",
        "    with signals.listening(): os.kill(os.getpid(), signal.SIGTERM)",
        "except KeyboardInterrupt as error: print(error, 'torch' in sys.modules)",
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["SIGTERM", "False"]


def test_trusting_what_is_no_name_gets_one_sentence(train, evaluate):
    assert train(*DEBUG).code == 0
    ended = evaluate("run=run", "trust=[3]", "probe=knn")
    assert "Traceback" not in ended.err and ended.code in (0, 2)
