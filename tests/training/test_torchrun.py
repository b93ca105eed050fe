"""Runs of two processes, started by torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import image_files
import pytest
import torch

from aavae.weights import checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
WORDS = ("trainer=debug", "precision=fp32", "probe=[]", "hydra.run.dir=run", "trainer.save_minutes=0")


def started(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "aavae.train", *WORDS, *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights() -> dict[str, torch.Tensor]:
    return checkpoint.load(Path("run/last.pt"))["model"]


@pytest.mark.parametrize("method", ["aavae", "simclr"])
def test_two_processes_with_batchnorm_synchronised_end_as_one_does(train, monkeypatch, tmp_path, method):
    monkeypatch.chdir(tmp_path)
    # A few steps, and no Adam, which makes a large step of a gradient that is 0 but for rounding.
    words = (
        f"method={method}",
        "trainer.sync_batchnorm=true",
        "optimizer=sgd",
        "optimizer.lr=0.0001",
        "trainer.max_steps=4",
    )
    run = started(*words)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0 and "2 processes" in said, said
    together = weights()
    Path("run").rename("together")
    assert train(*WORDS, *words).code == 0
    for name, alone in weights().items():
        torch.testing.assert_close(together[name], alone, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


BITS = ("method=simclr", "trainer.sync_batchnorm=true", "optimizer=sgd", "optimizer.lr=0.0001")


@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes_goes_on_as_if_it_had_been_there_before(train, monkeypatch, tmp_path, first):
    monkeypatch.chdir(tmp_path)
    for n, steps in ((first, 2), (3 - first, 4)):
        if n == 1:
            assert train(*WORDS, *BITS, f"trainer.max_steps={steps}").code == 0
        else:
            said, _ = (run := started(*BITS, f"trainer.max_steps={steps}")).communicate(timeout=300)
            assert run.returncode == 0, said
    continued = weights()
    assert train(*WORDS, *BITS, "trainer.max_steps=4", "resume=never").code == 0
    for name, alone in weights().items():
        torch.testing.assert_close(continued[name], alone, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_blocks_that_are_computed_again_have_the_gradients_of_all_processes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ends = []
    for again in ("true", "false"):
        words = (*BITS, "trainer.max_steps=3", f"trainer.grad_checkpointing={again}", "resume=never")
        said, _ = (run := started(*words)).communicate(timeout=300)
        assert run.returncode == 0, said
        ends.append(weights())
    for name, once in ends[1].items():
        torch.testing.assert_close(ends[0][name], once, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


PROBE = """
import os, time
from pathlib import Path
from aavae.probes.knn import KNN

class Slow(KNN):
    def run(self, encode, dataset):
        time.sleep(10)
        alive = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in alive]
        Path("seen.txt").write_text(" ".join(states))
        return super().run(encode, dataset)
"""


def test_the_others_wait_for_the_last_evaluation(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    Path("own_probe.py").write_text(PROBE)
    Path("own/probe").mkdir(parents=True)
    Path("own/probe/slow.yaml").write_text("slow:\n  _target_: own_probe.Slow\n  k: 5\n  temperature: 0.07\n")
    words = ["probe=slow" if word == "probe=[]" else word for word in WORDS]
    words += ["epochs=1", "features=[h]", "--config-dir", "own"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "aavae.train", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    states = Path("seen.txt").read_text().split()
    assert len(states) == 2 and "Z" not in states


def test_streamed_images_are_gone_on_with_in_the_middle_of_an_epoch(train, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [f"photos/{name}/{i}.png" for name in "ab" for i in range(24)]
    image_files.save(tmp_path, names, height=16, width=16)
    words = (
        "dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "dataset.in_memory=false",
        "dataset.workers=1", "batch_size=8", "epochs=2", "trainer.validate_every=0", "trainer.sync_batchnorm=true",
        "optimizer=sgd", "optimizer.lr=0.0001",
    )  # fmt: skip

    def trained(steps: int) -> dict[str, torch.Tensor]:
        run = started(*words, f"trainer.max_steps={steps}")
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0 and "2 processes" in said, said
        assert checkpoint.load(Path("run/last.pt"))["step"] == steps
        return weights()

    trained(3)  # of 6 an epoch
    continued = trained(8)
    Path("run").rename("continued")
    for name, whole in trained(8).items():
        assert torch.equal(continued[name], whole), name
    Path("run").rename("whole")
    assert train(*WORDS, *words, "trainer.max_steps=8").code == 0
    for name, alone in weights().items():
        torch.testing.assert_close(continued[name], alone, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_dry_run_says_what_each_process_needs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = started("dry_run=true")
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0 and not Path("run").exists(), said
    assert len(re.findall(r"memory +[\d.]+ GiB of main memory in each of 2 processes", said)) == 1, said


@pytest.mark.parametrize("which", ["leader", "other"])
def test_where_a_process_is_killed_the_other_ends_and_the_printed_command_continues(
    train, monkeypatch, tmp_path, which
):
    monkeypatch.chdir(tmp_path)
    run = started("epochs=500", "trainer.validate_every=0")
    status, saved = Path("run/status.json"), 0
    deadline = time.monotonic() + 200
    while saved < 8 and time.monotonic() < deadline:
        time.sleep(0.2)
        saved = (json.loads(status.read_text()).get("saved") or 0) if status.exists() else 0
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    leader = json.loads(status.read_text())["pid"]
    (other,) = [int(pid) for pid in children if int(pid) != leader]
    os.kill(other if which == "other" else leader, signal.SIGKILL)
    killed = time.monotonic()
    said, _ = run.communicate(timeout=60)
    assert time.monotonic() - killed < 50  # torchrun itself waits for up to 30 seconds
    # torchrun also sends SIGTERM, which may come first.
    assert len(re.findall("aavae-train: (a process that trains with this one has ended|interrupted)", said)) == 1, said
    assert "aavae" not in "".join(line for line in said.splitlines() if line.startswith("  File")), said
    found = json.loads(status.read_text())
    if which == "other":  # else nobody was there to say it; its heartbeat has stopped
        assert (found["state"], found["reason"].split()[-1]) in {("failed", "above"), ("interrupted", "SIGTERM")}
    assert found["command"].startswith("torchrun --nproc-per-node=2 -m aavae.train trainer=debug")
    step = checkpoint.load(Path("run/last.pt"))["step"]
    one = (*WORDS, "epochs=500", "trainer.validate_every=0", f"trainer.max_steps={step + 2}")
    ended = train(*one)
    assert ended.code == 0 and f"from step {step}" in ended.out, ended.err
