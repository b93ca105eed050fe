"""The words of torchrun that a printed command repeats, read from the command line of the parent."""

import json
import os
import shlex
import subprocess
import sys

import pytest

ASK = "import json; from aavae.runtime import torchrun; print(json.dumps(torchrun.words()))"
# A parent of any name and words, which starts the process that asks: torchrun itself would train.
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {ASK!r}], check=True)
"""
OWN = {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}
OWN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def asked(tmp_path, *words: str, name: str = "torchrun", **environment: str) -> list[str]:
    script = tmp_path / name
    script.parent.mkdir(exist_ok=True, parents=True)
    script.write_text(PARENT)
    ended = subprocess.run(
        [sys.executable, str(script), *words],
        env=os.environ | OWN | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    return json.loads(ended.stdout)


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
def test_all_of_torchrun_s_words_are_kept(tmp_path, words, kept):
    assert shlex.join(asked(tmp_path, *shlex.split(words))) == kept


def test_torchrun_as_a_module_of_torch_is_known(tmp_path):
    words = ("--standalone", "--nproc-per-node=2", "-m", "aavae.train")
    assert asked(tmp_path, *words, name="torch/distributed/run.py") == ["--standalone", "--nproc-per-node=2"]


def test_where_it_cannot_be_read_the_environment_says_it(tmp_path):
    assert asked(tmp_path, "a=1", name="other.py") == ["--nproc-per-node=2"]
    assert asked(tmp_path, "--no-such-option", "-m", "x") == ["--nproc-per-node=2"]
    several = asked(tmp_path, "a=1", name="other.py", GROUP_WORLD_SIZE="3", GROUP_RANK="1")
    where = ["--master-addr=127.0.0.1", "--master-port=29500"]
    assert several == ["--nproc-per-node=2", "--nnodes=3", "--node-rank=1", *where]
