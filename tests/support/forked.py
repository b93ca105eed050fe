"""Jobs of a sweep, and processes that train together, as forks of one that has imported torch already, which takes a
process most of its time."""

import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Hashable
from multiprocessing.connection import Connection

_known: dict[Hashable, bytes] = {}  # what Hydra has put together, and what models compute; forks are handed it
SHIPPED = ("hydra.conf", "aavae.conf", "")  # sources of configs: Hydra's, ours, and what plugins register
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "aavae.train",
        "aavae.training.run",
        "aavae.training.trainer",
        "hydra.main",
        "torch._dynamo",
        "matplotlib.figure",
        "pytest",
    ]
)


def _remembered(key: Hashable, make: Callable):
    """A copy of its own of what `make` gives, which is asked once for each key."""
    if key not in _known:
        _known[key] = pickle.dumps(make())
    return pickle.loads(_known[key])


def begin_quickly(patch: Callable = setattr) -> None:
    """Compose and count as below, which takes most of the time in which a small run begins."""
    compose_quickly(patch)
    count_quickly(patch)


def compose_quickly(patch: Callable) -> None:
    """Have Hydra read each shipped file once, put together what it has put together before from memory, and not ask for
    `hydra.mode`, which is refused."""
    from hydra._internal import config_loader_impl as loading
    from hydra._internal.hydra import Hydra
    from hydra.core.plugins import Plugins

    Plugins.instance()  # which imports the sources anew
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource as Source

    load = Source.load_config
    choose, put_together = loading.create_defaults_list, loading.ConfigLoaderImpl._compose_config_from_defaults_list

    def read(self, config_path: str):
        return _remembered((self.path, config_path), lambda: load(self, config_path))

    def shipped(repo) -> bool:
        return all(source.path in SHIPPED for source in repo.get_sources())

    def chosen(repo, config_name, overrides_list, **how):
        """The choice of files, which depends on those overrides that choose files."""

        def chooses(o) -> bool:
            return not isinstance(o.value(), dict) and repo.group_exists(o.key_or_group)

        if not shipped(repo):
            return choose(repo, config_name, overrides_list, **how)
        given = [o for o in overrides_list if not o.is_sweep_override()]
        choices = [o for o in given if chooses(o)]
        key = (config_name, tuple(o.input_line for o in choices), *how.items())
        found = _remembered(key, lambda: choose(repo, config_name, choices, **how))
        found.config_overrides = [o for o in given if o not in choices]
        return found

    def together(self, defaults, repo):
        if not shipped(repo):
            return put_together(self, defaults, repo)
        key = tuple(dataclasses.astuple(default) for default in defaults)
        return _remembered(key, lambda: put_together(self, defaults, repo))

    patch(Source, "load_config", read)
    patch(loading, "create_defaults_list", chosen)
    patch(loading.ConfigLoaderImpl, "_compose_config_from_defaults_list", together)
    patch(Hydra, "get_mode", lambda *_, **__: None)


def count_quickly(patch: Callable) -> None:
    """Count what a model computes once for all runs that train the like."""
    from aavae.training import flops

    count = flops._count

    def counted(twin, *how):
        parts = [*twin.modules(), *filter(None, [getattr(twin, "loss", None)])]
        if not all(type(part).__module__.startswith(("aavae.", "torch.", "timm.")) for part in parts):
            return count(twin, *how)  # its class may be another one of that name
        key = (hashlib.sha256(pickle.dumps(twin)).digest(), *how)
        return _remembered(key, lambda: count(twin, *how))

    patch(flops, "_count", counted)


def _become(command: list[str], log: str, env: dict[str, str], folder: str, stdin: Connection, known: dict) -> None:
    from aavae.train import main

    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    for source, target in ((stdin.fileno(), 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = ["aavae-train", *command[3:]]
    _known.update(known)
    begin_quickly()
    main()


class Popen:
    """What `subprocess.Popen` is to a pool, for `python -m aavae.train …` only: all of it runs, but for exec."""

    def __init__(self, command, *, stdin, stdout, stderr, env, start_new_session):
        assert command[:3] == [sys.executable, "-m", "aavae.train"] and start_new_session and stdout is stderr
        theirs, self.stdin = _CONTEXT.Pipe(duplex=False)
        own = (command, stdout.name, env, os.getcwd(), theirs, _known)
        self.process = _CONTEXT.Process(target=_become, args=own)
        self.process.start()
        theirs.close()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        """As of subprocess: negative if a signal killed it."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """Its return code, None while it runs."""
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)


@contextlib.contextmanager
def joined(rank: int, port: int):
    """The process group of a pair on the CPU, as torchrun would describe it; within a process of `pair`."""
    import torch

    from aavae.runtime.processes import processes

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with processes(torch.device("cpu")) as both:
        yield both


def pair(target: Callable) -> list:
    """What `target(rank, port, answers)` puts into `answers` in each of two processes, in no order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = _CONTEXT.SimpleQueue()
    processes = [_CONTEXT.Process(target=target, args=(rank, port, answers)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = []
    while len(found) < len(processes) and not any(process.exitcode for process in processes):
        if answers.empty():
            time.sleep(0.01)
        else:
            found.append(answers.get())
    for process in processes:
        process.join(30)
        process.kill()  # one that waits for another that has failed
    assert len(found) == len(processes) and not any(process.exitcode for process in processes)
    return found


def backward(model, processes, views, x, noise):
    """Loss terms of a model in train mode after a backward pass on this process's rows, as a trainer makes it with
    BatchNorm synchronised."""
    import torch

    from aavae.models import batchnorm
    from aavae.training.parallel import Parallel

    mine = processes.share(len(x))
    model.processes = processes
    batchnorm.share(model, processes)
    learn = Parallel(model, model.learn, processes, torch.device("cpu"))
    with learn.part(0):
        _, terms = learn(views[:, mine], x[mine], None if noise is None else noise[mine])
        terms["loss"].backward()
    return terms
