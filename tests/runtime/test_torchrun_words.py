"""The words of torchrun that a printed command repeats, read from the command line of the parent."""

import os
import shlex
import subprocess
import sys

import pytest

from aavae.runtime import torchrun

ASK = "from aavae.runtime import torchrun; print(*torchrun.words(), sep='\\n')"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {ASK!r}], check=True)
"""
OWN = {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}
OWN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What this process reads from the command line of a parent of any name and words: torchrun itself would train."""

    def ask(*words: str, name: str = "torchrun", **environment: str) -> list[str]:
        script = tmp_path / name
        script.parent.mkdir(exist_ok=True, parents=True)
        script.write_text("print(flush=True)\ninput()")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        parent = subprocess.Popen([sys.executable, str(script), *words], **pipes)
        try:
            parent.stdout.readline()  # until it runs, its command line may be empty
            with monkeypatch.context() as patch:
                patch.setattr(os, "getppid", lambda: parent.pid)
                for key, value in (OWN | environment).items():
                    patch.setenv(key, value)
                return torchrun.words()
        finally:
            parent.communicate(b"\n")

    return ask


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--nproc-per-node=2 -m aavae.train a=1", "--nproc-per-node=2"),
        ("--nproc-per-node 2 --module aavae.train a=1", "--nproc-per-node 2"),
        ("--standalone --max-restarts=3 --nproc-per-node=2 --module aavae.train",
         "--standalone --max-restarts=3 --nproc-per-node=2"),
        ("--nnodes=1:2 --rdzv-backend=c10d --rdzv-endpoint=a:1 --log-dir 'my logs' -m aavae.train -m a=1,2",
         "--nnodes=1:2 --rdzv-backend=c10d --rdzv-endpoint=a:1 --log-dir 'my logs'"),
        ("--no-python --nproc-per-node=2 aavae-train -m a=1,2", "--nproc-per-node=2"),
        ("--nproc_per_node=2 train.py a=1", "--nproc_per_node=2"),
        ("-m --nproc-per-node=2 aavae.train --help", "--nproc-per-node=2"),
    ],
)  # fmt: skip
def test_all_of_torchrun_s_words_are_kept(asked, words, kept):
    assert shlex.join(asked(*shlex.split(words))) == kept


def test_the_words_are_those_of_the_parent(tmp_path):
    script = tmp_path / "torchrun"
    script.write_text(PARENT)
    command = [sys.executable, str(script), "--standalone", "--nproc-per-node=2", "-m", "aavae.train", "a=1"]
    ended = subprocess.run(command, env=os.environ | OWN, capture_output=True, text=True, check=True)
    assert ended.stderr == "" and ended.stdout.split() == ["--standalone", "--nproc-per-node=2"]


def test_torchrun_as_a_module_of_torch_is_known(asked):
    words = ("--standalone", "--nproc-per-node=2", "-m", "aavae.train")
    assert asked(*words, name="torch/distributed/run.py") == ["--standalone", "--nproc-per-node=2"]


def test_where_it_cannot_be_read_the_environment_says_it(asked):
    assert asked("a=1", name="other.py") == ["--nproc-per-node=2"]
    assert asked("--no-such-option", "-m", "x") == ["--nproc-per-node=2"]
    several = asked("a=1", name="other.py", GROUP_WORLD_SIZE="3", GROUP_RANK="1")
    where = ["--master-addr=127.0.0.1", "--master-port=29500"]
    assert several == ["--nproc-per-node=2", "--nnodes=3", "--node-rank=1", *where]
