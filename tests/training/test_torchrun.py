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


def test_where_a_process_is_killed_the_other_ends_and_the_printed_command_continues(train, monkeypatch, tmp_path):
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
    os.kill(other, signal.SIGKILL)
    killed = time.monotonic()
    said, _ = run.communicate(timeout=60)
    assert time.monotonic() - killed < 50  # torchrun itself waits for up to 30 seconds
    # torchrun also sends SIGTERM, which may come first.
    assert len(re.findall("aavae-train: (a process that trains with this one has ended|interrupted)", said)) == 1, said
    assert "aavae" not in "".join(line for line in said.splitlines() if line.startswith("  File")), said
    found = json.loads(status.read_text())
    assert (found["state"], found["reason"].split()[-1]) in {("failed", "above"), ("interrupted", "SIGTERM")}
    assert found["command"].startswith("torchrun --nproc-per-node=2 -m aavae.train trainer=debug")
    step = checkpoint.load(Path("run/last.pt"))["step"]
    one = (*WORDS, "epochs=500", "trainer.validate_every=0", f"trainer.max_steps={step + 2}")
    ended = train(*one)
    assert ended.code == 0 and f"from step {step}" in ended.out, ended.err
