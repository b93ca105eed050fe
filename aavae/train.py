"""Entry: config → objects → `Trainer.fit` → probes → the score a sweep optimises (`aavae-train`)."""

import contextlib
import hashlib
import itertools
import shlex
import signal
import sys
import traceback
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from aavae import build
from aavae.errors import UserError


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
    arguments = get_args_parser().parse_args(argv)
    overrides = arguments.overrides
    _register_resolvers(overrides)
    if arguments.multirun:
        jobs = [(job, build.compose(job, arguments.config_dir)) for job in _jobs(overrides)]
        if any(cfg.dry_run for _, cfg in jobs):
            _dry_run(jobs)
            return 0
        return _launch(_Task())
    if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
        return _launch(_Task())
    cfg = build.compose(overrides, arguments.config_dir)
    if arguments.cfg:
        return _launch(_Task())
    with _processes(cfg) as processes:
        # Built before Hydra creates a folder, so that bad input leaves nothing behind.
        trainer = _build(cfg, processes)
        if cfg.dry_run:
            _estimate(trainer)
            return 0
        return _launch(_Task(trainer))


def _estimate(trainer) -> float:
    from aavae.estimate import print_estimate

    return print_estimate(trainer)


def _dry_run(jobs: list[tuple[list[str], DictConfig]]) -> None:
    from aavae.console import duration

    seconds = 0.0
    for i, (overrides, cfg) in enumerate(jobs):
        print(f"job {i}: {' '.join(overrides)}", flush=True)
        seconds += _estimate(_build(cfg, None))
    print(f"{len(jobs)} jobs, about {duration(seconds)} of training one after the other")


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a grid; those whose values only a sweeper knows (ranges, choices by an optimiser)
    are left out."""
    fixed, swept = [], []
    for override in OverridesParser.create().parse_overrides(overrides=overrides):
        if override.is_discrete_sweep():
            swept.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            fixed.append(override.input_line)
    return [[*fixed, *choice] for choice in itertools.product(*swept)]


def _register_resolvers(overrides: list[str]) -> None:
    """Names of folders in the config: the identity of a run, and a hash of a sweep's overrides."""

    def sweep(*, _root_: DictConfig) -> str:
        given = sorted(o for o in overrides if not o.startswith("hydra."))
        return _root_.sweep.name or hashlib.sha256("\n".join(given).encode()).hexdigest()[:10]

    def identity(*, _root_: DictConfig) -> str:
        return build.identity(build.plain(_root_))

    OmegaConf.register_new_resolver("aavae_sweep", sweep, replace=True)
    OmegaConf.register_new_resolver("aavae_identity", identity, replace=True)


@contextlib.contextmanager
def _processes(cfg: DictConfig):
    from aavae import runtime

    with runtime.processes(runtime.pick_device(cfg.device)) as processes:
        yield processes


def _build(cfg: DictConfig, processes):
    trainer = build.trainer(cfg, processes)
    build.probes(cfg, trainer.dataset)  # what they cannot do is said now, not after hours
    build.loggers(cfg)
    return trainer


class _Task:
    """What Hydra runs in each job's folder; it remembers failures, which Hydra would print with its own traceback."""

    def __init__(self, trainer=None):
        self.trainer = trainer  # of a single run, built already
        self.error: BaseException | None = None
        self.failed = 0

    def __call__(self, cfg: DictConfig) -> float | None:
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        sweeping = job.mode is not None and job.mode.name == "MULTIRUN"
        try:
            with _processes(cfg) if sweeping else contextlib.nullcontext() as processes:
                trainer = self.trainer or _build(cfg, processes)
                from aavae.run import Run

                group = Path(job.sweep.dir).name if sweeping else None
                name = job.job.override_dirname or str(cfg.method)
                return Run(cfg, trainer, folder, _command(), name, group).go()
        except UserError as error:
            if not sweeping:
                self.error = error
                return None
            print(f"aavae-train: job {job.job.num} ({job.job.override_dirname}) failed: {error}", file=sys.stderr)
        except KeyboardInterrupt as error:
            self.error = error
            raise
        except Exception as error:  # a sweep goes on with its next job; a single run shows the traceback and stops
            if not sweeping:
                self.error = error
                return None
            traceback.print_exc()
            print(f"aavae-train: job {job.job.num} ({job.job.override_dirname}) failed: {error}", file=sys.stderr)
        finally:
            if folder.is_dir() and {p.name for p in folder.iterdir()} <= {".lock"}:  # nothing was begun
                (folder / ".lock").unlink(missing_ok=True)
                folder.rmdir()
        self.failed += 1
        return None


def _launch(task: _Task) -> int:
    hydra.main(version_base="1.3", config_path="pkg://aavae.conf", config_name="config")(task)()
    if task.error:
        raise task.error
    if task.failed:
        print(f"aavae-train: {task.failed} job(s) failed", file=sys.stderr)
    return 1 if task.failed else 0


def _command() -> str:
    """The command that continues this run: the same, without the word that would start it afresh."""
    program = ["python", "-m", "aavae.train"] if sys.argv[0].endswith("train.py") else [Path(sys.argv[0]).name]
    return shlex.join([*program, *(a for a in sys.argv[1:] if not a.startswith("resume="))])


if __name__ == "__main__":
    main()
