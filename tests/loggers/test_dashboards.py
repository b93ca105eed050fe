"""What dashboards are told by the real commands: Weights & Biases, offline, read back from its own file."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import wandb_reader
from omegaconf import OmegaConf
from run_folders import a_run, a_sweep, record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aavae.runs import status
from aavae.training.trainer import Trainer

DEBUG = ("trainer=debug", "hydra.run.dir=run")
FEW = ("probe.similarity.features=[h]", "probe.similarity.images=4", "probe.similarity.shown=2")


@pytest.fixture(autouse=True)
def own_service():
    yield
    import wandb

    wandb.teardown()


def by_name(rows: list[dict]) -> dict[str, list[tuple]]:
    """`{metric: [(step, epoch, value), …]}` of rows, without what is no metric; what is not finite is None."""
    found: dict[str, list[tuple]] = {}
    for row in rows:
        for name in row.keys() - {"step", "epoch"}:
            if "epoch" in row and not name.startswith("_"):
                value = row[name] if row[name] is None or math.isfinite(row[name]) else None
                found.setdefault(name, []).append((row["step"], row["epoch"], value))
    return found


def metrics(folder="run") -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_finished_run_is_all_there(train):
    mine = ("logger=[wandb,tensorboard]", "logger.wandb.tags=[debug,small]", "logger.wandb.project=mine")
    ended = train(*DEBUG, *mine, "epochs=1", "features=[h]", "probe=[knn,similarity]", *FEW)
    assert ended.code == 0 and ended.err == ""
    (run,) = wandb_reader.of_kind("run", "run")
    assert (run.project, list(run.tags), run.job_type) == ("mine", ["debug", "small"], "pretrain")
    assert (run.run_group, run.notes) == ("", "") and run.display_name
    config = wandb_reader.config("run")
    del config["_wandb"], config["chosen"]
    (session,) = json.loads(Path("run/provenance.json").read_text())
    assert session["step"] == 0 and config.pop("provenance") | {"step": 0} == session
    assert session["command"].startswith("aavae-train trainer=debug") and session["seed"] == 0
    assert config == OmegaConf.to_container(OmegaConf.load("run/config.yaml"))
    assert config["features"] == config["probe"]["knn"]["features"] == ["h"]  # resolved

    logged, expected = by_name(wandb_reader.history("run")), by_name(metrics())
    assert logged == expected
    assert expected.keys() >= {"train/loss", "train/lr", "val/loss", "val/knn", "val/bpd_8bit", "images_per_second"}
    assert [step for step, *_ in logged["train/loss"]] == [4, 8]

    events = EventAccumulator("run/tensorboard").Reload()
    scalars = {tag for tag in events.Tags()["scalars"] if not tag.startswith("results/")}
    assert scalars == {*logged, "epoch"}
    for name, points in logged.items():
        close = [(step, pytest.approx(value, rel=1e-6)) for step, _, value in points]  # float32
        assert [(e.step, e.value) for e in events.Scalars(name)] == close

    pictures = {p.stem for p in Path("run").glob("*.png")}
    assert wandb_reader.panels("run").keys() == pictures >= {"reconstructions", "similarity_h"}
    assert wandb_reader.panels("run")["reconstructions"][0] == 8
    assert set(events.Tags()["images"]) == pictures

    records = json.loads(Path("run/results.json").read_text())
    summary = wandb_reader.summary("run")
    for r in records:
        assert summary["/".join(r[k] for k in ("probe", "feature", "split", "metric"))] == r["value"]
    (table,) = Path("run/wandb").glob("*run-*/files/media/table/*.json")
    table = json.loads(table.read_text())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == records
    assert wandb_reader.exit_code("run") == 0


@pytest.mark.slow
def test_an_evaluation_is_a_run_of_its_own(train, evaluate):
    assert train(*DEBUG, "logger=wandb", "probe=[]", "epochs=1").code == 0
    Path("run/wandb").rename("trained")
    before = Path("run/metrics.jsonl").read_bytes()
    ended = evaluate("run=run", "probe=knn", "features=[h]", "logger=[wandb,tensorboard]")
    assert ended.code == 0, ended.err
    (run,) = wandb_reader.of_kind("run", "run")
    assert run.job_type == "evaluate" and run.run_id not in str(list(Path("trained").iterdir()))
    summary = wandb_reader.summary("run")
    for r in json.loads(Path("run/results.json").read_text()):
        assert summary[f"knn/h/{r['split']}/accuracy"] == r["value"]
    assert Path("run/metrics.jsonl").read_bytes() == before and list(Path("run/tensorboard").iterdir())


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_runs_of_a_group_and_tell_only_of_themselves(train, quick_jobs):
    small = ("trainer=debug", "trainer.max_steps=4", "trainer.log_every=1", "schedule.warmup_epochs=0", "probe=[]")
    ended = train("-m", *small, "logger=wandb", "sweep.name=rates", "optimizer.lr=1e-3,1e30", "hydra.launcher.n_jobs=2")
    assert ended.code == 1 and ended.err == ""
    folders = {status.read(p.parent)["name"]: p.parent for p in Path("multirun/rates").glob("*/status.json")}
    assert folders.keys() == {"optimizer.lr=0.001", "optimizer.lr=1e+30"}
    for name, folder in folders.items():
        (run,) = wandb_reader.of_kind(folder, "run")
        assert (run.display_name, run.run_group, run.job_type) == (name, "rates", "pretrain")
        assert wandb_reader.config(folder)["optimizer"]["lr"] == float(name.split("=")[1])
        assert by_name(wandb_reader.history(folder)) == by_name(metrics(folder))
        assert wandb_reader.exit_code(folder) == (0 if name == "optimizer.lr=0.001" else 1)
    assert not Path("wandb").exists()


def test_a_run_whose_loss_is_not_finite_has_failed(train):
    ended = train(*DEBUG, "logger=wandb", "probe=[]", "optimizer.lr=1e30", "schedule.warmup_epochs=0")
    assert ended.code == 2 and "the loss became" in ended.err
    assert wandb_reader.exit_code("run") == 1
    assert by_name(wandb_reader.history("run")) == by_name(metrics())


@pytest.mark.slow
def test_an_interrupted_run_has_failed_until_it_is_resumed(train, monkeypatch):
    step = Trainer.train_step

    def interrupted_step(self, *arguments, **named):
        terms = step(self, *arguments, **named)
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    assert train(*DEBUG, "logger=wandb", "probe=[]", "epochs=1").code == 128 + signal.SIGTERM
    assert wandb_reader.exit_code("run") == 1
    (first,) = wandb_reader.of_kind("run", "run")
    assert [step for step, *_ in by_name(wandb_reader.history("run"))["train/loss"]] == [4, 6]
    Path("run/wandb").rename("interrupted")
    monkeypatch.setattr(Trainer, "train_step", step)
    assert train(*DEBUG, "logger=wandb", "probe=[]", "epochs=1").code == 0
    (second,) = wandb_reader.of_kind("run", "run")
    assert second.run_id == first.run_id and wandb_reader.exit_code("run") == 0
    assert [step for step, *_ in by_name(wandb_reader.history("run"))["train/loss"]] == [8]
    assert [session["step"] for session in json.loads(Path("run/provenance.json").read_text())] == [0, 6]


def test_a_dashboard_that_cannot_begin_ends_the_run_before_it_leaves_anything(train, tmp_path):
    ended = train(*DEBUG, "logger=[tensorboard,wandb]", "logger.wandb.project=a/b")
    assert ended.code == 2 and "Invalid project name 'a/b'" in ended.err and len(ended.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_s_summary_is_a_run_of_its_group(tmp_path, monkeypatch):
    from aavae.sweeps.sweep import Multirun
    from aavae.train import Train

    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "widths"
    for n, dim in enumerate((8, 16)):
        a_run(folder / str(n), record(value=0.5 + n / 10), latent_dim=dim, said={"score": 0.5, "flop": 1e15})
    a_sweep(folder, "latent_dim=8", "latent_dim=16")
    sweep = Multirun(Train(), ["experiment=digits", "latent_dim=8,16", "logger=[wandb,tensorboard]"], None)
    sweep.folder = folder
    sweep._tell_dashboards()
    (run,) = wandb_reader.of_kind(folder, "run")
    assert (run.job_type, run.run_group, run.display_name) == ("report", "widths", "widths, report")
    logged = {key: value for line in wandb_reader.history(folder) for key, value in line.items()}
    assert logged["report/table/_type"] == "table-file" and logged["report/table/nrows"] == 2
    assert {"report/effect of latent_dim/_type", "report/accuracy against compute/_type"} <= set(logged)
    assert logged["report/effect of latent_dim/_type"] == "plotly-file"
    again, first = Multirun(Train(), ["latent_dim=8,16", "logger=wandb"], None), run.run_id
    again.folder = folder
    shutil.rmtree(folder / "wandb")
    again._tell_dashboards()
    assert wandb_reader.of_kind(folder, "run")[0].run_id == first  # not another one each time
    assert not (folder / "tensorboard").exists()


def test_curves_are_drawn_against_epochs_and_steps(tmp_path, monkeypatch):
    from aavae.loggers import Beginning
    from aavae.loggers.wandb import WandB

    monkeypatch.setenv("WANDB_MODE", "offline")
    log = WandB()
    log.start(Beginning(tmp_path))
    log.log({"train/loss": 1.0}, 10, 0.5)
    log.log({"val/loss": 1.0, "probe/knn/h/test/accuracy": 0.5}, 20, 1.0)
    log.close()
    axes = {m.glob_name or m.name: m.step_metric for m in wandb_reader.of_kind(tmp_path, "metric")}
    assert axes["*"] == "step" and axes["val/*"] == axes["probe/*"] == axes["train_eval/*"] == "epoch"
    assert all({"step", "epoch"} <= set(line) for line in wandb_reader.history(tmp_path))


@pytest.mark.slow
def test_a_sweep_with_a_dashboard_ends_with_its_report(train, quick_jobs):
    """From the outside: what the test above asks for by name, a sweep does by itself."""
    small = ("trainer=debug", "epochs=1", "probe=knn", "features=[h]", "latent_dim=4,8", "hydra.sweep.dir=two")
    ended = train("-m", *small, "logger=wandb")
    assert ended.code == 0, ended.err
    (run,) = wandb_reader.of_kind("two", "run")
    assert (run.job_type, run.run_group) == ("report", "two")
