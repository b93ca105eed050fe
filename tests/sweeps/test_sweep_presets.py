"""Presets of `sweep=`: the jobs that Hydra makes of them are the ablations of the paper, on top of any experiment."""

import itertools
import json
from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import aavae.conf
from aavae import build
from aavae.runs.identity import identity, identity_config
from aavae.training import schedules

CONF = Path(aavae.conf.__file__).parent
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
SWEPT = {
    "batch_size": ("batch_size", [128, 256, 512, 1024]),
    "latent_dim": ("latent_dim", [64, 128, 256, 512]),
    "decoder": ("decoder", ["resnet18", "resnet34", "resnet50"]),
    "log_scale": ("loss.log_scale", np.sort(np.random.default_rng(0).uniform(-5, 2, 8)).round(3).tolist()),
    "learn_scale": ("loss.learn_scale", [False, True]),
    "beta": ("loss.beta", [0, 1e-3, 1e-2, 1e-1, 1, 10]),
    "method": ("method", ["ae", "vae", "aaae", "aaae_denoise", "aavae", "aavae_mean"]),
    "lengths": ("epochs", [3200]),
    "seeds": ("seed", [0, 1, 2]),
}
# What an ablation sets beside what it sweeps.
BESIDE = {
    "batch_size": {"optimizer.scale_with_batch_size": True},
    "lengths": {"trainer.checkpoint_epochs": [400, 800, 1600, 3200], "trainer.probe_every": 400},
}
IMAGES = {"cifar10": 45_000, "stl10": 95_000}


def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_module("aavae.conf", version_base="1.3"):
        return hydra.compose("config", list(overrides), return_hydra_config=True)


def jobs(*typed: str) -> list[list[str]]:
    """The overrides of each job of `aavae-train -m TYPED`, as Hydra's own sweeper makes them."""
    params = composed(*(o for o in typed if o.startswith("sweep="))).hydra.sweeper.params
    overrides = OverridesParser.create().parse_overrides([*(f"{k}={v}" for k, v in params.items()), *typed])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return batch


def flat(cfg: DictConfig) -> dict[str, object]:
    found = {}
    for key, value in build.plain(cfg).items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


def test_the_promised_presets_are_there_and_say_where_they_come_from():
    assert {p.stem for p in (CONF / "sweep").glob("*.yaml")} == {*SWEPT, "none"}
    for name in SWEPT:
        first, second = (CONF / "sweep" / f"{name}.yaml").read_text().splitlines()[:2]
        assert first == "# @package _global_" and second.startswith("# ") and ("aper" in second)


@pytest.mark.parametrize("preset", SWEPT)
def test_the_jobs_of_a_preset_have_the_values_of_the_paper_and_folders_of_their_own(preset):
    key, values = SWEPT[preset]
    swept = [override for job in jobs(f"sweep={preset}") for override in job if override.startswith(f"{key}=")]
    assert [o.value() for o in OverridesParser.create().parse_overrides(swept)] == values
    made = range(len(values)) if preset in ("decoder", "method") else sorted({0, len(values) - 1})  # enough of a number
    configs = [build.compose([f"sweep={preset}", swept[i]]) for i in made]
    if preset == "decoder":
        found = [(c.decoder.block, c.decoder.layers) for c in configs]
        assert found == [("basic", [2, 2, 2, 2]), ("basic", [3, 6, 4, 3]), ("bottleneck", [3, 6, 4, 3])]
        assert all(c.encoder == build.compose(["encoder=resnet50"]).encoder for c in configs)
    else:
        assert [OmegaConf.select(c, key) for c in configs] == [values[i] for i in made]
    assert len({identity(build.plain(c)) for c in configs}) == len(made)


@pytest.mark.parametrize("preset", SWEPT)
def test_a_preset_holds_what_it_sweeps_and_little_beside(preset):
    held = OmegaConf.load(CONF / "sweep" / f"{preset}.yaml")
    assert list(held.hydra.sweeper.params) == [SWEPT[preset][0]] and set(held.hydra) == {"sweeper"}
    own = OmegaConf.masked_copy(held, [key for key in held if key not in ("hydra", "defaults")])
    assert {f"{group}.{key}": value for group in own for key, value in own[group].items()} == BESIDE.get(preset, {})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_beside_what_it_sweeps_a_preset_leaves_an_experiment_as_it_is(experiment):
    before = flat(composed(f"experiment={experiment}"))
    for preset, own in BESIDE.items():
        # Lengths can be read off one run only where its past does not depend on its end.
        needs = {"schedule.shape": "constant"} if preset == "lengths" else {}
        assert flat(composed(f"sweep={preset}", f"experiment={experiment}")) == before | own | needs


@pytest.mark.parametrize(
    ("experiment", "expected"),
    {
        "cifar10": {128: (1.25e-4, 1755), 256: (2.5e-4, 1750), 512: (5e-4, 1740), 1024: (1e-3, 1720)},  # spec §1.6
        "stl10": {512: (5e-4, 1850), 256: (2.5e-4, 1855), 1024: (1e-3, 1840)},
    }.items(),
)
def test_learning_rate_and_warm_up_follow_the_batch_size(experiment, expected):
    typed = ["sweep=batch_size", f"experiment={experiment}", f"batch_size={','.join(map(str, expected))}"]
    found = {}
    for cfg in map(build.compose, jobs(*typed)):
        settings, factor = build._scaled(cfg, build.dataset(cfg))
        warmup, steps = cfg.schedule.warmup_epochs * factor, IMAGES[experiment] // cfg.batch_size
        schedule = schedules.schedule(cfg.schedule.shape, warmup, steps, cfg.epochs)
        found[cfg.batch_size] = (pytest.approx(settings["lr"]), schedule.warmup_steps)
    assert found == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    {
        "sweep=batch_size seed=0,1,2": {"batch_size": "128 256 512 1024", "seed": "0 1 2"},
        "sweep=batch_size batch_size=32,64 latent_dim=8": {"batch_size": "32 64", "latent_dim": "8"},
        "sweep=log_scale loss.log_scale=0.0 loss.beta=0.0,1.0": {"loss.log_scale": "0.0", "loss.beta": "0.0 1.0"},
        "sweep=beta method=vae dataset=stl10": {"loss.beta": "0 0.001 0.01 0.1 1 10", "method": "vae"},
        "sweep=method experiment=digits": {"method": "ae vae aaae aaae_denoise aavae aavae_mean"},
        "sweep=lengths experiment=digits epochs=80": {"epochs": "80"},
    }.items(),
)
def test_what_is_typed_is_combined_with_the_preset_and_wins_over_it(typed, expected):
    found = [dict(override.split("=") for override in job) for job in jobs(*typed.split())]
    grid = itertools.product(*(values.split() for values in expected.values()))
    assert sorted(tuple(job[key] for key in expected) for job in found) == sorted(grid)
    last = found[-1]
    cfg = build.compose([f"{key}={value}" for key, value in last.items()])
    assert {key: str(OmegaConf.select(cfg, key)) for key in expected} == {key: last[key] for key in expected}


def test_an_experiment_of_ones_own_cannot_bend_the_schedule_of_lengths(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# Mine.\ndefaults:\n  - override /schedule: cosine\nschedule:\n  warmup_epochs: 3\n"
    )
    cfg = build.compose(["experiment=mine", "sweep=lengths"], str(tmp_path))
    assert (cfg.schedule.shape, cfg.schedule.warmup_epochs) == ("constant", 3)


@pytest.mark.slow
def test_a_length_is_probed_on_the_way_as_a_run_of_that_length_would_be(quick_jobs, train):
    few = ("trainer=debug", "trainer.validate_every=0", "probe=knn", "features=[h]", "trainer.save_minutes=1")
    way = ("epochs=2", "trainer.probe_every=1", "trainer.checkpoint_epochs=[1]")
    assert train("-m", "hydra/launcher=basic", "sweep=lengths", "sweep.name=lengths", *few, *way).code == 0
    (run,) = (path.parent for path in Path("multirun/lengths").glob("*/metrics.jsonl"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (on_the_way,) = [line for line in lines if "probe/knn/h/test/accuracy" in line]
    assert on_the_way["epoch"] == 1 and (run / "epoch_1.pt").is_file()

    assert train(*few, "epochs=1", "hydra.run.dir=short").code == 0
    short = {r["split"]: r["value"] for r in json.loads(Path("short/results.json").read_text())}
    assert short["test"] == on_the_way["probe/knn/h/test/accuracy"]
    assert identity_of(run) == identity_of(Path("short"))


def identity_of(folder: Path) -> dict:
    return identity_config(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
