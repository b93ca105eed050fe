"""A run as a process of its own, a fork of one that has imported torch already, in which something goes wrong."""

import contextlib
import errno
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked
import torch

from aavae.weights import checkpoint

PATIENCE = 120.0  # seconds after which a process hangs
FULL = errno.ENOSPC, os.strerror(errno.ENOSPC)
TINY = ("trainer=debug", "hydra.run.dir=run", "probe=[]", "trainer.validate_every=0", "schedule=constant",
        "latent_dim=4", "encoder.channels=4", "decoder.channels=4", "dataset.size=16", "batch_size=4", "precision=fp32",
        "trainer.log_every=2")  # fmt: skip


class Child:
    """`aavae-train WORDS` in `folder`, a session of its own; `hook`, a function, its arguments, is called before.

    What it prints is in `log`.
    """

    def __init__(self, words, folder: Path, hook: tuple = (), env: dict[str, str] | None = None):
        self.log = folder / f"log{time.monotonic_ns()}.txt"
        self.log.touch()
        env = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | (env or {})
        env.pop("WANDB_SERVICE", None)  # of a logger in this process, whose service it would share
        own = (list(words), str(folder), str(self.log), env, hook, forked._known)
        self._process = forked._CONTEXT.Process(target=_become, args=own)
        self._process.start()
        self.pid: int = self._process.pid  # type: ignore[assignment]

    @property
    def code(self) -> int | None:
        """As of subprocess: negative if a signal killed it, None while it runs."""
        return self._process.exitcode

    def send(self, signum: int, everyone: bool = False) -> None:
        """Send a signal, unless it has ended; to `everyone` in its session, too."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if everyone else os.kill)(self.pid, signum)

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it has printed."""
        self._process.join(PATIENCE)
        if self.code is None:
            self.send(signal.SIGKILL, everyone=True)
            raise AssertionError(f"it hangs: {self.log.read_text()}")
        return self.code, self.log.read_text()

    def until(self, there: Callable[[], object]) -> bool:
        """Wait until something is `there`; False if it ended before."""
        patience = time.monotonic() + PATIENCE
        while self.code is None:
            if there():
                return True
            assert time.monotonic() < patience, self.log.read_text()
            time.sleep(0.005)
        return False


def _become(words: list[str], folder: str, log: str, env: dict[str, str], hook: tuple, known: dict) -> None:
    from aavae.train import main

    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    for target in (1, 2):
        os.dup2(out, target)
    sys.stdout, sys.stderr = open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored, where it started the tests
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    sys.path[:0] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = ["aavae-train", *words]
    forked._known.update(known)
    forked.begin_quickly()
    if hook:
        hook[0](*hook[1:])
    main()


def trained(words, folder: Path, hook: tuple = (), env: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code of `aavae-train WORDS` in a process of its own, and what it prints."""
    return Child(words, folder, hook, env).ended()


def sentence(said: str) -> str:
    """The one line with which the command says why it did not end well."""
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("aavae-train: ")]
    return line


# ---- What a run leaves --------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model in its last checkpoint."""
    return checkpoint.load(folder / checkpoint.LAST)["model"]


def told(folder: Path) -> list[dict]:
    """What was logged, but for the speed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def as_if_nothing_had_happened(run: Path, whole: Path, stopped: bool = False) -> None:
    """See that a run ended as an undisturbed one: weights of the same bits, the same encoder and numbers, no debris.

    One that was `stopped` by a signal has lines in between, of the steps until then.
    """
    mine, theirs = weights(run), weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (run / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()
    lines, undisturbed = told(run), told(whole)
    if stopped:
        lines = [row for row in lines if "train/loss" not in row]
        undisturbed = [row for row in undisturbed if "train/loss" not in row]
    assert lines == undisturbed
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}


def nothing_half_written(run: Path) -> None:
    """See that every file with a name of its own is whole."""
    for path in run.glob("*.json"):
        json.loads(path.read_text())
    for path in run.glob("*.pt"):
        checkpoint.load(path)


# ---- At an operation on files -------------------------------------------------------------------------------------


class Operations:
    """The operations by which `files.whole`, `files.also_as` and `metrics.jsonl` write, counted as they come.

    At number `at` the process is killed, or the disk is full and stays so; each is written down in `notes`, if given.
    """

    def __init__(self, at: int | None, what: str, notes: str | None):
        self.at, self.what, self.notes, self.count = at, what, notes, itertools.count()
        self.full = False

    def next(self, name: str, half: Callable[[], object] = lambda: None) -> None:
        """An operation comes; `half` is what of it is done when it is the one."""
        number = next(self.count)
        if self.notes:
            with open(self.notes, "a") as notes:
                notes.write(f"{name}\n")
        if number == self.at and self.what == "kill":
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.at and self.what == "full":
            half()
            self.full = True
        if self.full:
            raise OSError(*FULL)


class _Handle:
    """A file, whose first, tenth, hundredth … write is an operation."""

    def __init__(self, file, name: str, operations: Operations):
        self._file, self._name, self._operations, self._writes = file, name, operations, 0

    def write(self, data) -> int:
        self._writes += 1
        if self._writes in (1, 10, 100, 1000) or self._operations.full:
            self._operations.next(f"write {self._writes} {self._name}", lambda: self._half(data))
        return self._file.write(data)

    def _half(self, data) -> None:
        self._file.write(memoryview(data)[: len(data) // 2])
        self._file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def at_operation(at: int | None, what: str = "kill", notes: str | None = None, patch: Callable = setattr) -> None:
    """A hook: `what`, kill or full, happens at operation number `at`."""
    from aavae.loggers import metrics_file
    from aavae.runtime import files

    operations = Operations(at, what, notes)

    def plain(name: str) -> str:
        """A temporary file's name without the process's number."""
        name = os.path.basename(name)
        return name.removeprefix(".").removesuffix(f".{os.getpid()}.tmp")

    class System:
        """The module os, some of whose functions are operations."""

        def __getattr__(self, name: str):
            return getattr(os, name)

        def link(self, source, target) -> None:
            operations.next(f"link {plain(target)}")
            os.link(source, target)

        def replace(self, source, target) -> None:
            operations.next(f"rename {plain(target)}")
            os.replace(source, target)

        def fsync(self, handle: int) -> None:
            operations.next(f"sync {plain(os.readlink(f'/proc/self/fd/{handle}'))}")
            os.fsync(handle)

    def opened(path, mode="r", *args, **named):
        if ("w" not in mode and "a" not in mode) or os.path.basename(path) == files.LOCK:
            return open(path, mode, *args, **named)
        operations.next(f"open {plain(path)}")
        return _Handle(open(path, mode, *args, **named), plain(path), operations)

    for module in (files, metrics_file):
        module.__dict__.setdefault("open", open)
        patch(module, "open", opened)
    patch(files, "os", System())
