"""Folders of runs and sweeps as aavae leaves them, without a run."""

import json
from pathlib import Path

from aavae import build
from aavae.runs import status

CONFIG = {
    "seed": 0,
    "epochs": 3,
    "latent_dim": 32,
    "method": "aavae",
    "encoder": {"_target_": "r", "layers": [1, 1]},
    "decoder": {"layers": [1, 1]},
    "loss": {"beta": 0.0, "sample": "reparam"},
    "dataset": {"_target_": "Digits"},
}


def record(probe="knn", value=0.5, feature="h", protocol="k=20", split="test", metric="accuracy") -> dict:
    names = {"probe": probe, "feature": feature, "split": split, "metric": metric}
    return names | {"value": value, "n": 300, "protocol": protocol, "epoch": 3.0}


def a_run(folder: Path, *records: dict, state="done", said=(), **config) -> Path:
    """A run folder; `config` with `__` for the dots."""
    folder.mkdir(parents=True)
    settings = json.loads(json.dumps(CONFIG))
    for key, value in config.items():
        node, *rest = key.split("__")
        if rest:
            settings[node][rest[0]] = value
        else:
            settings[node] = value
    (folder / "config.yaml").write_text(build.to_yaml(settings))
    (folder / "results.json").write_text(json.dumps(records))
    status.write(folder, state, **dict(said))
    return folder


def a_sweep(folder: Path, *jobs: str, launches=(("latent_dim=8,16",),)) -> None:
    """The sweep.json of jobs, each in the folder of its number, with these overrides."""
    entries = [{"folder": str(i), "overrides": job.split(), "name": job} for i, job in enumerate(jobs)]
    launched = [{"overrides": list(overrides), "config_dir": None, "started": "now"} for overrides in launches]
    folder.mkdir(parents=True, exist_ok=True)
    sweep = {"name": folder.name, "created": "now", "launches": launched, "jobs": entries}
    (folder / "sweep.json").write_text(json.dumps(sweep))
