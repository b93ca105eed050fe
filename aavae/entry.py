"""What the commands share: arguments, exit codes, signals, and Hydra's jobs with their failures."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from aavae import build, exits, files, signals, slurm
from aavae.errors import GaveUp, UserError
from aavae.multirun import Grid, Multirun

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own: raise what it would print
WORDS = 500  # characters of another program's error that are shown


class Command:
    """A command `name`, whose config is composed from `primary`; a subclass says what it does with it.

    Exit codes: 0 done, 1 a job failed, 2 bad input, 128 + n stopped by signal n.
    """

    name: str
    module: str
    primary: str
    kept = False  # whether what is printed is in files too
    overrides: Sequence[str] = ()  # as typed

    # ---- What a subclass says -------------------------------------------------------------------------------------

    def register_resolvers(self, overrides: list[str]) -> None:
        """Register what names folders in the config."""
        raise NotImplementedError

    def check(self, cfg: DictConfig) -> None:
        """Raise UserError for a config that composes but cannot be meant; asked of every job of a sweep beforehand."""

    def prepare(self, cfg: DictConfig) -> contextlib.AbstractContextManager:
        """A context that builds everything a job needs, and says now what it could not do later (UserError)."""
        raise NotImplementedError

    def work(self, built: Any, cfg: DictConfig, folder: Path, name: str, group: str | None) -> float | None:
        """Do the job in its folder and return its score; `name` and `group` (a sweep) are for dashboards."""
        raise NotImplementedError

    def estimate(self, built: Any) -> float:
        """Say what the job would take, and return the seconds."""
        raise NotImplementedError

    def multirun(self, overrides: list[str], config_dir: str | None) -> int:
        """Do the jobs of a grid; the exit code."""
        jobs = Grid(overrides, config_dir, self.primary).jobs()
        for job in jobs:
            self.check(build.compose(job, config_dir, self.primary))
        self.make_folder(jobs[0] if jobs else [], "hydra.sweep.dir")
        return self.launch(Task(self), several=True)

    # ---- What they share ------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Run the command on `sys.argv` and exit."""
        job = os.environ.pop("AAVAE_JOB", None)
        if job:
            threading.Thread(target=_end_with_parent, daemon=True).start()
        code = exits.run(self.name, lambda: self.execute(sys.argv[1:]), kept=lambda: self.kept)
        signum = code - 128
        if signum in signals.STOPS and under_wandb_agent():
            # What the agent stops early has not failed; but it counts every exit code as a failure, and gives up
            # after five.
            signals.end_by(signum)
        if not job and slurm.returns(signum):
            print(f"{self.name}: Slurm queues job {slurm.job()} again; scancel ends it", file=sys.stderr, flush=True)
            slurm.requeue()
        sys.exit(code)

    def execute(self, argv: list[str]) -> int:
        """Do what `argv`, which is `sys.argv` too, asks for; the exit code."""
        if "--version" in argv:
            print(f"aavae {version('aavae')}")
            return 0
        arguments = get_args_parser().parse_args(argv)
        overrides = arguments.overrides
        if arguments.config_name or arguments.config_path:
            raise UserError("there is one primary config; add your own with --config-dir and choose among them")
        self.overrides = overrides
        self.register_resolvers(overrides)
        OmegaConf.register_new_resolver("aavae_options", _options, replace=True)
        OmegaConf.register_new_resolver("aavae_dials", _dials, replace=True)
        if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
            return self.launch(Task(self))
        if arguments.multirun and arguments.cfg:
            raise UserError("--cfg shows the config of one job; leave out -m, and choose one value of each")
        if arguments.multirun and under_wandb_agent():
            raise UserError("wandb agent sweeps already, and gives each command one run; leave out -m")
        if arguments.multirun:
            return self.multirun(overrides, arguments.config_dir)
        cfg = build.compose(overrides, arguments.config_dir, self.primary)
        if arguments.cfg:
            return self.launch(Task(self))
        self.check(cfg)
        # Built before Hydra creates a folder, so that bad input leaves nothing behind.
        with self.prepare(cfg) as built:
            if cfg.get("dry_run"):
                self.estimate(built)
                return 0
            self.make_folder(overrides, "hydra.run.dir")
            return self.launch(Task(self, contextlib.nullcontext(built)))

    def make_folder(self, overrides: list[str], key: str) -> None:
        """Make the folder that `key` names: before Hydra does, which would show a traceback where it cannot."""
        self.make(Path(build.folder(overrides, key, self.primary) or "."), key)

    def make(self, folder: Path, key: str) -> None:
        """Make the folder, where all is kept from then on. Raises UserError where it cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {folder} cannot be made ({error}); name another {key}=") from error
        self.kept = True

    def launch(self, task: "Task", several: bool = False) -> int:
        """Hand `task` to Hydra, for `several` jobs if so; the exit code.

        Raises what stopped it, which is GaveUp where a launcher or sweeper failed, as sbatch when it refuses.
        """
        with _errors_of_helpers() if several else contextlib.nullcontext():
            hydra.main(version_base="1.3", config_path="pkg://aavae.conf", config_name=self.primary)(task)()
        if task.error:
            raise task.error
        if task.failed:
            print(f"{self.name}: {task.failed} job(s) failed", file=sys.stderr)
        return 1 if task.failed else 0

    def typed(self, again: bool = False) -> str:
        """The command as typed; for typing it `again`, without the word that would start it afresh."""
        given, name = sys.argv[0], Path(sys.argv[0]).name
        program = [name if shutil.which(name) == shutil.which(given) else given]
        if given.endswith(".py"):
            program = ["python", "-m", self.module]
        if "LOCAL_WORLD_SIZE" in os.environ:
            program = ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}", "-m", self.module]
        return shlex.join([*program, *(a for a in sys.argv[1:] if not (again and a.lstrip("+").startswith("resume=")))])


class Task:
    """What Hydra runs in each job's folder; it remembers failures, which Hydra would print with its own traceback."""

    def __init__(
        self,
        command: Command,
        prepared: contextlib.AbstractContextManager | None = None,
        sweep: Multirun | None = None,
    ):
        self.command, self.prepared = command, prepared  # what a single run was given before its folder was made
        self.sweep = sweep
        self.error: BaseException | None = None
        self.failed = 0

    def __call__(self, cfg: DictConfig) -> float | None:
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        sweeping = job.mode == RunMode.MULTIRUN
        if self.sweep:  # by a launcher that is not ours
            return self.sweep.run_alone(list(job.overrides.task), job.job.num, folder, build.plain(cfg))
        try:
            with self.prepared or self.command.prepare(cfg) as built:
                name, group = job.job.override_dirname, None
                if sweeping:
                    group = Path(job.sweep.dir).name
                elif "sweep" in cfg:  # a job in a process of its own, or a run that was named
                    name, group = cfg.sweep.job or name, cfg.sweep.name
                return self.command.work(built, cfg, folder, name, group)
        except KeyboardInterrupt as error:
            self.error = error
            raise
        except Exception as error:  # a sweep goes on with its next job; a single run stops, for `main` to say why
            if not sweeping:
                self.error = error
                return None
            if not isinstance(error, UserError):
                traceback.print_exc()
            which = f"job {job.job.num} ({job.job.override_dirname})"
            print(f"{self.command.name}: {which} failed: {error}", file=sys.stderr)
        finally:
            _remove_if_nothing_was_begun(folder)
        self.failed += 1
        return None


@contextlib.contextmanager
def _errors_of_helpers():
    """Raise GaveUp for an exception that Hydra would print with its traceback, and exit."""
    if FULL_ERROR in os.environ:
        yield
        return
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())[:WORDS]
        raise GaveUp(f"{type(error).__name__}: {words or 'no reason given'} ({FULL_ERROR}=1 shows where)") from error
    finally:
        del os.environ[FULL_ERROR]


def _options(group: str) -> str:
    """A group and what can be chosen from it, for the help text."""
    return f"{group + '=':<14}{' '.join(build.options(group))}"


def _dials(primary: str) -> str:
    """The dials with their comments, for the help text: what stands between the defaults and Hydra's own settings."""
    text = (resources.files("aavae.conf") / f"{primary}.yaml").read_text()
    return text.split("\n\n")[1].replace("$", "$$")  # Hydra's help is a string.Template


def under_wandb_agent() -> bool:
    """Whether `wandb agent` has started this process."""
    return "WANDB_SWEEP_ID" in os.environ


def _end_with_parent() -> None:
    # A job of a sweep: the other end of its input is held by the process that launched it, and closed when that dies.
    os.read(0, 1)  # not sys.stdin, whose lock would be held when Python ends
    os.kill(os.getpid(), signal.SIGTERM)


def _remove_if_nothing_was_begun(folder: Path) -> None:
    files.remove_if_empty(folder)
    if not folder.exists():
        with contextlib.suppress(OSError):  # not empty, or not there
            Path("outputs").rmdir()
