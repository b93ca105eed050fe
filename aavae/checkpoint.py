"""Checkpoints are data: written atomically, loaded without executing anything, built into models without Hydra."""

import contextlib
import importlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from aavae import files
from aavae.errors import UserError
from aavae.model import AutoEncoder

LAST, PREVIOUS = "last.pt", "previous.pt"
FORMAT = 1
ARCHITECTURES = ("aavae.encoders.", "aavae.decoders.")


# ---- Files --------------------------------------------------------------------------------------------------------


def save(path: Path, state: dict) -> None:
    """Save a checkpoint atomically; the `last.pt` before it is kept as `previous.pt`.

    Raises UserError where it cannot be written; what was there before then still is.
    """
    if path.name == LAST and path.exists():
        files.also_as(path, PREVIOUS)  # so that there is a last.pt at every moment
    with files.whole(path) as handle:
        torch.save(state | {"format": FORMAT}, handle)


def load(path: Path) -> dict:
    """Read a checkpoint to the CPU. Raises UserError if it is missing, truncated, or not one of ours."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in the zip reader, the unpickler or the storage
        raise UserError(
            f"the checkpoint {path} cannot be read: it is truncated, damaged or not a checkpoint"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version of aavae")
    return state


def find(folder: Path) -> tuple[dict | None, str | None]:
    """The newest good checkpoint of a run folder, and what to tell the user if it is not the last one written.

    Raises UserError if there are checkpoints and none can be read.
    """

    def epoch_of(path: Path) -> int:
        number = path.stem.removeprefix("epoch_")
        return int(number) if number.isdigit() else -1

    older = sorted(folder.glob("epoch_*.pt"), key=epoch_of, reverse=True)
    candidates = [p for p in (folder / LAST, folder / PREVIOUS, *older) if p.exists()]
    good: dict[str, dict] = {}
    for path in candidates:
        with contextlib.suppress(UserError):
            good[path.name] = load(path)
        if path.name in good and path.name != PREVIOUS:  # a kept epoch may be newer than previous.pt
            break
    if good:
        name = max(good, key=lambda n: good[n]["step"])
        if name == LAST:
            return good[name], None
        what = "cannot be read" if (folder / LAST).exists() else "is missing"
        return good[name], f"{LAST} {what}; continuing from {name} (step {good[name]['step']})"
    if candidates:
        raise UserError(
            f"no checkpoint in {folder} can be read ({', '.join(p.name for p in candidates)}); "
            "resume=never starts the run afresh"
        )
    return None, None


def fit_state(module: nn.Module, state: dict, what: str) -> None:
    """Load a state dict strictly. Raises UserError naming the first keys and shapes that do not fit."""
    own = module.state_dict()
    wrong = [f"missing {k}" for k in own if k not in state] + [f"unknown {k}" for k in state if k not in own]
    wrong += [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{what} does not fit this model: {'; '.join(wrong[:3])}{more}")
    module.load_state_dict(state)


# ---- Models -------------------------------------------------------------------------------------------------------


def component(node: dict, allowed: tuple[str, ...] = ARCHITECTURES, **facts) -> nn.Module:
    """Build `{"_target_": "aavae.encoders.resnet.resnet", …}` with its other entries and `facts` as arguments.

    Raises UserError for a target outside the `allowed` module prefixes: a checkpoint may not name just any function.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(f"{node!r} does not name what is to be built as _target_")
    arguments = {k: v for k, v in node.items() if k != "_target_"} | facts
    target = str(node["_target_"])
    module, _, name = target.rpartition(".")
    refusal = f"{target} is not among what a model may be built from ({'*, '.join(allowed)}*)"
    if not target.startswith(allowed) or name.startswith("_"):
        if not target.startswith((*allowed, "aavae.")):
            refusal += f"; if you trust it, say trust=[{target.split('.')[0]}]"
        raise UserError(refusal)
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "" if target.startswith("aavae.") else "; PYTHONPATH=. finds modules of the folder you are in"
        raise UserError(f"there is no {target} ({error}){hint}") from error
    if "" not in allowed and target.startswith("aavae.") and getattr(build, "__module__", None) != module:
        raise UserError(refusal)  # what such a module has imported is not its own to offer
    try:
        return build(**arguments)
    except TypeError as error:
        raise UserError(f"{target} cannot be built: {error}") from error


def trusting(modules: Sequence[str], own: tuple[str, ...] = ARCHITECTURES) -> tuple[str, ...]:
    """The prefixes of aavae's `own` modules and of what lies in `modules`: flat is not flatland."""
    return (*own, *(f"{module.removesuffix('.')}." for module in modules))


def assemble(architecture: dict, allowed: tuple[str, ...] = ARCHITECTURES) -> AutoEncoder:
    """The model that an `architecture` (plain dict: encoder, decoder, and the arguments of AutoEncoder) describes; it
    keeps the description as its `architecture`. Raises UserError for a description from which nothing can be built."""
    arguments = dict(architecture)
    if (latent_dim := arguments.get("latent_dim", 1)) < 1:
        raise UserError(f"latent_dim must be 1 or more, not {latent_dim}")
    try:
        encoder = component(arguments.pop("encoder"), allowed)
        facts = {"latent_dim": arguments["latent_dim"], "hidden_dim": encoder.output_dim}
        model = AutoEncoder(encoder, component(arguments.pop("decoder"), allowed, **facts), **arguments)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"no model can be built from this description: {type(error).__name__} {error}") from error
    model.architecture = architecture
    return model


def save_encoder(path: Path, encoder: nn.Module, facts: dict) -> None:
    """Write the encoder's tensors as safetensors, with `facts` (architecture, mean, std, …) as JSON metadata."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    # As it is, unless it would be read as something else: a fingerprint may look like a number.
    metadata = {k: v if isinstance(v, str) and _plain(v) == v else json.dumps(v) for k, v in facts.items()}
    files.write(path, safetensors.torch.save(tensors, metadata))


def model_of(state: dict, path: Path, allowed: tuple[str, ...] = ARCHITECTURES) -> AutoEncoder:
    """The model of the checkpoint `state`, read from `path`. Raises UserError if it does not describe one."""
    if missing := [k for k in ("architecture", "model", "mean", "std") if k not in state]:
        raise UserError(f"{path} is not a checkpoint of a run: it has no {', '.join(missing)}")
    if not isinstance(state["architecture"], dict):
        raise UserError(f"{path} does not describe its model")
    model = assemble(state["architecture"], allowed)
    fit_state(model, state["model"], str(path))
    return model


def encoder_of(path: Path, allowed: tuple[str, ...] = ARCHITECTURES) -> tuple[nn.Module, dict]:
    """The encoder of an `encoder.safetensors`, and the facts its metadata states. Raises UserError for another file."""
    try:
        with safetensors.safe_open(path, "pt") as handle:
            metadata = handle.metadata() or {}
        facts = {name: _plain(text) for name, text in metadata.items()}
        encoder = component(facts["architecture"], allowed)
        fit_state(encoder, safetensors.torch.load_file(path), str(path))
        facts["mean"], facts["std"] = tuple(facts["mean"]), tuple(facts["std"])
    except (safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an encoder.safetensors written by aavae ({error})") from error
    return encoder, facts


def _plain(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
