"""What a sweep will take, before it is begun."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from aavae import build
from aavae.config import sources
from aavae.errors import UserError
from aavae.runs.identity import identity
from aavae.sweeps import preflight
from aavae.training.flops import training_flop

DEBUG = ("trainer=debug", "probe=[]")


def plans(*jobs: tuple[str, ...]) -> list[preflight.JobPlan]:
    return preflight._examine([[*DEBUG, *job] for job in jobs], None, "config")[0]


# ---- FLOP ---------------------------------------------------------------------------------------------------------


def on_meta(*overrides: str):
    """Model, loss and image size of a config, as `_flops` wants them, without any images."""
    import torch

    cfg = build.compose(overrides)
    data = build.dataset(cfg)
    with torch.device("meta"):
        model = build.model(cfg, data)
    return SimpleNamespace(model=model), data.image_size


def counted(trainer, size: int) -> float:
    """FLOP of forward and backward on one image, from the shapes of what convolutions and linear layers give."""
    import torch
    from torch import nn

    macs = []

    def count(layer, given, gives) -> None:
        per_output = layer.weight[0].numel()
        macs.append(gives.numel() * per_output * (2 if given[0].shape[1] == 3 and gives.dim() == 4 else 3))

    hooks = [m.register_forward_hook(count) for m in trainer.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.device("meta"):
        trainer.model(torch.empty(2, 3, size, size), torch.empty(2, trainer.model.latent_dim))
    for hook in hooks:
        hook.remove()
    return 2 * sum(macs) / 2  # 2 FLOP a multiplication with its addition, 2 images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "gflop"),
    [  # spec: 5.417 and 12.196 GMAC, before the skip convolutions moved below the upsampling: 15 % of the decoder's
        (["dataset=cifar10"], 10.83 - 2 * 3 * 0.15 * 0.50325),
        (["dataset=stl10"], 24.39 - 2 * 3 * 0.15 * 1.12296),
        (["dataset=cifar10", "encoder=resnet18", "decoder=resnet18"], None),
        (["dataset=cifar10", "method=ae"], None),
        (["dataset=cifar10", "encoder=timm", "encoder.name=resnet10t"], None),
    ],
    ids=["cifar10", "stl10", "resnet18", "ae", "timm"],
)
def test_flops_are_those_of_convolutions_and_linear_layers(overrides, gflop):
    trainer, size = on_meta(*overrides)
    found = training_flop(trainer.model, size, clean_pass=False, batch_size=2)
    assert found == pytest.approx(counted(trainer, size), rel=0.01)
    if gflop:
        assert found == pytest.approx(gflop * 1e9, rel=0.02)


def test_flops_of_an_encoder_that_attends_are_counted_too():
    vit = ["encoder=timm", "encoder.name=vit_tiny_patch16_224", "+encoder.kwargs.patch_size=4"]
    trainer, size = on_meta("dataset=cifar10", *vit, "+encoder.kwargs.img_size=32")
    # Attention is no layer: there is more than the layers' share, which here is most of it.
    layers = counted(trainer, size)
    assert layers < training_flop(trainer.model, size, clean_pass=False, batch_size=2) < 1.3 * layers


# ---- Plans --------------------------------------------------------------------------------------------------------


def test_a_plan_has_the_steps_of_training():
    few, many, short = plans(("epochs=1",), ("epochs=3", "batch_size=16"), ("epochs=3", "trainer.max_steps=5"))
    assert (few.steps, many.steps, short.steps) == (8, 48, 5)
    assert many.flops == pytest.approx(3 * few.flops) and short.flops == pytest.approx(5 / 8 * few.flops)
    assert few.device == "cpu" and few.config["epochs"] == 1 and few.identity == short.identity != many.identity


@pytest.mark.parametrize("method", build.options("method"))
def test_a_job_of_any_method_is_possible(monkeypatch, method):
    monkeypatch.setattr(preflight, "_speed", lambda *_: 1.0)
    needs = ("encoder=patches_tiny", "model.offsets=[1,2]") if method == "cpc" else ()
    (plan,) = plans((f"method={method}", *needs))
    assert plan.error is None and plan.flops > 0 and plan.steps == 16


@pytest.mark.slow
def test_the_disk_that_is_asked_for_is_what_a_run_takes(train):
    assert train(*DEBUG, "epochs=2", "trainer.checkpoint_epochs=[1,2,9]", "hydra.run.dir=run").code == 0
    (plan,) = plans(("epochs=2", "trainer.checkpoint_epochs=[1,2,9]"))
    inodes = {p.stat().st_ino: p.stat().st_size for p in Path("run").iterdir()}
    assert sum(inodes.values()) / 1.3 < plan.disk < 2 * sum(inodes.values())


def test_images_are_read_once_for_all_jobs(monkeypatch):
    from aavae.datasets.synthetic import Synthetic

    read, sizes = Synthetic.read, []
    monkeypatch.setattr(Synthetic, "read", lambda self, device: sizes.append(self.image_size) or read(self, device))
    monkeypatch.setattr(preflight, "_speed", lambda *_: 1.0)
    jobs = [(f"dataset.image_size={size}", f"seed={seed}") for size in (16, 24) for seed in range(3)]
    assert not any(plan.error for plan in plans(*jobs))
    assert sorted(sizes) == [16, 24]


def test_what_is_impossible_is_said_of_each_job_and_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(preflight, "_speed", lambda *_: pytest.fail("timed"))
    jobs = [[*DEBUG, f"batch_size={b}"] for b in (32, 9999, 0)]
    found, speed, gpus = preflight._examine(jobs, None, "config")
    assert (
        found[0].error is None and "larger than the training set" in found[1].error and "batch_size" in found[2].error
    )
    assert [plan.overrides for plan in found] == jobs and (speed, gpus) == (0.0, 0)


def test_somebody_else_s_exception_is_an_impossible_job_too(tmp_path, monkeypatch):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "mine.yaml").write_text(
        "mine:\n  _target_: mine_of_preflight.Mine\n  features: ${features}\n"
    )
    (tmp_path / "mine_of_preflight.py").write_text(
        "class Mine:\n    def __init__(self):\n        raise KeyError('x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (bad, good), _, _ = preflight._examine(
        [["trainer=debug", "probe=mine"], ["trainer=debug", "probe=[]"]], str(tmp_path), "config"
    )
    assert "KeyError" in bad.error and good.error is None


MIXED = [
    [*DEBUG, *changes, f"seed={seed}"]
    for changes in (
        (),
        ("method=vae", "loss.beta=0.1"),
        ("method=ae", "loss.reduction=sum", "latent_dim=4"),
        ("epochs=3", "batch_size=16", "trainer.checkpoint_epochs=[1,2]"),
        ("batch_size=9999",),
        ("++optimizer.kwargs.amsgrad=true", "optimizer.lr=1e-3"),
        ("+optimizer.kwargs={betas:[0.5,0.9]}", "trainer.clip=1"),
        ("optimizer=sgd", "optimizer.lr=-1"),
        ("encoder.channels=8", "decoder.channels=16", "loss.log_scale=-1"),
        ("dataset.image_size=24", "probe=[knn]", "probe.knn.k=3", "probe.knn.features=[h,mu]"),
        ("data_dir=${method}", "precision=fp32"),
    )
    for seed in (0, 1)
] + [[*DEBUG, "seed=-1"], [*DEBUG, "seed=-2"], [*DEBUG, "epoch=3"]]


def slowly(job: list[str]) -> preflight.JobPlan:
    """The plan of a job alone: its config composed by Hydra itself, a network and a trainer of its own."""
    import hydra

    try:
        lines = build.for_hydra(job)
        build.compose(job)
        with hydra.initialize_config_module("aavae.conf", **sources.BASE):
            cfg = hydra.compose("config", lines)
        trainer = build.trainer(cfg, meta=True, asked=build.asked(job))
    except UserError as error:
        return preflight.JobPlan(job, error=str(error))
    config = build.plain(cfg)
    flops = preflight._flops(
        {"size": trainer.dataset.image_size, "clean_pass": True, "batch_size": trainer.loader.batch_size}, trainer
    )
    flops *= trainer.total_steps * trainer.loader.batch_size
    return preflight.JobPlan(job, config, identity(config), trainer.total_steps, flops, preflight._disk(trainer), "cpu")


@pytest.mark.slow
def test_many_jobs_are_planned_together_as_each_alone(monkeypatch, tmp_path):
    built = []
    model = build.model
    monkeypatch.setattr(build, "model", lambda *given: built.append(given) or model(*given))
    together, _, _ = preflight._examine(MIXED, None, "config")
    assert len(built) < len(MIXED) / 2
    alone = [slowly(job) for job in MIXED]
    assert together == alone
    assert [*map(str, together)] == [*map(str, alone)]  # 1 is not 1.0, nor true
    assert len({plan.identity for plan in together}) > len(MIXED) / 2


def test_files_of_the_user_s_are_read_once_and_read_again_later(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\nepochs: 3\n")
    jobs = [[*DEBUG, "experiment=mine", f"seed={seed}"] for seed in range(4)]
    reads, read = [], sources.own_files
    monkeypatch.setattr(sources, "own_files", lambda *given: reads.append(given) or read(*given))
    monkeypatch.setattr(preflight, "_speed", lambda *_: 1.0)
    assert [p.config["epochs"] for p in preflight._examine(jobs, str(tmp_path), "config")[0]] == [3] * 4
    assert len(reads) <= 2  # for the jobs, and for what is timed
    mine.write_text("# @package _global_\nepochs: 4\n")
    assert build.compose(jobs[0], str(tmp_path)).epochs == 4


def test_the_speed_is_that_of_the_estimate():
    found, speed, _ = preflight._examine([[*DEBUG, "epochs=1"], [*DEBUG, "epochs=2"]], None, "config")
    assert speed > 0
    assert found[1].flops / speed == pytest.approx(2 * found[0].flops / speed)
    assert 1e-3 < found[0].flops / speed < 600  # seconds for eight steps of a tiny network


def test_the_speed_is_measured_with_whole_virtual_batches():
    words = ("dataset=synthetic", "encoder=resnet_tiny", "decoder=shuffle", "latent_dim=4", "batch_size=35")
    cfg = build.compose([*words, "trainer.virtual_batch=5", "trainer.clean_pass=off", "dataset.size=80"])
    assert preflight._speed(cfg, preflight.JobPlan([], flops=1e30)) > 0  # 16 images would leave one alone


def test_a_speed_that_cannot_be_measured_is_nobody_s(monkeypatch):
    def out_of_memory(cfg, **_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(build, "trainer", out_of_memory)
    assert preflight._speed(build.compose(DEBUG), preflight.JobPlan([])) == 0.0


# ---- The process it runs in ---------------------------------------------------------------------------------------


def dies(pipe, *_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def takes_long(pipe, *_) -> None:
    Path(os.environ["LONG"]).write_text(str(os.getpid()))
    time.sleep(600)


def test_a_check_that_dies_gets_one_sentence(monkeypatch):
    monkeypatch.setattr(preflight, "_answer", dies)
    with pytest.raises(UserError, match="signal 9"):
        preflight.preflight([], None, "config")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_check_at_once_and_leaves_no_process(monkeypatch, tmp_path, signum):
    monkeypatch.setattr(preflight, "_answer", takes_long)
    monkeypatch.setenv("LONG", str(tmp_path / "pid"))

    def stop() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signum)

    # As a command has it, whatever started this process has had ignored.
    before = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGINT, signal.SIGTERM)}
    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            preflight.preflight([], None, "config")
    finally:
        stopper.join()
        for s, handler in before.items():
            signal.signal(s, handler)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.slow
def test_the_process_that_launches_jobs_never_imports_torch():
    lines = (
        "import sys",
        "from aavae.sweeps.preflight import preflight",
        "plans, speed, gpus = preflight([['trainer=debug', 'probe=[]']], None, 'config')",
        "assert plans[0].steps == 16 and speed > 0, plans",
        "assert not {'torch', 'timm', 'wandb'} & set(sys.modules)",
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
