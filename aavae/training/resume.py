"""What of a trainer goes into a checkpoint, and back: everything that cannot be derived from (seed, step)."""

import torch

from aavae.errors import Damaged, UserError, first_line
from aavae.runtime.words import count
from aavae.weights import checkpoint, schema
from aavae.weights.optimizer_state import restore as restore_optimizer


def state_of(trainer, loggers: dict) -> dict:
    """The state of a trainer, as data, with what the `loggers` remember."""
    return {
        "model": trainer.model.state_dict(),
        "start": trainer.model.start,
        "optimizer": trainer.optimizer.state_dict() | {"name": type(trainer.optimizer).__name__},
        "scaler": trainer.scaler.state_dict(),
        "learners": {guest.name: guest.probe.state() for guest in trainer.learners},
        "step": trainer.step,
        "steps_per_epoch": trainer.loader.steps_per_epoch,
        "epochs": trainer.settings.epochs,
        "closed": trainer.closed,
        "score": trainer.score,
        "dataset": trainer.dataset.name,
        "mean": list(trainer.dataset.mean),
        "std": list(trainer.dataset.std),
        "image_size": trainer.dataset.image_size,
        "loggers": loggers,
        "health": trainer.health.state(),
        "threads": torch.get_num_threads(),
    }


def fixed_length(trainer) -> str:
    """Why a run towards other `epochs` is not continued, to be said after its own; "" where it can be."""
    if not trainer.schedule.extendable:
        return (
            f" with a {trainer.schedule.shape} schedule, which would have been another with "
            f"epochs={trainer.settings.epochs}; only schedule=constant can be extended; keep epochs, or use "
            "resume=never"
        )
    if not trainer.model.extendable:
        return (
            f", on which schedules of {type(trainer.model).__name__} depend (momentum of a teacher, frozen prototypes, "
            "queue); keep epochs, or use resume=never"
        )
    return ""


def restore(trainer, state: dict, origin: str) -> None:
    """Continue from a checkpoint. Raises UserError if it does not fit, or cannot be trained to `epochs`; Damaged where
    another checkpoint of the same run may do."""
    if "optimizer" not in state:
        raise UserError(f"{origin} holds a model to evaluate; it does not hold what is needed to continue training")
    schema.check(state, {}, origin, schema.CONTINUED)
    if state["steps_per_epoch"] != trainer.loader.steps_per_epoch:
        raise UserError(
            f"{origin} was trained with {count(state['steps_per_epoch'], 'step')} per epoch, this run has "
            f"{trainer.loader.steps_per_epoch}: keep dataset and batch_size, or use resume=never"
        )
    if state["step"] > trainer.total_steps:
        raise UserError(
            f"{origin} stands at step {state['step']:,} already, past the {trainer.total_steps:,} of this run; "
            "ask for more epochs (or trainer.max_steps), or use resume=never"
        )
    if state["step"] and state["epochs"] != trainer.settings.epochs and (why := fixed_length(trainer)):
        raise UserError(f"{origin} was trained towards epochs={state['epochs']}{why}")
    checkpoint.fit_state(trainer.model, state["model"], origin)
    trainer.model.start = state.get("start")
    try:
        _restore_optimizer(trainer.optimizer, state["optimizer"], origin)
        if trainer.scaler.is_enabled() and state["scaler"]:
            trainer.scaler.load_state_dict(state["scaler"])
        for guest in trainer.learners:  # one that was not there before begins now, and says of how many steps
            if guest.name in state.get("learners", {}):
                guest.probe.restore(state["learners"][guest.name], trainer.device)
    except Damaged as error:
        raise Damaged(origin, error.reason) from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise Damaged(origin, f"is malformed: its optimizer or scaler cannot be restored ({what})") from error
    trainer.health.restore(state.get("health"))
    trainer.step, trainer.closed, trainer.score = state["step"], state["closed"], state["score"]


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict, origin: str) -> None:
    sizes = [[len(g["params"]) for g in groups] for groups in (saved["param_groups"], optimizer.param_groups)]
    if saved["name"] != type(optimizer).__name__ or sizes[0] != sizes[1]:
        raise UserError(
            f"{origin} holds the state of {saved['name']} over {sizes[0]} parameters, which does not fit "
            f"{type(optimizer).__name__} over {sizes[1]}; keep the optimizer, or use resume=never"
        )
    restore_optimizer(optimizer, saved)
