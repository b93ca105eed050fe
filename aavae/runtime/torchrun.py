"""The command that started several processes."""

import contextlib
import os
from pathlib import Path


def words() -> list[str]:
    """What stood between `torchrun` and the module in the command that started this process; where that cannot be read,
    what the environment says of it."""
    given: list[str] = []
    with contextlib.suppress(OSError):
        given = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    starts = [i for i, word in enumerate(given) if Path(word).name == "torchrun" or word == "torch.distributed.run"]
    if starts and "-m" in given[starts[0] + 1 :]:
        return given[starts[0] + 1 : given.index("-m", starts[0] + 1)]
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    nodes = [f"--nnodes={several}", f"--node-rank={os.environ['GROUP_RANK']}"] if several > 1 else []
    where = [f"--master-addr={os.environ['MASTER_ADDR']}", f"--master-port={os.environ['MASTER_PORT']}"]
    return [f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}", *nodes, *(where if nodes else [])]
