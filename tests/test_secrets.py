"""Secrets planted in the environment and in overrides are nowhere afterwards: in no file, and in nothing printed."""

import os
import sys
from pathlib import Path

import pytest

from aavae.runs.identity import identity
from aavae.runtime import secrets

MINE = """
from aavae.datasets.synthetic import Synthetic

class Mine(Synthetic):
    def __init__(self, token=None, password=None, url=None, where=None, breaks=False):
        super().__init__()
        assert token != "***"
        if breaks:
            raise RuntimeError(f"{url} does not know {token}, nor {where}")
"""
YAML = "_target_: mine.Mine\ntoken: null\npassword: null\nurl: null\nwhere: null\nbreaks: false\n"
VARIABLES = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_PlantedInTheEnvironment",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDACCESSKEY",
    "AWS_SECRET_ACCESS_KEY": "planted/Secret+Access",
    "AWS_SESSION_TOKEN": "plantedSessionToken",
    "PGPASSWORD": "plantedPostgresPassword",
    "PLAIN_VARIABLE": "plantedButUsedAsAToken",
}
TYPED = ("planted typed, with 'quotes'", "7654321098", "plantedUserOfTheUrl", "plantedInTheUrl", "plantedQuery")
SMALL = ("trainer=debug", "probe=knn", "features=[h]", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=4")
SECRET = (
    "dataset.token='planted typed, with \\'quotes\\''",
    "dataset.password=7654321098",
    "dataset.url='https://plantedUserOfTheUrl:plantedInTheUrl@host.org/x?api_key=plantedQuery&b=1'",
    "dataset.where=${oc.env:HF_TOKEN}",
)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The folder of commands, with a dataset that takes secrets, and secrets in the environment."""
    (tmp_path / "own/dataset").mkdir(parents=True)
    (tmp_path / "own/dataset/mine.yaml").write_text(YAML)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(secrets, "_known", set())
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    sys.modules.pop("mine", None)


def leaks(folder: Path, *ended) -> list[tuple[str, str]]:
    """Where which secret is found."""
    places = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    places |= {f"output {i}": (end.out + end.err).encode() for i, end in enumerate(ended)}
    wanted = [*VARIABLES.values(), *TYPED, "planted typed"]
    return [(place, secret) for place, data in places.items() for secret in wanted if secret.encode() in data]


OWN = ("--config-dir", "own", "dataset=mine")


@pytest.mark.slow
def test_a_run_keeps_no_secrets(planted, train, evaluate, runs):
    name = (*OWN, *SMALL, *SECRET, "logger=tensorboard", "hydra.run.dir=run")
    ended = train(*name)
    assert ended.code == 0, ended.err
    again = train(*name)  # it is the same run, with whichever password
    assert again.code == 0 and "is finished" in again.out
    assert train(*name, "dataset.password=another").code == 0
    judged = evaluate("run=run", "probe=knn", "features=[h]", "trust=[mine]")
    assert judged.code == 2 and "dataset.token is a secret, which a checkpoint does not hold" in judged.err
    told = evaluate("run=run", "probe=knn", "features=[h]", "trust=[mine]", "logger=wandb", *OWN, *SECRET)
    assert told.code == 0, told.err
    config = train(*OWN, *SECRET, "--cfg", "job", "--resolve")
    assert config.code == 0 and "\n  token: ***\n" in config.out
    assert (shown := runs("show", "run")).code == 0
    assert len([*(planted / "run").rglob("*.wandb")]) == 1 and [*(planted / "run").rglob("events.out*")]
    assert not leaks(planted / "run", ended, again, judged, told, config, shown)
    status = (planted / "run/status.json").read_text()
    assert "dataset.token=***" in status and "dataset.where=${oc.env:HF_TOKEN}" in status


@pytest.mark.slow
def test_a_sweep_keeps_no_secrets(planted, train, quick_jobs):
    plain = "dataset.token=${oc.env:PLAIN_VARIABLE}"
    line = ("-m", *OWN, *SMALL, "sweep.name=some", "latent_dim=3,4", "logger=wandb")
    ended = train(*line, *SECRET)
    assert ended.code == 0, ended.err
    folder = planted / "multirun/some"
    assert (folder / "multirun.yaml").exists() and len([*folder.glob("*/last.pt")]) == 2
    resumed = train("sweep.resume=multirun/some")
    assert resumed.code == 2 and "was launched with a secret, which is kept nowhere (dataset.token=***)" in resumed.err
    other = train("-m", *OWN, *SMALL, "sweep.name=other", "latent_dim=3", plain)
    assert other.code == 0, other.err
    resumed = train("sweep.resume=multirun/other")
    assert resumed.code == 0 and "1 of them done" in resumed.out
    failed = train(*line[:-1], *SECRET, "dataset.breaks=true")
    assert failed.code in (1, 2)
    assert not leaks(planted / "multirun", ended, resumed, other, failed)


def test_what_fails_says_no_secrets(planted, train, capsys):
    refused = train(*OWN, *SECRET, "dataset.api_key=plantedInTheUrl")
    assert refused.code == 2
    with pytest.raises(RuntimeError) as error:
        train(*OWN, *SMALL, *SECRET, "dataset.breaks=true")
    sys.excepthook(error.type, error.value, error.tb)
    said = capsys.readouterr().err
    assert "RuntimeError: https://***@host.org/x?api_key=***&b=1 does not know ***, nor ***" in said
    assert not [s for s in (*VARIABLES.values(), *TYPED, "planted typed") if s in said + refused.err]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aavae-train a.api_key=xyz b=1", "aavae-train a.api_key=*** b=1"),
        ("postgresql://me:pass@host/db", "postgresql://***@host/db"),
        ("logger.wandb.apikey='a b' x", "logger.wandb.apikey=*** x"),
        ("a: 1\ntoken: a b, c\npool: token\n", "a: 1\ntoken: ***\npool: token\n"),
        ("+kwargs={hf_token: abc, n: 3}", "+kwargs={hf_token: ***, n: 3}"),
        ("dataset.token=${oc.env:X} token=null", "dataset.token=${oc.env:X} token=null"),
        ("encoder.pool=token num_tokens=4 monkey=3 keyboard=1", None),
        ("mask_ratio=0.5 https://host.org/a@b", None),
    ],
)
def test_secrets_are_known_by_their_names(text, said):
    assert secrets.scrubbed(text) == (said or text)


def test_plain_data_is_hidden_where_it_is_secret():
    data = {"a": {"password": 12, "on": True}, "tokens": 4, "token": None, "secret": ["x", "y"], "key": "k"}
    said = {"a": {"password": "***", "on": True}, "tokens": 4, "token": None, "secret": ["***", "***"], "key": "k"}
    assert secrets.hidden(data) == said
    assert identity({"dataset": {"token": "a"}}) == identity({"dataset": {"token": "b"}}) != identity({"dataset": {}})
