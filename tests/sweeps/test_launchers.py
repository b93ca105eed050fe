"""Sweeps through launchers and a sweeper of others: what is ours about them, and that a job's death is its own."""

import configparser
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import hydra.utils
import pytest
from omegaconf import OmegaConf

import aavae.conf
from aavae import build
from aavae.config import EXTRAS
from aavae.errors import Interrupted
from aavae.sweeps import search, slurm_queue
from aavae.sweeps.sweep import Multirun
from aavae.train import Train

ROOT = Path(__file__).resolve().parents[2]
TINY = ("trainer=debug", "trainer.max_steps=1", "probe=knn", "features=[h]", "sweep.name=s")
# A dataset that kills the job it is read in, but not the process that checks all jobs beforehand.
MORTAL = """
import os, signal, sys
from aavae.datasets.synthetic import Synthetic

class Mortal(Synthetic):
    def __init__(self, size, image_size, num_classes, **others):
        if size == 255 and any(word.startswith("hydra.run.dir=") for word in sys.argv):
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(size, image_size, num_classes, **others)
"""


def sweep(tmp_path, *arguments):
    """`aavae-train -m` over a job that trains and one that kills itself; gives the exit code and the folder."""
    (tmp_path / "mortal.py").write_text(MORTAL)
    mortal = ("dataset._target_=mortal.Mortal", "dataset.size=choice(255,256)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "aavae.train", "-m", *TINY, *mortal, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    return ended, tmp_path / "multirun" / "s"


def check_that_one_job_died_and_one_did_not(ended, folder):
    assert ended.returncode == 1, ended.stderr
    found = {}
    for job in folder.glob("*/status.json"):
        config = OmegaConf.load(job.parent / "config.yaml") if (job.parent / "config.yaml").exists() else None
        found[config and config.dataset.size] = json.loads(job.read_text()), job.parent
    assert found.keys() == {None, 256}
    died, alive = found[None][0], found[256][0]
    assert died["state"] == "failed" and "SIGKILL" in died["reason"]
    assert alive["state"] == "done" and alive["score"] is not None
    assert (found[256][1] / "results.json").exists() and "kNN" in (found[256][1] / "log.txt").read_text()
    return alive["score"]


# ---- Where they are installed -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_submitit_runs_the_other_jobs_when_one_is_killed(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    ended, folder = sweep(tmp_path, "hydra/launcher=submitit_local")
    check_that_one_job_died_and_one_did_not(ended, folder)
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert {job["name"] for job in jobs} == {"dataset.size=255", "dataset.size=256"}
    assert "dataset.size=255" in ended.stdout and "SIGKILL" in ended.stdout


@pytest.mark.slow
def test_optuna_through_joblib_goes_on_when_a_trial_is_killed(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    two = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=0")  # one of each size
    ended, folder = sweep(tmp_path, "hydra/launcher=joblib_pool", "hydra/sweeper=search", *two)
    assert "max_failure_rate" not in ended.stdout
    score = check_that_one_job_died_and_one_did_not(ended, folder)
    with sqlite3.connect(folder / "optuna.db") as database:
        assert database.execute("SELECT study_name FROM studies").fetchall() == [("epochs_2",)]
        assert database.execute("SELECT direction FROM study_directions").fetchall() == [("MAXIMIZE",)]
        assert sorted(database.execute("SELECT state FROM trials").fetchall()) == [("COMPLETE",), ("FAIL",)]
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_params == {"dataset.size": 256} and best.best_value == score


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Optuna 2 of SQLAlchemy
def test_a_trial_that_was_interrupted_is_asked_for_again(tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/optuna.db"
    assert search.ask_again("epochs_2", storage) == 0
    begun = optuna.create_study(study_name="epochs_2", storage=storage, direction="maximize")
    ended, interrupted = begun.ask(), begun.ask()
    began = [trial.suggest_float("optimizer.lr", 1e-5, 1e-2) for trial in (ended, interrupted)]
    begun.tell(ended, 0.5)
    assert search.ask_again("epochs_2", storage) == 1
    again = optuna.load_study(study_name="epochs_2", storage=storage).ask()
    assert again.suggest_float("optimizer.lr", 1e-5, 1e-2) == began[1]
    assert search.ask_again("epochs_2", storage) == 1  # that one was stopped, too


def test_slurm_is_asked_for_a_gpu_a_job_and_a_signal_in_time(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name, does in {"srun": "", "sbatch": f'cp "$1" {tmp_path}/script; echo no cluster >&2; exit 1'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    chosen = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", f"hydra.sweep.dir={tmp_path}", "sweep.name=s"]
    assert build.compose(chosen).sweep.name == "s"
    settings = OmegaConf.to_container(build.hydra_node(chosen).launcher, resolve=True)
    launcher = hydra.utils.get_class(settings.pop("_target_"))(**settings)
    launcher.setup(hydra_context=None, task_function=len, config=OmegaConf.create({"hydra": {"sweep": {"dir": "."}}}))
    with pytest.raises(Exception, match="no cluster"):
        launcher.launch([["seed=0"], ["seed=1"], ["seed=2"]], 0)
    asked = {line.removeprefix("#SBATCH --") for line in (tmp_path / "script").read_text().splitlines()}
    assert {"gpus-per-node=1", "cpus-per-task=8", "partition=gpu", "array=0-2%3", "time=1440"} <= asked
    before = next(int(line.partition("@")[2]) for line in asked if line.startswith("signal=USR2@"))
    from aavae.sweeps.pool import GRACE

    assert before > GRACE  # what a stopped job has to save what it has


def test_what_sbatch_refuses_is_said_in_its_words_and_leaves_nothing(quick_jobs, train, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "bin").mkdir()
    for name, does in {"srun": "", "sbatch": "echo sbatch: error: invalid partition >&2; exit 1"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    ended = train("-m", *TINY, "hydra/launcher=slurm", "hydra.launcher.partition=nope", "seed=0,1")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("aavae-train: FailedJobError: sbatch: error: invalid partition (")
    assert not (tmp_path / "multirun" / "s").exists() and "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize("minutes, delay, least", [(2, 60, 3), (1, 10, 2), (4, 180, 5)])
def test_a_job_of_slurms_that_had_no_time_to_train_is_refused(train, tmp_path, monkeypatch, minutes, delay, least):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    limit = (f"hydra.launcher.timeout_min={minutes}", f"hydra.launcher.signal_delay_s={delay}")
    ended = train("-m", *TINY, "hydra/launcher=slurm", *limit, "seed=0,1")
    assert ended.code == 2 and f"ask for {least} minutes or more" in ended.err
    assert not (tmp_path / "multirun").exists()


def _script(path: Path, does: str) -> None:
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)


def test_without_accounting_the_queue_says_which_jobs_have_ended(tmp_path, monkeypatch):
    slurm = pytest.importorskip("submitit.slurm.slurm")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm.SlurmJob, "watcher", before := slurm.SlurmJob.watcher)
    _script(tmp_path / "sacct", "exit 0")
    slurm_queue.watch()
    assert slurm.SlurmJob.watcher is before
    _script(tmp_path / "sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    _script(tmp_path / "squeue", "printf '9_0|SIGNALING\\n9_1|CANCELLED\\n9_2|PENDING\\n9_3|PREEMPTED\\n'")
    slurm_queue.watch()
    watcher = slurm.SlurmJob.watcher
    jobs = [f"9_{n}" for n in range(5)]  # the last is forgotten
    for job in jobs:
        watcher.register_job(job)
    assert [watcher.is_done(job, mode="force") for job in jobs] == [False, True, False, True, True]
    assert watcher.get_state("9_1", mode="cache") == "CANCELLED"
    _script(tmp_path / "squeue", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    watcher.update()  # submitit ignores what is forced within a millisecond
    assert not watcher.is_done("9_0", mode="cache")
    _script(tmp_path / "squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    watcher.update()
    assert watcher.is_done("9_0", mode="cache") and watcher.is_done("9_2", mode="cache")


def test_an_error_of_another_launcher_is_a_sentence(quick_jobs, train, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    ended = train("-m", *TINY, "hydra/launcher=joblib_pool", "hydra.launcher.pre_dispatch=zero", "seed=0,1")
    assert ended.code == 2 and "Traceback" not in ended.err and "zero" in ended.err
    assert not (tmp_path / "multirun" / "s").exists()


@pytest.mark.slow
def test_a_score_is_not_minimised_and_slurm_wants_slurm(train, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ended = train("-m", *TINY, "hydra/sweeper=optuna", "latent_dim=choice(4,8)")
    assert ended.code == 2 and "hydra.sweeper.direction=maximize" in ended.err
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = train("-m", *TINY, "hydra/launcher=slurm", "seed=0,1")
    assert ended.code == 2 and "srun" in ended.err
    assert not any(tmp_path.iterdir())


# ---- Everywhere ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["launcher=slurm", "launcher=joblib_pool", "launcher=ray_cluster", "sweeper=search"])
def test_what_is_not_installed_is_named_with_its_extra(choice, train, tmp_path):
    described = OmegaConf.load(Path(aavae.conf.__file__).parent / f"hydra/{choice.replace('=', '/')}.yaml")
    plugin = {"slurm": "submitit", "ray": "ray", "joblib": "joblib", "optuna": "optuna"}
    extra = EXTRAS[described.defaults[0]]
    try:
        __import__(f"hydra_plugins.hydra_{plugin[extra]}_{choice.split('=')[0]}")
    except ModuleNotFoundError:
        ended = train("-m", *TINY, f"hydra/{choice}", "seed=0,1")
        assert ended.code == 2 and f"pip install 'aavae[{extra}]'" in ended.err
        assert ended.err.count("\n") == 1 and not any(tmp_path.iterdir())
    else:
        assert build.hydra_node([f"hydra/{choice}"])


def test_every_extra_that_is_named_can_be_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(EXTRAS.values()) <= set(setup["options.extras_require"])


def test_slurms_signal_stops_a_job_and_is_then_given_to_submitit(tmp_path, monkeypatch):
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append((tmp_path / "status.json").read_text()))
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR2))

    def child(self, job) -> list[str]:
        timer.start()  # not before, on a busy machine
        return sleeper

    monkeypatch.setattr(Multirun, "_child", child)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    try:
        with pytest.raises(Interrupted):
            Multirun(Train(), ["trainer=debug"], None).run_alone(["trainer=debug"], 0, tmp_path, {})
    finally:
        timer.join()
        signal.signal(signal.SIGUSR2, before)
    assert len(heard) == 1 and json.loads(heard[0])["state"] == "interrupted"  # it had ended by then
