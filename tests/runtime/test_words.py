"""What a person reads: numbers with their nouns, lines broken between words, and what was meant by what was typed."""

import io
import sys

import pytest

from aavae import build
from aavae.errors import UserError
from aavae.loggers.screen import Reporter
from aavae.runtime.words import count, epochs, wrapped


def test_a_number_and_its_noun():
    assert [count(n, "image") for n in (0, 1, 2, 1297)] == ["0 images", "1 image", "2 images", "1,297 images"]
    assert (
        count(1, "class") == "1 class" and count(2, "class") == "2 classes" and count(3200, "step", "d") == "3200 steps"
    )
    assert [epochs(n) for n in (1, 8 / 70, 1.0, 12800)] == ["1 epoch", "0.11 epochs", "1 epoch", "12800 epochs"]


def test_one_of_a_kind_is_one(train):
    ended = train("trainer=debug", "epochs=1", "batch_size=256", "probe=[]", "hydra.run.dir=run", "dry_run=true")
    assert "(1 epoch of 1)" in ended.out
    ended = train("trainer=debug", "epochs=1", "batch_size=256", "probe=[]", "hydra.run.dir=run")
    assert "1 step: 1 epoch of 1\n" in ended.out and "cpu, 1 thread," in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 100])
def test_lines_are_broken_between_words(train, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = train("--help").out
    assert max(map(len, whole.splitlines())) > columns
    monkeypatch.setenv("COLUMNS", str(columns))
    broken = train("--help").out
    assert max(len(line) for line in broken.splitlines() if " " in line.strip()) <= columns
    assert [w for w in broken.split() if w != "#"] == [w for w in whole.split() if w != "#"]
    assert wrapped("a_path_without_a_space/" * 9) == "a_path_without_a_space/" * 9


def test_what_is_said_stays_whole_in_a_file_and_is_broken_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    line = "warning  " + "words that are many " * 9
    for terminal in (False, True):
        monkeypatch.setattr("sys.stdout", io.StringIO())
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        Reporter().say(line)
        said = sys.stdout.getvalue()
        assert said.split() == line.split()
        assert (max(map(len, said.splitlines())) <= 60) is terminal


TYPED = [
    ("--experiment digits", "this is typed experiment=digits"),
    ("--experiment=digits", "this is typed experiment=digits"),
    ("-experiment=digits", "this is typed experiment=digits"),
    ("--exp digits", "is typed experiment=digits"),
    ("--ep=3", "is typed epochs=3"),
    ("--learning-rate 1e-3", "is typed optimizer.lr=1e-3"),
    ("--multi", "did you mean --multirun?"),
    ("optimizer.learning_rate=1", "did you mean optimizer.lr?"),
    ("lr=1", "did you mean optimizer.lr?"),
    ("bs=1", "did you mean batch_size?"),
    ("batch=1", "did you mean batch_size?"),
    ("max_epochs=1", "did you mean epochs?"),
    ("num_epochs=1", "did you mean epochs?"),
    ("wd=1", "did you mean optimizer.weight_decay?"),
    ("num_workers=1", "dataset.workers, which dataset=image_folder,imagenet has"),
    ("image_size=1", "dataset.image_size, which dataset=image_folder,imagenet,synthetic has"),
    ("z_dim=1", "did you mean latent_dim?"),
    ("Epochs=1", "did you mean epochs?"),
    ("optimizer=adamW", "did you mean adamw?"),
    ("dataset=CIFAR10", "did you mean cifar10?"),
    ("dataset=stl-10", "did you mean stl10?"),
    ("encoder=resnet-50", "did you mean resnet50?"),
    ("optimizer.momentum=0.9", "is typed optimizer.kwargs.momentum="),
    ("precision=16", "precision must be a name, such as auto, not 16"),
    ("probe=[1]", "probe has no option 1. It has embedding"),
    ("trainer=[0]", "trainer has no option 0. It has debug"),
    ("dataset=[{a:1}]", 'dataset has no option {"a": 1}. It has cifar10'),
    ("encoder=[]", "encoder takes one option, not a list: encoder=amdim"),
    ("seed=99999999999999999999999", "seed must be a whole number below 2^63"),
    ("hydra/launcher=[null]", "hydra/launcher takes one option, which hydra/launcher=[null] does not name"),
]


@pytest.mark.parametrize(("line", "says"), TYPED, ids=[line for line, _ in TYPED])
def test_what_was_meant_is_said(train, tmp_path, line, says):
    ended = train(*line.split())
    assert ended.code == 2 and says in ended.err and ended.err.count("\n") == 1
    assert not [*tmp_path.iterdir()]


STRANGE = [
    "[]", "{}", "[1]", "[null]", "[{a:1}]", "{a:{b:[1]}}", "[[1]]", "''", "null", "true", "1", "1e400", "nan", "9" * 30,
    "${nothing}", "${oc.env:NOWHERE}", "\n", "\x00", "a=b", "range(3)", "interval(0,1)", "glob(*)", "???", "!!python/x",
]  # fmt: skip


@pytest.mark.slow
def test_whatever_is_typed_is_composed_or_refused_in_one_line():
    groups = [*sorted(build.groups()), "hydra/launcher", "hydra/sweeper", "hydra/output"]
    keys = [
        "seed",
        "data_dir",
        "features",
        "loss.beta",
        "encoder._target_",
        "probe.knn.k",
        "optimizer.kwargs",
        "sweep.job",
    ]
    keys += ["hydra.run.dir", "hydra.searchpath", "hydra.job.env_set.A", "encoder", ""]
    refused = 0
    for key in (*groups, *keys):
        for value in STRANGE:
            for plus in ("", "++"):
                try:
                    build.compose([f"{plus}{key}={value}"])
                except UserError as error:
                    refused += 1
                    assert str(error) and "\n" not in str(error), (plus, key, value)
    assert refused > 500


def test_the_other_commands_refuse_options_too(evaluate, convert, monkeypatch, capsys):
    assert "is typed probe=knn" in evaluate("-probe=knn").err
    assert "--run takes no value; this is typed run=outputs/x" in evaluate("--run", "outputs/x").err
    assert "experiment" not in evaluate("--experiment", "digits").err.partition(";")[2]
    assert "this is typed image_size=32" in convert("a", "b", "--image-size", "32").err
    assert convert("a", "b", "--vers").code == 2
    from aavae.report import main

    monkeypatch.setattr("sys.argv", ["aavae-report", "--exp", "digits"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "there is no option --exp" in capsys.readouterr().err


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_arguments_of_a_class_need_no_plus(plus):
    vit = ["encoder=timm", "encoder.name=vit_tiny_patch16_224"]
    cfg = build.compose([*vit, f"{plus}encoder.kwargs={{patch_size:8}}", f"{plus}encoder.kwargs.img_size=32"])
    assert cfg.encoder.kwargs == {"patch_size": 8, "img_size": 32}
    assert build.compose([f"{plus}optimizer.kwargs.amsgrad=true"]).optimizer.kwargs.amsgrad is True
    with pytest.raises(UserError, match=r"there is no key 'epoch'; did you mean epochs\?"):
        build.compose([f"{plus}epoch=1"])


@pytest.mark.slow
@pytest.mark.parametrize("written", ["'own dir'", '"own dir"', r"own\ dir"])
def test_a_line_is_completed_with_the_folder_it_names(train, tmp_path, monkeypatch, written):
    (tmp_path / "own dir" / "encoder").mkdir(parents=True)
    (tmp_path / "own dir" / "encoder" / "mine.yaml").write_text("_target_: my.Net\n")
    line = f"aavae-train --config-dir {written} 'probe=[knn,online]' encoder=mi"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert train("-sc", "query=bash").out.split() == ["encoder=mine"]
    monkeypatch.setenv("COMP_LINE", "aavae-train --config-dir nowhere encoder=tim")
    assert train("-sc", "query=bash").out.split() == ["encoder=timm"]
    assert "mine patches18" in train("--config-dir", "own dir", "--help").out
