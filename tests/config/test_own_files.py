"""YAML files of the user's own, in --config-dir or hydra.searchpath: held against what the shipped files know."""

from pathlib import Path

import pytest

from aavae import build
from aavae.config import sources
from aavae.errors import UserError

GLOBAL = "# @package _global_\n"
GROUPS = {
    "experiment": ("experiment/mine", GLOBAL),
    "method": ("method/mine", GLOBAL + "method: mine\n"),
    "sweep": ("sweep/mine", GLOBAL),
    "optimizer": ("optimizer/mine", "defaults: [adam]\n"),
    "trainer": ("trainer/mine", "defaults: [default]\n"),
    "encoder": ("encoder/mine", "_target_: aavae.models.encoders.resnet.resnet\nblock: basic\nlayers: [1, 1, 1, 1]\n"),
    "loss": ("loss/mine", "defaults: [elbo]\n"),
    "dataset": ("dataset/mine", "_target_: aavae.datasets.folder.ImageFolder\npath: photos\n"),
    "augmentation": ("augmentation/mine", "_target_: aavae.augmentations.simclr.SimCLRViews\n"),
    "probe": ("probe/mine", "mine:\n  _target_: aavae.probes.knn.KNN\n  features: [h]\n"),
    "knn": ("probe/mine", "knn:\n  _target_: aavae.probes.knn.KNN\n  features: [h]\n"),
    "logger": ("logger/mine", "defaults: [wandb]\n"),
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def composed(folder: Path, group: str, text: str, *overrides: str, primary: str = "config"):
    name, begin = GROUPS[group]
    write(folder, name, begin + text)
    group, _, option = name.partition("/")
    choice = f"{group}=[{option}]" if group in ("probe", "logger") else f"{group}={option}"
    return build.compose([choice, *overrides], str(folder), primary)


WRONG = [
    ("experiment", "epoch: 1", "there is no key 'epoch'; did you mean epochs?"),
    ("experiment", "beta: 3.0", "there is no key 'beta'; did you mean loss.beta?"),
    ("experiment", "optimizer: {lrr: 1}", "there is no key 'optimizer.lrr'; did you mean optimizer.lr?"),
    ("experiment", "optimizer: {lr: '1e-3'}", "optimizer.lr must be a number, not '1e-3'"),
    ("experiment", "optimizer: {lr: null}", "optimizer.lr must be a number, not null"),
    ("experiment", "optimizer: {lr: [1]}", "optimizer.lr must be a number, not [1]"),
    ("experiment", "optimizer: {lr: {a: 1}}", "optimizer.lr must be a number, not {'a': 1}"),
    ("experiment", "optimizer: {lr: true}", "optimizer.lr must be a number, not true"),
    ("experiment", "optimizer: {lr: .inf}", "optimizer.lr must be a number, not inf"),
    ("experiment", "optimizer: 3", "optimizer must be a group of settings"),
    ("experiment", "encoder: resnet18", "- override /encoder: resnet18"),
    ("experiment", "epochs: '3'", "epochs must be a whole number, not '3'"),
    ("experiment", "epochs: 18446744073709551616", "epochs must be a whole number below 2^63"),
    ("experiment", "data_dir: 3", "data_dir must be text, not 3"),
    ("experiment", "trainer: {log_every: 2.5}", "trainer.log_every must be a whole number, not 2.5"),
    ("experiment", "trainer: {max_steps: x}", "trainer.max_steps must be a whole number or null, not 'x'"),
    (
        "experiment",
        "trainer: {checkpoint_epochs: 3}",
        "trainer.checkpoint_epochs must be a list of whole numbers, not 3",
    ),
    ("experiment", "features: [1]", "features must be a list of names, not [1]"),
    ("experiment", "epochs: ${nothing}", "nothing"),
    ("experiment", "epochs: ${data_dir}", "epochs must be a whole number, not 'data'"),
    (
        "experiment",
        "probe: {knn: {neighbours: 3}}",
        "'probe.knn.neighbours'; did you mean probe.knn.k?",
    ),
    ("experiment", "hydra: {nope: 1}", "nope"),
    ("experiment", "epochs: [", "experiment/mine"),
    ("method", "latent: 3", "there is no key 'latent'; did you mean latent_dim?"),
    ("method", "loss: {target: 3}", "loss.target must be text, not 3"),
    ("sweep", "trainer: {probe_every: x}", "trainer.probe_every must be a whole number, not 'x'"),
    ("optimizer", "momentum: 0.9", "there is no key 'optimizer.momentum'"),
    ("optimizer", "weight_decay: '0'", "optimizer.weight_decay must be a number, not '0'"),
    ("trainer", "save_minutes: null", "trainer.save_minutes must be a number, not null"),
    ("encoder", "chanels: 3", "there is no key 'encoder.chanels'; did you mean encoder.channels?"),
    ("encoder", "channels: 3.5", "encoder.channels must be a whole number, not 3.5"),
    ("loss", "beta: a", "loss.beta must be a number, not 'a'"),
    ("dataset", "image_sise: 32", "there is no key 'dataset.image_sise'; did you mean dataset.image_size?"),
    ("dataset", "mean: [a, b, c]", "dataset.mean must be a list of numbers or null"),
    ("augmentation", "strength: ???", "augmentation.strength has no value yet; give it one"),
    ("augmentation", "strength: much", "augmentation.strength must be a number or auto, not 'much'"),
    ("knn", "  kk: 3", "there is no key 'probe.knn.kk'; did you mean probe.knn.k?"),
    ("knn", "  k: 3.5", "probe.knn.k must be a whole number, not 3.5"),
    ("logger", "wandb: {tags: a}", "logger.wandb.tags must be a list of names or null, not 'a'"),
]


@pytest.mark.parametrize(("group", "text", "says"), WRONG, ids=[f"{g}: {t}" for g, t, _ in WRONG])
def test_what_the_command_line_refuses_is_refused_in_a_file(tmp_path, group, text, says):
    with pytest.raises(UserError) as refusal:
        composed(tmp_path, group, text)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)
    if not text.startswith(("epochs: [", "epochs: ${nothing", "hydra")):
        assert str(refusal.value).startswith(f"{tmp_path / GROUPS[group][0]}.yaml: ")


GOOD = [
    ("experiment", "epochs: 1\noptimizer: {lr: 1}"),  # a whole number is a number
    ("experiment", "trainer: {clip: 1, max_steps: 3}"),
    ("experiment", "trainer: {clip: null, max_steps: null}"),
    ("experiment", "optimizer: {kwargs: {amsgrad: true, betas: [0.5, 0.9]}}"),
    ("experiment", "optimizer: {lr: '${probe.knn.temperature}'}\nhydra: {sweeper: {params: {seed: '0,1'}}}"),
    ("experiment", "defaults: [override /encoder: timm]\nencoder: {name: resnet18, kwargs: {drop_rate: 0.1}}"),
    ("experiment", "encoder: {_target_: my.Encoder, width: 3, deep: {er: [1]}}"),  # theirs to judge
    ("experiment", "defaults: [/extra: a]\nlatent_dim: ${extra.width}"),
    ("encoder", "channels: 8"),
    ("dataset", "resize: 40\nmean: [0.5, 0.5, 0.5]"),
    ("augmentation", "strength: auto"),
    ("augmentation", "strength: 1"),
    ("probe", "  k: 3"),
    ("logger", "wandb: {tags: [a], entity: me}"),
]


@pytest.mark.parametrize(("group", "text"), GOOD, ids=str)
def test_what_can_be_meant_is_taken(tmp_path, group, text):
    write(tmp_path, "extra/a", "width: 5\nanything: [x]\n")
    assert composed(tmp_path, group, text)


def test_the_command_line_mends_a_file(tmp_path):
    assert composed(tmp_path, "experiment", "epochs: '3'", "epochs=3").epochs == 3


def test_a_setting_that_a_file_lacks_may_be_typed_and_one_it_must_have_is_missed(tmp_path):
    assert composed(tmp_path, "dataset", "", "dataset.image_size=32").dataset.image_size == 32
    write(tmp_path, "optimizer/half", "name: adam\n")
    with pytest.raises(UserError, match=r"half.yaml: optimizer.* is missing: every file of"):
        build.compose(["optimizer=half"], str(tmp_path))
    write(tmp_path, "method/nameless", GLOBAL + "latent_dim: 3\n")
    with pytest.raises(UserError, match=r"method is missing"):
        build.compose(["method=nameless"], str(tmp_path))
    write(tmp_path, "encoder/what", "width: 3\n")
    with pytest.raises(UserError, match=r"what.yaml: encoder._target_ is missing"):
        build.compose(["encoder=what"], str(tmp_path))
    write(tmp_path, "probe/flat", "_target_: my.Probe\nk: 3\n")
    with pytest.raises(UserError, match=r"a file of probe/ has a name first, and its settings below it"):
        build.compose(["probe=[flat]"], str(tmp_path))


def test_a_group_of_one_s_own_is_chosen_with_a_plus(tmp_path):
    write(tmp_path, "extra/a", "width: 5\n")
    assert build.compose(["+extra=a", "extra.width=7"], str(tmp_path)).extra.width == 7
    with pytest.raises(UserError, match=r"extra is a group of your own; choose an option with \+extra="):
        build.compose(["extra=a"], str(tmp_path))


def test_a_file_that_a_shipped_one_hides_is_refused_where_it_is_chosen(tmp_path):
    hidden = write(tmp_path, "experiment/digits", GLOBAL + "epochs: 1\n")
    assert build.compose((), str(tmp_path)).epochs == 3200
    with pytest.raises(UserError, match=f"{hidden} would not be read"):
        build.compose(["experiment=digits"], str(tmp_path))
    write(tmp_path, "config", "epochs: 1\n")
    with pytest.raises(UserError, match=r"config.yaml would not be read"):
        build.compose((), str(tmp_path))


def test_a_clone_s_own_conf_hides_nothing():
    conf = Path(build.__file__).parents[1] / "conf"
    assert build.compose(["experiment=digits"], str(conf)) == build.compose(["experiment=digits"])


def test_a_searchpath_is_a_folder_of_one_s_own_too(tmp_path):
    write(tmp_path, "experiment/mine", GLOBAL + "epoch: 1\n")
    with pytest.raises(UserError, match=r"mine.yaml: there is no key 'epoch'"):
        build.compose(["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"])
    with pytest.raises(UserError, match=r"there is no folder file:///nowhere with configs"):
        build.compose(["hydra.searchpath=[file:///nowhere]"])


def test_evaluation_reads_files_as_closely(tmp_path):
    with pytest.raises(UserError, match=r"did you mean probe.knn.k?"):
        composed(tmp_path, "knn", "  kk: 3", primary="evaluate")
    with pytest.raises(UserError, match=r"dataset.image_size must be a whole number, not '32'"):
        composed(tmp_path, "dataset", "image_size: '32'", primary="evaluate")
    assert composed(tmp_path, "dataset", "", "run=x", primary="evaluate").dataset.path == "photos"


def test_options_of_one_s_own_are_listed_and_suggested(tmp_path):
    write(tmp_path, "encoder/my_net", "_target_: my.Net\n")
    with pytest.raises(UserError, match=r"did you mean my_net\? It has amdim, my_net, patches18"):
        build.compose(["encoder=mynet"], str(tmp_path))


def test_a_bad_file_ends_a_run_and_a_sweep_before_they_begin(train, tmp_path):
    write(tmp_path, "conf/experiment/mine", GLOBAL + "epoch: 1\n")
    for sweeping in ((), ("-m", "seed=0,1")):
        ended = train(*sweeping, "--config-dir", "conf", "trainer=debug", "experiment=mine")
        assert ended.code == 2 and "did you mean epochs?" in ended.err and ended.err.count("\n") <= 3
    assert [p.name for p in tmp_path.iterdir()] == ["conf"]


def test_a_command_reads_them_once_before_a_run(train, monkeypatch, tmp_path):
    write(tmp_path / "conf", "experiment/mine", GLOBAL + "epochs: 1\n")
    read, calls = sources.own_files, []
    monkeypatch.setattr(sources, "own_files", lambda *how: calls.append(how) or read(*how))
    ended = train("--config-dir", "conf", "experiment=mine", "dataset=digits", "trainer=debug", "dry_run=true")
    assert ended.code == 0 and len(calls) == 1
