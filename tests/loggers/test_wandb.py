"""Weights & Biases as its users expect it: names, notes, git, the chosen options, the encoder; read back offline."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import wandb_reader

from aavae import build
from aavae.loggers import Beginning, Loggers
from aavae.loggers.wandb import WandB
from aavae.runs.identity import identity
from aavae.weights import encoder_file

COMMIT, REMOTE = "c0ffee" * 6 + "abcd", "https://github.com/team/project.git"
HERE = {"commit": COMMIT, "dirty": True, "remote": REMOTE}
SMALL = ("trainer=debug", "epochs=1", "probe=knn", "features=[h]")
VARIABLES = {"NAME": "mine", "NOTES": "why", "TAGS": "a,b", "RUN_GROUP": "several", "PROJECT": "theirs"}


@pytest.fixture(autouse=True)
def service(monkeypatch):
    import wandb

    for variable in (*VARIABLES, "GIT_COMMIT", "GIT_REMOTE_URL", "DISABLE_GIT", "RUN_ID"):
        monkeypatch.delenv(f"WANDB_{variable}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # it reads the environment once
    yield
    wandb.teardown()


def begun(folder: Path, run: dict | None = None, **options):
    """What Weights & Biases knows of a run with these options."""
    folder.mkdir(exist_ok=True)
    log = WandB(**options)
    log.start(Beginning(folder, **({"name": "aavae-digits-run"} | (run or {}))))
    log.close()
    return wandb_reader.of_kind(folder, "run")[0]


# ---- Names --------------------------------------------------------------------------------------------------------


def told(run) -> tuple:
    return run.display_name, run.notes, [*run.tags], run.run_group, run.project


def test_what_is_not_given_is_left_to_the_variables_of_weights_and_biases(tmp_path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert told(begun(tmp_path / "a")) == ("mine", "why", ["a", "b"], "several", "theirs")
    options = {"name": 7, "notes": "because", "tags": ["c"], "group": "few", "project": "ours"}
    assert told(begun(tmp_path / "b", **options)) == ("7", "because", ["c"], "few", "ours")
    job = begun(tmp_path / "c", {"name": "seed=1", "group": "sweep"})
    assert (job.display_name, job.run_group) == ("mine: seed=1", "several")


def test_without_options_and_variables_a_run_has_its_own_name(tmp_path):
    assert told(begun(tmp_path / "a")) == ("aavae-digits-run", "", [], "", "aavae")
    job = begun(tmp_path / "b", {"name": "seed=1", "group": "sweep"}, name="first")
    assert (job.display_name, job.run_group) == ("first: seed=1", "sweep")
    long = begun(tmp_path / "c", {"name": "seed=1", "group": "sweep"}, name="n" * 200, group="g" * 200)
    assert len(long.display_name) == len(long.run_group) == 128


def test_options_of_the_logger_do_not_make_another_run():
    options = ("name=a", "notes=b", "tags=[c]", "group=d", "log_model=true", "system_metrics=false", "project=e")
    configs = [build.compose(["logger=wandb", *(f"logger.wandb.{o}" for o in given)]) for given in ((), options)]
    assert len({identity(build.plain(cfg)) for cfg in configs}) == 1


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("logger.wandb.log_model=all", "logger.wandb.log_model must be true or false, not 'all'"),
        ("logger.wandb.system_metrics=0", "logger.wandb.system_metrics must be true or false, not 0"),
        ("logger.wandb.name=[a]", "logger.wandb.name must be a single value, not ['a']"),
        ("logger.wandb.tag=a", "did you mean logger.wandb.tags?"),
    ],
)
def test_what_cannot_be_meant_is_said(train, typed, says):
    ended = train(*SMALL, "logger=wandb", typed)
    assert ended.code == 2 and says in ended.err and not list(Path().iterdir())


# ---- git ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path):
    """A checkout with a remote, around the run's folder."""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (["init"], ["commit", "--allow-empty", "-m", "m"], ["remote", "add", "origin", "https://h.org/other"]):
        subprocess.run([*git, "-c", "commit.gpgsign=false", *words], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({"git": HERE, "git_here": None}, (COMMIT, REMOTE)),
        ({"git": None, "git_here": HERE}, (COMMIT, REMOTE)),
        ({"git": HERE | {"remote": None}, "git_here": None}, (COMMIT, "")),
    ],
)
def test_git_is_that_of_the_code_wherever_the_run_lies(tmp_path, elsewhere, provenance, expected):
    run = begun(tmp_path / "run", {"provenance": provenance})
    assert (run.git.commit, run.git.remote_url) == expected


def test_git_is_left_out_or_replaced_where_the_environment_says_so(tmp_path, monkeypatch):
    import wandb

    provenance = {"provenance": {"git": HERE, "git_here": None}}
    monkeypatch.setenv("WANDB_GIT_COMMIT", "another")
    assert begun(tmp_path / "a", provenance).git.commit == "another"
    monkeypatch.delenv("WANDB_GIT_COMMIT")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    wandb.teardown()
    run = begun(tmp_path / "b", provenance)
    assert not run.HasField("git")


# ---- System metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False])
def test_system_metrics_are_there_unless_they_are_not_wanted(tmp_path, wanted):
    begun(tmp_path, system_metrics=wanted)
    assert bool(wandb_reader.of_kind(tmp_path, "stats")) is wanted  # the first sample is taken at once


# ---- A whole run --------------------------------------------------------------------------------------------------


def test_a_run_says_what_was_chosen_and_hands_over_its_encoder(train):
    options = ("logger.wandb.log_model=true", "logger.wandb.notes=why")
    assert train(*SMALL, "method=vae", "logger=wandb", *options).code == 0
    (folder,) = (p for p in Path("outputs").iterdir() if not p.is_symlink())
    (run,) = wandb_reader.of_kind(folder, "run")
    assert (run.display_name, run.notes) == (f"vae-synthetic-{folder.name}", "why")
    (session,) = json.loads((folder / "provenance.json").read_text())
    code = session["git"] or session["git_here"] or {"commit": "", "remote": None}
    assert (run.git.commit, run.git.remote_url or None) == (code["commit"], code["remote"])
    config = wandb_reader.config(folder)
    chosen = config["chosen"]
    assert chosen["method"] == "vae" and chosen["dataset"] == "synthetic" and chosen["encoder"] == "resnet_tiny"
    assert (chosen["probe"], chosen["logger"]) == (["knn"], ["wandb"])
    for group, option in chosen.items():  # by an oracle: the option itself is what it resolves to
        if isinstance(option, str) and group not in ("method", "experiment", "sweep", "trainer", "loss"):
            assert config[group].get("_target_") == build.compose([f"{group}={option}"])[group].get("_target_")

    (artifact,) = wandb_reader.artifacts(folder)
    path = folder / encoder_file.ENCODER
    (content,) = artifact.manifest.contents
    assert (content.path, content.size) == (path.name, path.stat().st_size)
    assert hashlib.md5(Path(content.local_path).read_bytes()).digest() == hashlib.md5(path.read_bytes()).digest()
    facts = encoder_file.read(path)[1]
    said = json.loads(artifact.metadata)
    accuracy = wandb_reader.summary(folder)["knn/h/test/accuracy"]
    assert [(r["probe"], r["value"]) for r in said.pop("results")] == [("knn", accuracy)]
    assert said == json.loads(json.dumps(facts))
    assert "# Encoder of vae" in artifact.description and f"- knn: {100 * accuracy:.2f} %" in artifact.description


def test_an_encoder_is_handed_over_only_where_it_is_asked_for_and_only_to_those_that_take_it(tmp_path):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"weights")

    class Deaf:
        place = "deaf"

    log = WandB()
    log.start(Beginning(tmp_path))
    Loggers({"deaf": Deaf(), "wandb": log}).encoder(path, {}, "# Encoder")
    log.close()
    assert wandb_reader.artifacts(tmp_path) == []


def test_parts_that_a_model_does_not_take_are_not_chosen(train):
    assert train(*SMALL, "experiment=digits", "method=simclr", "logger=wandb", "hydra.run.dir=run").code == 0
    chosen = wandb_reader.config(Path("run"))["chosen"]
    assert (chosen["method"], chosen["decoder"], chosen["loss"]) == ("simclr", "none", "none")
    assert wandb_reader.of_kind(Path("run"), "run")[0].display_name == "simclr-digits-run"
