"""What the commands share: arguments, exit codes, signals, and Hydra's jobs with their failures."""

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import sys
import traceback
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from aavae import build
from aavae.errors import Interrupted, UserError


class Command:
    """A command `name`, whose config is composed from `primary`; a subclass says what it does with it.

    Exit codes: 0 done, 1 a job failed, 2 bad input, 128 + n stopped by signal n.
    """

    name: str
    module: str
    primary: str

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

    # ---- What they share ------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Run the command on `sys.argv` and exit."""
        signal.signal(signal.SIGTERM, _terminated)
        try:
            code = self._main(sys.argv[1:])
        except UserError as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt as error:
            if not getattr(error, "said", False):
                print(f"{self.name}: interrupted", file=sys.stderr)
            code = 128 + getattr(error, "signum", signal.SIGINT)
        sys.exit(code)

    def _main(self, argv: list[str]) -> int:
        if "--version" in argv:
            print(f"aavae {version('aavae')}")
            return 0
        arguments = get_args_parser().parse_args(argv)
        overrides = arguments.overrides
        if arguments.config_name or arguments.config_path:
            raise UserError("there is one primary config; add your own with --config-dir and choose among them")
        self.register_resolvers(overrides)
        OmegaConf.register_new_resolver("aavae_options", _options, replace=True)
        OmegaConf.register_new_resolver("aavae_dials", _dials, replace=True)
        if arguments.multirun:
            return self._multirun(overrides, arguments.config_dir)
        if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
            return self._launch(_Task(self))
        cfg = build.compose(overrides, arguments.config_dir, self.primary)
        if arguments.cfg:
            return self._launch(_Task(self))
        # Built before Hydra creates a folder, so that bad input leaves nothing behind.
        with self.prepare(cfg) as built:
            if cfg.get("dry_run"):
                self.estimate(built)
                return 0
            self._make_folder(overrides, "hydra.run.dir")
            return self._launch(_Task(self, contextlib.nullcontext(built)))

    def _multirun(self, overrides: list[str], config_dir: str | None) -> int:
        jobs = [(job, build.compose(job, config_dir, self.primary)) for job in _jobs(overrides)]
        for _, cfg in jobs:
            self.check(cfg)
        if any(cfg.get("dry_run") for _, cfg in jobs):
            self._dry_run(jobs)
            return 0
        self._make_folder(jobs[0][0] if jobs else [], "hydra.sweep.dir")
        return self._launch(_Task(self))

    def _dry_run(self, jobs: list[tuple[list[str], DictConfig]]) -> None:
        from aavae.console import duration

        seconds = 0.0
        for i, (overrides, cfg) in enumerate(jobs):
            print(f"job {i}: {' '.join(overrides)}", flush=True)
            with self.prepare(cfg) as built:
                seconds += self.estimate(built)
        print(f"{len(jobs)} jobs, about {duration(seconds)} of training one after the other")

    def _make_folder(self, overrides: list[str], key: str) -> None:
        # Before Hydra does, which would show a traceback where it cannot.
        folder = build.folder(overrides, key, self.primary) or "."
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {folder} cannot be made ({error}); name another {key}=") from error

    def _launch(self, task: "_Task") -> int:
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


class _Task:
    """What Hydra runs in each job's folder; it remembers failures, which Hydra would print with its own traceback."""

    def __init__(self, command: Command, prepared: contextlib.AbstractContextManager | None = None):
        self.command, self.prepared = command, prepared  # what a single run was given before its folder was made
        self.error: BaseException | None = None
        self.failed = 0

    def __call__(self, cfg: DictConfig) -> float | None:
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        sweeping = job.mode == RunMode.MULTIRUN
        try:
            with self.prepared or self.command.prepare(cfg) as built:
                group = Path(job.sweep.dir).name if sweeping else None
                return self.command.work(built, cfg, folder, job.job.override_dirname, group)
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


def _options(group: str) -> str:
    """A group and what can be chosen from it, for the help text."""
    return f"{group + '=':<14}{' '.join(build.options(group))}"


def _dials(primary: str) -> str:
    """The dials with their comments, for the help text: what stands between the defaults and Hydra's own settings."""
    text = (resources.files("aavae.conf") / f"{primary}.yaml").read_text()
    return text.split("\n\n")[1].replace("$", "$$")  # Hydra's help is a string.Template


def _terminated(signum, frame):
    raise Interrupted(signum)


def _remove_if_nothing_was_begun(folder: Path) -> None:
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= {".lock"}:
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()
        with contextlib.suppress(OSError):  # not empty, or not there
            Path("outputs").rmdir()


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a grid; those whose values only a sweeper knows (ranges, choices by an optimiser)
    are left out."""
    fixed, swept = [], []
    for override in OverridesParser.create().parse_overrides(overrides=overrides):
        if isinstance(override.value(), Glob):
            if override.key_or_group not in build.groups():
                raise UserError(f"glob is for groups, not for {override.key_or_group}; list its values, a,b,c")
            names = override.value().filter(build.options(override.key_or_group))
            swept.append([f"{override.get_key_element()}={name}" for name in names])
        elif override.is_discrete_sweep():
            swept.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            fixed.append(override.input_line)
    return [[*fixed, *choice] for choice in itertools.product(*swept)]
