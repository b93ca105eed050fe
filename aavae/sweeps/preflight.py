"""Before the first job of a sweep: every job composed and built on the meta device, and what the sweep will take.

It runs in a process of its own, so that the one that launches jobs holds no images and no GPU.
"""

import json
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from aavae import build
from aavae.errors import UserError
from aavae.runs import status
from aavae.runs.config import read_config
from aavae.runs.identity import identity
from aavae.runs.sweep import is_outdated
from aavae.runtime import threads
from aavae.runtime.signals import blocked

TIMED = 5e10  # FLOP of a timed step, on a CPU
SMALL_FILES = 2 * 2**20  # bytes of a run's pictures, metrics and logs, about


@dataclass(frozen=True)
class JobPlan:
    """What one job will be, or the `error` for which it cannot be."""

    overrides: list[str]
    config: dict = field(default_factory=dict)
    identity: str = ""
    steps: int = 0
    flops: float = 0.0  # of the whole training
    disk: int = 0  # bytes
    device: str = "cpu"
    has_latent: bool = True  # or latent_dim decides nothing
    fixed_length: str = ""  # why a run towards other epochs is not continued
    error: str | None = None


def preflight(
    jobs: list[list[str]], config_dir: str | None, primary: str, folder: Path | None = None, afresh: str | None = None
) -> tuple[list[JobPlan], float, int]:
    """A plan for the overrides of every job, the speed of this machine in FLOP/s of training (0: nobody knows), and its
    number of GPUs; all found in a process that ends with it. Raises UserError if that process dies.

    `folder` is where jobs may have begun: those go on without what they once started from, unless they began before
    `afresh`.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    apart = context.Process(target=_answer, args=(theirs, jobs, config_dir, primary, folder, afresh), daemon=True)
    with blocked():  # it is this one's to end
        apart.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        apart.join()
        code = apart.exitcode or 0
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        raise UserError(f"the process that checked the jobs has died ({how}), as when memory runs out") from error
    finally:
        apart.kill()
        apart.join()


def _answer(pipe, *asked) -> None:
    pipe.send(_examine(*asked))


def _examine(
    jobs: list[list[str]], config_dir: str | None, primary: str, folder: Path | None = None, afresh: str | None = None
) -> tuple[list[JobPlan], float, int]:
    threads.settle()
    import torch

    from aavae.loggers.screen import Reporter

    data, possible = _once(_dataset), _once(_possible)
    facts = _Facts(data, _once(_network), _once(_flops), _once(_start), folder, afresh)
    with build.unchanged():
        plans = [
            _plan(job, config_dir, primary, possible, facts)
            for job in Reporter().track(jobs, len(jobs), "checking jobs")
        ]
    if any(plan.error for plan in plans) or not plans:
        return plans, 0.0, 0
    cfg = build.compose(plans[0].overrides, config_dir, primary)
    # The same images, where they already are on the device.
    speed = _speed(cfg, plans[0], data(plans[0].config["dataset"], cfg) if plans[0].device == "cpu" else None)
    return plans, speed, torch.cuda.device_count()


def _once(make: Callable) -> Callable:
    """`make`, asked once for every different plain config it is given first."""
    made: dict[str, object] = {}

    def known(node: dict, *arguments):
        key = json.dumps(node, sort_keys=True, default=str)
        if key not in made:
            made[key] = make(node, *arguments)
        return made[key]

    return known


def _dataset(node: dict, cfg) -> object:
    from aavae.training.dry_run import STAND_IN

    data = build.dataset(cfg).load("cpu", rehearse=cfg.dry_run)
    if data.rehearsed:
        print(f"images      {STAND_IN.format(data.name)}", flush=True)
    return data


def _plan(job: list[str], config_dir: str | None, primary: str, possible: Callable, facts: "_Facts") -> JobPlan:
    try:
        cfg = build.compose(job, config_dir, primary)
        config = build.plain(cfg)
        asked = build.asked(job)
        # What a trainer refuses does not depend on which seed it is.
        decides = config | {"seed": min(config["seed"], 0), "asked": None if asked is None else sorted(asked)}
        plan = replace(possible(decides, cfg, asked, facts), overrides=job, config=config, identity=identity(config))
        place = facts.folder and facts.folder / plan.identity
        if place and build.continues(cfg, place) and not is_outdated(place, facts.afresh):
            if plan.fixed_length and cfg.resume == "auto" and (before := _epochs_of(place)) not in (None, cfg.epochs):
                raise UserError(f"{place.name} was trained towards epochs={before}{plan.fixed_length}")
        else:
            facts.start({key: config[key] for key in ("encoder", "dataset")}, cfg, facts)
        return plan
    except UserError as error:
        return JobPlan(job, error=str(error))
    except Exception as error:  # raised by a class of the user's, say
        return JobPlan(job, error=f"{type(error).__name__}: {error}")


def _epochs_of(folder: Path) -> int | None:
    """The epochs towards which a run with a checkpoint has made steps; None if it made none, or nobody can tell."""
    with suppress(UserError):  # damaged: the checkpoint is there all the same
        if (status.read(folder) or {}).get("step") == 0:
            return None
    with suppress(
        UserError, OSError, KeyError, AttributeError, TypeError, ValueError
    ):  # its process says what is wrong
        return read_config(folder)["epochs"]
    return None


@dataclass(frozen=True)
class _Facts:
    """What several jobs share, each found once for the plain config it depends on."""

    data: Callable
    network: Callable
    flops: Callable
    start: Callable
    folder: Path | None
    afresh: str | None


def _possible(_: dict, cfg, asked: frozenset[str] | None, facts: _Facts) -> JobPlan:
    """What a job will take. Raises UserError where it cannot be."""
    from aavae.runtime.device import pick_device
    from aavae.training.resume import fixed_length

    build.loggers(cfg)  # a package that is missing
    config = build.plain(cfg)
    data = facts.data(config["dataset"], cfg)
    described = build.architecture(cfg, data) | {"size": data.image_size}
    trainer = build.trainer(cfg, data=data, net=facts.network(described, cfg, data), meta=True, asked=asked)
    described |= {"clean_pass": trainer.settings.clean_pass == "every_step", "batch_size": trainer.loader.batch_size}
    return JobPlan(
        [],
        steps=trainer.total_steps,
        flops=facts.flops(described, trainer) * trainer.total_steps * trainer.loader.batch_size,
        disk=_disk(trainer),
        device=str(pick_device(cfg.device)),
        has_latent=build.has_latent(cfg),
        fixed_length=fixed_length(trainer),
    )


def _network(_: dict, cfg, data) -> object:
    import torch

    with torch.device("meta"):
        return build.model(cfg, data)


def _start(_: dict, cfg, facts: _Facts) -> None:
    """Raise UserError where the weights that the encoder is to start from cannot be had, or do not fit."""
    data = facts.data(build.plain(cfg)["dataset"], cfg)
    if begins := build.start(cfg, data):
        begins(facts.network(build.architecture(cfg, data) | {"size": data.image_size}, cfg, data).encoder)


def _flops(described: dict, trainer) -> float:
    """FLOP of training on one image; 0 where it cannot be counted."""
    from aavae.training.flops import training_flop

    how = described["size"], described["clean_pass"], described["batch_size"]
    return training_flop(trainer.model, *how) or 0.0


def _disk(trainer) -> int:
    """Bytes of a run folder: last.pt, previous.pt and the kept epochs, with two numbers a weight for the optimizer."""
    weights = sum(t.numel() * t.element_size() for t in trainer.model.state_dict().values())
    encoder = sum(t.numel() * t.element_size() for t in trainer.model.encoder.state_dict().values())
    settings = trainer.settings
    kept = sum(epoch <= settings.epochs for epoch in settings.checkpoint_epochs)
    return 3 * weights * (2 + kept) + encoder + SMALL_FILES


def _speed(cfg, plan: JobPlan, data=None) -> float:
    from aavae.training.dry_run import estimate

    try:
        trainer = build.trainer(cfg, data=data, asked=(), fresh=False)
        images = trainer.total_steps * trainer.loader.batch_size
        # Few images of a large network, which is slow; many of a small one, whose steps are mostly overhead.
        most = max(16, int(TIMED * images / max(plan.flops, 1)))
        seconds = estimate(trainer, most=most)["seconds"]
    except (UserError, RuntimeError):  # out of memory here is no reason not to try
        return 0.0
    return plan.flops / seconds if seconds else 0.0
