"""Entry: config → objects → `Trainer.fit` → probes → the score a sweep optimises (`aavae-train`)."""

import contextlib
import hashlib
import itertools
import os
import shlex
import shutil
import signal
import sys
import traceback
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from aavae import build
from aavae.errors import UserError
from aavae.identity import identity


def main() -> None:
    """The command `aavae-train`. Exit codes: 0 done, 1 a job failed, 2 bad input, 128 + n stopped by signal n."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = _main(sys.argv[1:])
    except UserError as error:
        print(f"aavae-train: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as error:
        if not getattr(error, "said", False):
            print("aavae-train: interrupted", file=sys.stderr)
        code = 128 + getattr(error, "signum", signal.SIGINT)
    sys.exit(code)


def _terminated(signum, frame):
    from aavae.runtime import Interrupted

    raise Interrupted(signum)


def _main(argv: list[str]) -> int:
    if "--version" in argv:
        print(f"aavae {version('aavae')}")
        return 0
    arguments = get_args_parser().parse_args(argv)
    overrides = arguments.overrides
    if arguments.config_name or arguments.config_path:
        raise UserError("there is one primary config; add your own with --config-dir and choose among them")
    _register_resolvers(overrides)
    if arguments.multirun:
        jobs = [(job, build.compose(job, arguments.config_dir)) for job in _jobs(overrides)]
        if any(cfg.dry_run for _, cfg in jobs):
            _dry_run(jobs)
            return 0
        _make(build.folder(jobs[0][0] if jobs else [], "hydra.sweep.dir"))
        return _launch(_Task())
    if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
        return _launch(_Task())
    cfg = build.compose(overrides, arguments.config_dir)
    if arguments.cfg:
        return _launch(_Task())
    with _processes(cfg) as processes:
        # Built before Hydra creates a folder, so that bad input leaves nothing behind.
        built = _build(cfg, processes)
        if cfg.dry_run:
            _estimate(built[0])
            return 0
        _make(build.folder(overrides, "hydra.run.dir"))
        return _launch(_Task(built))


def _make(folder: str | None) -> None:
    # Before Hydra does, which would show a traceback where it cannot.
    try:
        Path(folder or ".").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({error}); name another hydra.run.dir=") from error


def _estimate(trainer) -> float:
    from aavae.estimate import print_estimate

    return print_estimate(trainer)


def _dry_run(jobs: list[tuple[list[str], DictConfig]]) -> None:
    from aavae.console import duration

    seconds = 0.0
    for i, (overrides, cfg) in enumerate(jobs):
        print(f"job {i}: {' '.join(overrides)}", flush=True)
        seconds += _estimate(_build(cfg, None)[0])
    print(f"{len(jobs)} jobs, about {duration(seconds)} of training one after the other")


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a grid; those whose values only a sweeper knows (ranges, choices by an optimiser)
    are left out."""
    fixed, swept = [], []
    for override in OverridesParser.create().parse_overrides(overrides=overrides):
        if isinstance(override.value(), Glob):
            names = override.value().filter(build.options(override.key_or_group))
            swept.append([f"{override.get_key_element()}={name}" for name in names])
        elif override.is_discrete_sweep():
            swept.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            fixed.append(override.input_line)
    return [[*fixed, *choice] for choice in itertools.product(*swept)]


def _register_resolvers(overrides: list[str]) -> None:
    """Names of folders in the config: the identity of a run, and a hash of a sweep's overrides."""

    def sweep(*, _root_: DictConfig) -> str:
        given = sorted(o for o in overrides if not o.startswith("hydra."))
        return _root_.sweep.name or hashlib.sha256("\n".join(given).encode()).hexdigest()[:10]

    def named(*, _root_: DictConfig) -> str:
        return identity(build.plain(_root_))

    OmegaConf.register_new_resolver("aavae_sweep", sweep, replace=True)
    OmegaConf.register_new_resolver("aavae_identity", named, replace=True)


def _processes(cfg: DictConfig):
    from aavae import runtime

    return runtime.processes(runtime.pick_device(cfg.device))


def _build(cfg: DictConfig, processes) -> tuple:
    """Trainer, probes and logger: what they cannot do is said now, not after hours."""
    trainer = build.trainer(cfg, processes)
    return trainer, build.probes(cfg, trainer.dataset), build.loggers(cfg)


class _Task:
    """What Hydra runs in each job's folder; it remembers failures, which Hydra would print with its own traceback."""

    def __init__(self, built: tuple | None = None):
        self.built = built  # of a single run
        self.error: BaseException | None = None
        self.failed = 0

    def __call__(self, cfg: DictConfig) -> float | None:
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        sweeping = job.mode == RunMode.MULTIRUN
        try:
            with _processes(cfg) if sweeping else contextlib.nullcontext() as processes:
                built = self.built or _build(cfg, processes)
                from aavae.run import Run

                config = build.plain(cfg)
                return Run(
                    *built,
                    folder,
                    config=config,
                    config_yaml=build.to_yaml(config),
                    resume=str(cfg.resume),
                    command=_command(),
                    name=job.job.override_dirname or config["method"],
                    group=Path(job.sweep.dir).name if sweeping else None,
                ).go()
        except KeyboardInterrupt as error:
            self.error = error
            raise
        except Exception as error:  # a sweep goes on with its next job; a single run stops, for `main` to say why
            if not sweeping:
                self.error = error
                return None
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f"aavae-train: job {job.job.num} ({job.job.override_dirname}) failed: {error}", file=sys.stderr)
        finally:
            _remove_if_nothing_was_begun(folder)
        self.failed += 1
        return None


def _remove_if_nothing_was_begun(folder: Path) -> None:
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= {".lock"}:
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()
        with contextlib.suppress(OSError):  # not empty, or not there
            Path("outputs").rmdir()


def _launch(task: _Task) -> int:
    hydra.main(version_base="1.3", config_path="pkg://aavae.conf", config_name="config")(task)()
    if task.error:
        raise task.error
    if task.failed:
        print(f"aavae-train: {task.failed} job(s) failed", file=sys.stderr)
    return 1 if task.failed else 0


def _command() -> str:
    """The command that continues this run: the same, without the word that would start it afresh."""
    typed, name = sys.argv[0], Path(sys.argv[0]).name
    program = [name if shutil.which(name) == shutil.which(typed) else typed]
    if typed.endswith("train.py"):
        program = ["python", "-m", "aavae.train"]
    if "LOCAL_WORLD_SIZE" in os.environ:
        program = ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}", "-m", "aavae.train"]
    return shlex.join([*program, *(a for a in sys.argv[1:] if not a.lstrip("+").startswith("resume="))])


if __name__ == "__main__":
    main()
