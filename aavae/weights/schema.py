"""What must hold of the contents of a checkpoint, and of the facts of an encoder file: one rule for each key."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aavae.errors import Damaged

Rule = Callable[[Any], str | None]  # a value → what is wrong with it, None if nothing is
LARGEST = 2**53  # up to here, every integer is a float
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What a checkpoint must have for its model to be built, for it to be judged, and for its training to continue.
MODEL = ("architecture", "model", "mean", "std")
JUDGED = (*MODEL, "config", "step", "steps_per_epoch", "data")
CONTINUED = (*JUDGED, "optimizer", "scaler", "epochs", "closed", "score", "loggers")
ENCODER = ("architecture", "mean", "std")


def check(contents: dict, rules: Mapping[str, Rule], origin: object, needed: Sequence[str] = ()) -> None:
    """Raise Damaged, naming `origin`, where a key that is `needed` is missing or a value is not what its rule asks."""
    if missing := [key for key in needed if key not in contents]:
        raise Damaged(origin, f"is not complete: it has no {', '.join(missing)}")
    for key, rule in rules.items():
        if key in contents and (fault := rule(contents[key])):
            raise Damaged(origin, f"is malformed: {key} {fault}")


# ---- Rules --------------------------------------------------------------------------------------------------------


def _must(what: str, holds: Callable[[Any], bool]) -> Rule:
    return lambda value: None if holds(value) else f"must be {what}, not {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | dict):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -1e300 < value < 1e300


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _remembered(value: Any) -> bool:
    return _mapping(value) and all(map(_mapping, value.values()))


def _healthy(value: Any) -> bool:
    if not _mapping(value) or not _mapping(value.get("said")) or not isinstance(value.get("losses"), list):
        return False
    said = all(isinstance(text, str) for text in value["said"].values())
    return said and all(map(_number, value["losses"])) and type(value.get("moved")) is bool


def _described(value: Any) -> bool:
    return _mapping(value) and isinstance(value.get("_target_"), str)


def _parts(architecture: dict) -> set[str]:
    """What must be described: the encoder, and whatever else is, without which no model is an autoencoder."""
    return {"encoder", *({"decoder"} & architecture.keys() if "_target_" in architecture else {"decoder"})}


def _triple(value: Any, above: float = -math.inf) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_number(v) and v > above for v in value)


def _records(value: Any) -> bool:
    texts = ("probe", "protocol")
    return isinstance(value, list) and all(
        _mapping(r) and all(isinstance(r.get(k), str) for k in texts) and _number(r.get("value")) for r in value
    )


def _tensors(value: Any) -> str | None:
    if not _mapping(value) or not all(isinstance(t, Tensor) for t in value.values()):
        return "must be tensors by name"
    for name, tensor in value.items():
        odd = tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized
        if odd or tensor.nbytes > tensor.untyped_storage().nbytes():
            return f"has a strange tensor {name}"
        if tensor.dtype in FLOATS and not torch.isfinite(tensor).all():
            return f"has numbers in {name} that are not finite"
    return None


def _learners(value: Any) -> str | None:
    if not _remembered(value):
        return f"must be what each remembers, by name, not {_shown(value)}"
    return _tensors(dict(_leaves(value)))


def _leaves(value: dict, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, part in value.items():
        if isinstance(part, Tensor):
            yield f"{prefix}{key}", part
        elif isinstance(part, dict) and prefix.count("/") < 9:
            yield from _leaves(part, f"{prefix}{key}/")


def _optimizer(value: Any) -> str | None:
    if not _mapping(value) or not isinstance(value.get("name"), str):
        return f"must be the named state of an optimizer, not {_shown(value)}"
    groups, states = value.get("param_groups"), value.get("state")
    if not isinstance(groups, list) or not all(
        isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups
    ):
        return "must have its parameters in param_groups"
    if not isinstance(states, dict) or not all(_mapping(s) for s in states.values()):
        return "must have a state for each parameter"
    for state in states.values():
        if fault := _tensors({k: v for k, v in state.items() if isinstance(v, Tensor)}):
            return fault
    return None


def _config(value: Any) -> str | None:
    try:
        json.dumps(value)  # which walks through all of it
    except (TypeError, ValueError, RecursionError):
        return "must be plain settings"
    fault = _node(value, "", CONFIG, ("method", "seed", "dataset"))
    if fault or "trainer" not in value:  # the released code has none
        return fault
    return _node(value["trainer"], "trainer.", TRAINER, tuple(TRAINER))


def _node(value: Any, prefix: str, rules: Mapping[str, Rule], needed: Sequence[str]) -> str | None:
    if not isinstance(value, dict):
        return f"{prefix} must be settings, not {_shown(value)}".strip()
    if missing := [name for name in needed if name not in value]:
        return f"must have {prefix}{missing[0]}"
    faults = ((name, rules[name](value[name])) for name in rules if name in value)
    return next((f"has {prefix}{name}, which {fault}" for name, fault in faults if fault), None)


_text = _must("a text", lambda v: isinstance(v, str))
_text_or_none = _must("a text or null", lambda v: v is None or isinstance(v, str))
_seed = _must("an integer or null", lambda v: v is None or (type(v) is int and abs(v) < 2**64))
_settings = _must("settings by name", _mapping)
_flag = _must("true or false", lambda v: type(v) is bool)
_positive = _must("a positive number", lambda v: _number(v) and v > 0)
_mean = _must("three finite numbers", _triple)
_std = _must("three positive numbers", lambda v: _triple(v, above=0))
_epochs = _must("a number of 0 or more", lambda v: _number(v) and v >= 0)
_pixels = _must("a positive integer or null", lambda v: v is None or (_count(v) and v > 0))

CONFIG: dict[str, Rule] = {"method": _text, "seed": _seed, "dataset": _settings, "augmentation": _settings}
CONFIG |= {"precision": _text, "probe": _settings}
TRAINER: dict[str, Rule] = {"clean_pass": _text, "channels_last": _flag, "recalibration_images": _pixels}
CHECKPOINT: dict[str, Rule] = {
    "architecture": _must(
        "an encoder, and for an autoencoder a decoder, each with a _target_",
        lambda v: _mapping(v) and all(_described(v.get(part)) for part in _parts(v)),
    ),
    "image_size": _pixels,
    "model": _tensors,
    "mean": _mean,
    "std": _std,
    "step": _must("a count of steps", _count),
    "steps_per_epoch": _positive,
    "epochs": _epochs,
    "closed": _flag,
    "score": _must("a number or null", lambda v: v is None or type(v) in (int, float)),  # nan where it diverged
    "data": _text_or_none,
    "dataset": _text_or_none,
    "config": _config,
    "optimizer": _optimizer,
    "scaler": _settings,
    "threads": _must("a number of threads", lambda v: _count(v) and v > 0),
    "learners": _learners,
    "loggers": _must("what each remembers, by name", _remembered),
    "health": _must("what was said of it, the first losses, and whether they moved", _healthy),
}
FACTS: dict[str, Rule] = {
    "tensors": _tensors,
    "architecture": _must("settings with a _target_", _described),
    "mean": _mean,
    "std": _std,
    "output_dim": _pixels,
    "image_size": _pixels,
    "resize": _pixels,
    "method": _text,
    "dataset": _text_or_none,
    "data": _text_or_none,
    "epochs": _epochs,
    "seed": _seed,
    "batchnorm_statistics": _text,
    "results": _must("records of probes", _records),
}
