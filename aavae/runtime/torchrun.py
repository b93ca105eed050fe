"""The command that started several processes."""

import contextlib
import io
import os
from pathlib import Path

WHAT = ("-m", "--module", "--no-python", "--no_python")  # how torchrun is told what the program is


def words() -> list[str]:
    """What stood between `torchrun` and the program in the command that started this process; where that cannot be
    read, what the environment says of it."""
    given: list[str] = []
    with contextlib.suppress(OSError):
        given = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")[:-1]
    starts = [i for i, word in enumerate(given) if _starts_several(word)]
    if starts and (found := _before_program(given[starts[0] + 1 :])) is not None:
        return found
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    nodes = [f"--nnodes={several}", f"--node-rank={os.environ['GROUP_RANK']}"] if several > 1 else []
    where = [f"--master-addr={os.environ['MASTER_ADDR']}", f"--master-port={os.environ['MASTER_PORT']}"]
    return [f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}", *nodes, *(where if nodes else [])]


def _starts_several(word: str) -> bool:
    return Path(word).name == "torchrun" or word == "torch.distributed.run" or word.endswith("torch/distributed/run.py")


def _before_program(given: list[str]) -> list[str] | None:
    """The words before the program, but for those that say what kind it is; None where torchrun would not read them."""
    from torch.distributed.run import get_args_parser

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where its usage would go
            asked = get_args_parser().parse_args(given)
    except SystemExit:
        return None
    before = given[: len(given) - 1 - len(asked.training_script_args)]
    return [word for word in before if word not in WHAT]
