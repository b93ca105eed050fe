"""What of a trainer goes into a checkpoint, and back: everything that cannot be derived from (seed, step)."""

import copy
from collections import defaultdict

import torch

from aavae import checkpoint, schema
from aavae.errors import Damaged, UserError, first_line


def state_of(trainer) -> dict:
    """The state of a trainer, as data."""
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict() | {"name": type(trainer.optimizer).__name__},
        "scaler": trainer.scaler.state_dict(),
        "learners": {guest.name: guest.probe.state() for guest in trainer.learners},
        "step": trainer.step,
        "steps_per_epoch": trainer.loader.steps_per_epoch,
        "epochs": trainer.epochs,
        "closed": trainer.closed,
        "score": trainer.score,
        "dataset": trainer.dataset.name,
        "mean": list(trainer.dataset.mean),
        "std": list(trainer.dataset.std),
        "loggers": trainer.logger.state(),
        "threads": torch.get_num_threads(),
    }


def restore(trainer, state: dict, origin: str) -> None:
    """Continue from a checkpoint. Raises UserError if it does not fit, or cannot be trained to `epochs`; Damaged where
    another checkpoint of the same run may do."""
    if "optimizer" not in state:
        raise UserError(f"{origin} holds a model to judge; what continuing its training would need is not in it")
    schema.check(state, {}, origin, schema.CONTINUED)
    if state["steps_per_epoch"] != trainer.loader.steps_per_epoch:
        raise UserError(
            f"{origin} was trained with {state['steps_per_epoch']} steps per epoch, this run has "
            f"{trainer.loader.steps_per_epoch}: keep dataset and batch_size, or use resume=never"
        )
    if state["step"] > trainer.total_steps:
        raise UserError(
            f"{origin} stands at step {state['step']:,} already, past the {trainer.total_steps:,} of this run; "
            "ask for more epochs (or trainer.max_steps), or use resume=never"
        )
    if state["step"] and state["epochs"] != trainer.epochs and not trainer.schedule.extendable:
        raise UserError(
            f"{origin} was trained towards epochs={state['epochs']} with a {trainer.schedule.shape} schedule, which "
            f"would have been another with epochs={trainer.epochs}; only schedule=constant can be extended"
        )
    checkpoint.fit_state(trainer.model, state["model"], origin)
    try:
        _restore_optimizer(trainer.optimizer, state["optimizer"], origin)
        if trainer.scaler.is_enabled() and state["scaler"]:
            trainer.scaler.load_state_dict(state["scaler"])
        for guest in trainer.learners:  # one that was not there before begins now, and says of how many steps
            if guest.name in state.get("learners", {}):
                guest.probe.restore(state["learners"][guest.name], trainer.device)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"{type(error).__name__} {first_line(error)}"
        raise Damaged(
            origin, f"is malformed: its optimizer, scaler or learners remember something else ({what})"
        ) from error
    trainer.step, trainer.closed, trainer.score = state["step"], state["closed"], state["score"]


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict, origin: str) -> None:
    # What was accumulated is restored; settings, such as weight decay, are those asked for now.
    own = optimizer.state_dict()
    sizes = [[len(group["params"]) for group in groups] for groups in (saved["param_groups"], own["param_groups"])]
    if saved["name"] != type(optimizer).__name__ or sizes[0] != sizes[1]:
        raise UserError(
            f"{origin} holds the state of {saved['name']} over {sizes[0]} parameters, which does not fit "
            f"{type(optimizer).__name__} over {sizes[1]}; keep the optimizer, or use resume=never"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    accumulates = _accumulates(optimizer)
    for i, state in saved["state"].items():
        shape = parameters[i].shape
        if {k: v.shape for k, v in state.items()} != {k: shape if of_it else () for k, of_it in accumulates.items()}:
            raise ValueError(f"of {saved['name']} for parameter {i}")
    # LAMB counts its steps in the group, which is no setting.
    groups = [before | now for before, now in zip(saved["param_groups"], own["param_groups"], strict=True)]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _accumulates(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """What the optimizer keeps of each parameter, by a step of its own on another: is it of the parameter's shape?"""
    first = optimizer.param_groups[0]["params"][0]
    other = torch.zeros(2, 3, dtype=first.dtype, device=first.device)
    other.grad = torch.zeros_like(other)
    alike = copy.copy(optimizer)
    alike.state, alike.param_groups = defaultdict(dict), [optimizer.param_groups[0] | {"params": [other]}]
    alike.step()
    return {name: value.shape == other.shape for name, value in alike.state[other].items()}
