"""Sweeps that Weights & Biases runs (`conf/wandb/`): its own agent, without a server, starts our commands."""

import json
import os
import queue
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb_reader
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import aavae.conf
from aavae import build
from aavae.loggers import Beginning
from aavae.loggers.wandb import WandB

FILES = sorted(Path(path).absolute() for path in (Path(aavae.conf.__path__[0]) / "wandb").glob("*.yaml"))
SMALL = ("experiment=none", "trainer=debug", "probe=knn", "features=[h]")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def definition(path: Path) -> dict:
    return yaml.safe_load(path.read_text())  # as W&B does


def draws(parameters: dict) -> list[dict]:
    """Every parameter at its first value, or the least, and at its last, or the greatest."""
    ends = {name: p.get("values") or [p["min"], p["max"]] for name, p in parameters.items()}
    return [{name: values[i] for name, values in ends.items()} for i in (0, -1)]


@pytest.fixture(autouse=True)
def own_service():
    import wandb

    wandb.teardown()  # it reads the environment once
    yield
    wandb.teardown()


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """`agent(sweep, draw, run_id, *more)`: a process of W&B's own agent, with `more` behind the sweep's command."""
    from wandb import wandb_agent

    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):  # which the agent sets
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw33p")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    started = []

    def start(sweep: dict, draw: dict, run_id: str, *more: str):
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sw33p")
        agent._sweep_command = [*sweep["command"], *more]
        arguments = {name: {"value": value} for name, value in draw.items()}
        agent._command_run({"run_id": run_id, "program": sweep["program"], "args": arguments})
        started.append(agent._run_processes[run_id])
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def typed(agent, tmp_path, monkeypatch):
    """`typed(sweep, draw)`: the arguments that `aavae-train` is given by the agent."""
    program = tmp_path / "bin" / "aavae-train"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def arguments(sweep: dict, draw: dict) -> list[str]:
        assert agent(sweep, draw, "r1").wait(timeout=60) == 0
        return Path("arguments").read_text().splitlines()

    return arguments


@each_file
def test_every_draw_is_a_run_with_these_values_in_a_folder_of_its_own(path, typed):
    sweep = definition(path)
    for draw in draws(sweep["parameters"]):
        arguments = typed(sweep, draw)
        cfg = build.compose(arguments)
        assert {name: OmegaConf.select(cfg, name) for name in draw} == draw
        assert "wandb" in cfg.logger and cfg.logger.wandb.project is None  # the sweep's, which the agent sets
        assert all(str(value) in cfg.sweep.job for value in draw.values())
        assert build.folder(arguments, "hydra.run.dir") == "multirun/sw33p/r1"


@each_file
def test_an_early_end_is_at_a_validation_that_there_is(path):
    sweep = definition(path)
    constant = [part for part in sweep["command"] if not part.startswith("${")]
    cfg = build.compose([part for part in constant if not part.startswith("hydra.")])
    validations = cfg.epochs / cfg.trainer.validate_every
    early = sweep.get("early_terminate", {"min_iter": 1, "eta": 1})
    assert early["min_iter"] * early["eta"] <= validations


@pytest.mark.filterwarnings("ignore")  # of pydantic, about the package's own classes
@each_file
def test_weights_and_biases_finds_nothing_to_complain_about(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sweeps.config")  # not the folder of these tests
        import sweeps
    sweep = definition(path)
    assert sweeps.schema_violations_from_proposed_config(sweep) == []
    (drawn,) = sweeps.next_runs(sweep, [], validate=True)
    assert drawn.config.keys() == sweep["parameters"].keys()
    if "early_terminate" in sweep:
        better, worse = ([{"step": i, sweep["metric"]["name"]: v} for i in range(10)] for v in (0.9, 0.1))
        runs = [sweeps.SweepRun(name=str(i), state="running", history=better) for i in range(3)]
        runs += [sweeps.SweepRun(name="worse", state="running", history=worse)]
        assert [run.name for run in sweeps.stop_runs(sweep, runs)] == ["worse"]
        runs[-1].history.pop()
        assert sweeps.stop_runs(sweep, runs) == []


def test_values_of_every_kind_survive_the_way_through_agent_and_hydra():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    values = {
        "optimizer.lr": 1e-05,
        "loss.beta": 0,
        "loss.learn_scale": True,
        "trainer.checkpoint_epochs": [400, 800],
        "features": ["h", "mu"],
        "dataset.path": "my images/a",
        "method": "vae",
    }
    given = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})["args_no_hyphens"]
    parsed = OverridesParser.create().parse_overrides(given)
    assert {o.key_or_group: o.value() for o in parsed} == values
    cfg = build.compose(given)
    assert cfg.optimizer.lr == 1e-05 and cfg.dataset.path == "my images/a"
    quoted = create_sweep_command_args({"args": {"trainer.clip": {"value": "null"}, "sweep.name": {"value": "'a, b'"}}})
    cfg = build.compose(quoted["args_no_hyphens"])
    assert cfg.trainer.clip is None and cfg.sweep.name == "a, b"


@pytest.mark.slow
def test_the_agents_run_is_written_stopped_and_gone_on_with(agent, train, monkeypatch):
    sweep, draw = definition(FILES[0]), {"optimizer.lr": 1e-05, "batch_size": 16}
    process = agent(sweep, draw, "r1", *SMALL, "epochs=1000")
    folder = Path("multirun/sw33p/r1")
    give_up = time.monotonic() + 120
    while not (folder / "last.pt").exists():
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.05)
    process.terminate()  # as the agent does with a run that is stopped early
    assert process.wait(timeout=60) == -signal.SIGTERM  # an exit code above 0 would count as a failure
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    (first,) = wandb_reader.of_kind(folder, "run")
    assert (first.run_id, first.sweep_id, first.display_name) == ("r1", "sw33p", "lr=1e-05 beta=0.0")
    assert wandb_reader.config(folder)["optimizer.lr"] == 1e-05

    # A preempted run is given out again under the same id.
    (folder / "wandb").rename("before")
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH")  # a file that W&B leaves open, which is an error here
    step = json.loads((folder / "status.json").read_text())["step"]
    ended = train(*sweep["command"][2:-1], "optimizer.lr=1e-05", "batch_size=16", *SMALL, f"epochs={step // 16 + 1}")
    assert ended.code == 0, ended.err
    (second,) = wandb_reader.of_kind(folder, "run")
    assert (second.run_id, second.sweep_id) == ("r1", "sw33p")
    (provenance, again) = json.loads((folder / "provenance.json").read_text())
    assert provenance["step"] == 0 and again["step"] == step
    logged = {key for row in wandb_reader.history(folder) for key in row} & wandb_reader.summary(folder).keys()
    assert {definition(path)["metric"]["name"] for path in FILES} <= logged


class Server:
    """What the agent hears of a server: the sweep, and with each heartbeat the next run, as W&B's own code draws it."""

    def __init__(self, sweep: dict, draws: list[dict]):
        self.sweep, self.left, self.beats = sweep, draws, []

    def _sweep_with_runs(self, api, sweep_id, specs) -> dict:
        return {"config": yaml.safe_dump(self.sweep)}

    def _register_agent(self, api, host, *, sweep_id) -> dict:
        return {"id": "agent"}

    def _agent_heartbeat(self, api, agent_id, metrics, running) -> list[dict]:
        self.beats.append(dict(running))
        if running:
            return []
        if not self.left:
            return [{"type": "exit"}]
        arguments = {name: {"value": value} for name, value in self.left.pop(0).items()}
        return [{"type": "run", "run_id": f"r{len(self.left)}", "program": self.sweep["program"], "args": arguments}]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of pydantic, about the package's own classes
@each_file
def test_the_agents_own_loop_runs_what_is_drawn(path, agent, tmp_path, monkeypatch):
    """All of `wandb agent` but its requests: it reads the sweep, starts runs, waits for them and asks for the next."""
    import wandb
    from wandb import wandb_agent
    from wandb.apis.public import sweeps as requests

    sweep = definition(path)
    few = [{k: min(v, 256) if k == "batch_size" else v for k, v in d.items()} for d in draws(sweep["parameters"])]
    few = few if path == FILES[0] else few[:1]  # the agent asks for another run in the same way for all
    server = Server(sweep | {"command": [*sweep["command"], *SMALL, "epochs=1"]}, few)
    for name in ("_sweep_with_runs", "_register_agent", "_agent_heartbeat"):
        monkeypatch.setattr(requests, name, getattr(server, name))
    monkeypatch.setattr(wandb, "Api", lambda: None)
    monkeypatch.setattr(wandb_agent.Agent, "POLL_INTERVAL", 0.1)
    expected = [*server.left]
    ours = wandb_agent.Agent(api=None, queue=queue.Queue(), sweep_id="sw33p")
    ours.run()
    assert (ours._finished, ours._failed) == (len(expected), 0)
    for number, draw in enumerate(reversed(expected)):
        folder = Path("multirun/sw33p") / f"r{number}"
        assert json.loads((folder / "status.json").read_text())["state"] == "done"
        (run,) = wandb_reader.of_kind(folder, "run")
        assert (run.run_id, run.sweep_id) == (f"r{number}", "sw33p")
        config = wandb_reader.config(folder)
        assert {name: config[name] for name in draw} == draw  # as W&B's own table of runs has them
        assert all(str(value) in run.display_name for value in draw.values())
        assert sweep["metric"]["name"] in wandb_reader.summary(folder)


def test_the_room_for_a_folder_that_is_not_there_yet_is_that_of_the_nearest_one(tmp_path, monkeypatch):
    logger, asked = WandB(), []
    logger.folder = tmp_path / "run" / "wandb"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=2**40))
    assert logger._full() is None and asked == [tmp_path]


def test_a_run_id_in_the_environment_is_not_shared_by_the_jobs_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_MODE", "offline")
    kinds = {"alone": {}, "job": {"group": "g"}, "other": {"group": "g"}, "judged": {"job_type": "evaluate"}}
    ids = {}
    for name, kind in kinds.items():
        logger = WandB()
        logger.start(Beginning(tmp_path / name, **kind))
        ids[name] = logger.state()["id"]
        logger.close()
    assert ids["alone"] == "mine" and len(set(ids.values())) == len(ids)


def test_the_agent_does_not_start_sweeps_of_ours(train, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw33p")
    ended = train("-m", "trainer=debug", "seed=0,1")
    assert ended.code == 2 and "leave out -m" in ended.err and not list(Path().iterdir())
