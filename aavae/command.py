"""What the commands share: arguments, exit codes, signals, and Hydra's jobs with their failures."""

import contextlib
import functools
import io
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from aavae import __version__, build
from aavae.config.schema import NAMED
from aavae.config.sources import BASE, register
from aavae.errors import GaveUp, UserError
from aavae.runtime import caches, exits, files, secrets, signals, slurm, torchrun
from aavae.runtime.output import complain
from aavae.runtime.words import count, wrapped
from aavae.sweeps.grid import Grid
from aavae.sweeps.sweep import Multirun

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
    folder = ""  # of a single run

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
        """Do the job in its folder and return its score; `name` (of a job, or "") and `group` (a sweep) are for
        dashboards."""
        raise NotImplementedError

    def estimate(self, built: Any) -> float:
        """Say what the job would take, and return the seconds."""
        raise NotImplementedError

    def multirun(self, overrides: list[str], config_dir: str | None) -> int:
        """Do the jobs of a grid; the exit code."""
        jobs = Grid(overrides, config_dir, self.primary).jobs()
        with build.unchanged():
            for job in jobs:
                self.check(build.compose(job, config_dir, self.primary))
        first = jobs[0] if jobs else []
        folder = build.folder(first, "hydra.sweep.dir", self.primary, config_dir, self.job_name)
        self.make(Path(folder), "hydra.sweep.dir")
        return self.launch(Task(self), self.sweeping(overrides, config_dir, folder))

    # ---- What they share ------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Run the command on `sys.argv` and exit."""
        job = os.environ.pop("AAVAE_JOB", None)
        if job:
            threading.Thread(target=_end_with_parent, daemon=True).start()
        caches.settle()
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
            print(f"aavae {__version__}")
            return 0
        secrets.learn(argv)
        self.words = list(argv)
        sys.argv[1:] = secrets.hidden(self.words)  # which Weights & Biases writes down
        asked = build.arguments(argv, self.primary)
        overrides, config_dir = asked.overrides, asked.config_dir
        self.overrides = overrides
        self.register_resolvers(overrides)
        register("aavae_options", functools.partial(_options, config_dir))
        register("aavae_dials", _dials)
        if asked.shell_completion:
            return self.launch(Task(self), build.for_completion(["-sc", *overrides]))
        if asked.help or asked.hydra_help:
            with _wrapped():
                return self.launch(Task(self), ["--help" if asked.help else "--hydra-help", *self.searched(config_dir)])
        if asked.multirun and under_wandb_agent():
            raise UserError("wandb agent sweeps already, and gives each command one run; leave out -m")
        if asked.multirun and slurm.together():
            raise UserError(f"a sweep is launched once, and not by each of {slurm.tasks()} tasks; use srun --ntasks=1")
        if asked.multirun:
            return self.multirun(overrides, config_dir)
        with build.unchanged():  # the files of --config-dir are read once, not for each step below
            cfg = build.compose(overrides, config_dir, self.primary)
            secrets.learn(build.plain(cfg))
            words = [*self.searched(config_dir), *build.for_hydra(overrides, config_dir, self.primary)]
            if asked.info:
                return self.launch(Task(self), ["--info", asked.info, *words])
            if asked.cfg:
                return self.show(asked, cfg, words)
            self.folder = folder = build.folder(overrides, "hydra.run.dir", self.primary, config_dir, self.job_name)
        self.check(cfg)
        # Built before Hydra creates a folder, so that bad input leaves nothing behind.
        with self.prepare(cfg) as built:
            if cfg.get("dry_run"):
                self.estimate(built)
                return 0
            self.make(Path(folder), "hydra.run.dir")
            words.append(f"hydra.run.dir={build.quoted(folder)}")  # as it was resolved: the time does not stand still
            return self.launch(Task(self, contextlib.nullcontext(built)), words)

    def sweeping(self, overrides: list[str], config_dir: str | None, folder: Path | str) -> list[str]:
        """The words with which Hydra sweeps into `folder`."""
        lines = build.for_hydra(overrides, config_dir, self.primary)
        return ["-m", *self.searched(config_dir), *lines, f"hydra.sweep.dir={build.quoted(str(folder))}"]

    @property
    def job_name(self) -> str:
        """What Hydra calls the job: the module's own name."""
        return self.module.rpartition(".")[2]

    def searched(self, config_dir: str | None) -> list[str]:
        """The option that has Hydra look for configs in `config_dir` too."""
        return ["--config-dir", config_dir] if config_dir else []

    def show(self, asked, cfg: DictConfig, words: list[str]) -> int:
        """Print the config that was asked for with --cfg."""
        options = ["--cfg", asked.cfg, *["--resolve"] * asked.resolve]
        if asked.package:
            if asked.cfg == "job" and not OmegaConf.is_config(OmegaConf.select(cfg, asked.package)):
                raise UserError(f"there is no group of settings {asked.package!r} to show")
            options += ["--package", asked.package]
        return self.launch(Task(self), [*options, *words])

    def make(self, folder: Path, key: str) -> None:
        """Make the folder, where all is kept from then on. Raises UserError where it cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {folder} cannot be made ({error}); name another {key}=") from error
        self.kept = True

    def launch_sweep(self, sweep: Multirun, overrides: list[str], config_dir: str | None, folder: Path) -> int:
        """Hand `sweep` to Hydra, whose launcher comes back to it; the exit code."""
        return self.launch(Task(self, sweep=sweep), self.sweeping(overrides, config_dir, folder))

    def launch(self, task: "Task", words: list[str]) -> int:
        """Hand `task` to Hydra, which reads `words`; the exit code.

        Raises what stopped it, which is GaveUp where a launcher or sweeper failed, as sbatch when it refuses.
        """
        typed, sys.argv[1:] = sys.argv[1:], words
        try:
            with _errors_of_helpers() if words[:1] == ["-m"] else contextlib.nullcontext():
                hydra.main(config_path="pkg://aavae.conf", config_name=self.primary, **BASE)(task)()
        finally:
            sys.argv[1:] = typed
        if task.error:
            raise task.error
        if task.failed:
            complain(f"{self.name}: {count(task.failed, 'job')} failed")
        return 1 if task.failed else 0

    def typed(self, again: bool = False) -> str:
        """The command as typed, without secrets; for typing it `again`, without the word that would start it afresh."""
        given, name = sys.argv[0], Path(sys.argv[0]).name
        program = [name if shutil.which(name) == shutil.which(given) else given]
        if given.endswith(".py"):
            program = ["python", "-m", self.module]
        if "LOCAL_WORLD_SIZE" in os.environ:
            program = ["torchrun", *torchrun.words(), "-m", self.module]
        elif slurm.joined():
            program = [*slurm.words(), *program]
        words = (a for a in self.words if not (again and a.lstrip("+").startswith("resume=")))
        return shlex.join([*program, *secrets.hidden(list(words))])


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
        sys.argv[1:] = secrets.hidden(sys.argv[1:])
        if self.sweep:  # by a launcher that is not ours
            return self.sweep.run_alone(list(job.overrides.task), job.job.num, folder, build.plain(cfg))
        try:
            with self.prepared or self.command.prepare(cfg) as built:
                name, group = "", None
                if sweeping:
                    name, group = job.job.override_dirname, Path(job.sweep.dir).name
                elif "sweep" in cfg:  # a job in a process of its own, or a run that was named
                    name, group = cfg.sweep.job or "", cfg.sweep.name
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
            complain(f"{self.command.name}: {which} failed: {error}")
        finally:
            _remove_if_nothing_was_begun(folder)
        self.failed += 1
        return None


@contextlib.contextmanager
def _wrapped():
    """Print what is printed within in the terminal's width; Hydra's help ends with an exit."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        print(wrapped(text.getvalue()), end="")


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


def _options(config_dir: str | None, group: str) -> str:
    """A group and what can be chosen from it, for the help text."""
    return f"{group + '=':<14} {' '.join(build.options(group, build.own_folders(config_dir)))}"


def _dials(primary: str) -> str:
    """The dials with their comments, for the help text: what stands between the defaults and Hydra's own settings."""
    text = (resources.files("aavae.conf") / f"{primary}.yaml").read_text(encoding="utf-8")
    return text.split("\n\n")[1].replace("$", "$$")  # Hydra's help is a string.Template


def chosen(config: dict) -> dict[str, str | list[str]]:
    """The options that the job which Hydra runs now has chosen of each group: of `probe` and `logger` all of them, and
    none of a part that its model, by the plain `config`, does not take."""
    found = {str(g): str(option) for g, option in HydraConfig.get().runtime.choices.items() if option is not None}
    found = {group: option for group, option in found.items() if not group.startswith("hydra/")}
    unused = {group: "none" for group in found if config.get(group) == {"_target_": None}}
    return found | unused | {group: list(config[group]) for group in NAMED}


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
