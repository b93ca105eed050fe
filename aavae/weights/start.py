"""What an encoder starts from where that is not random weights: the tensors of a file, or those that timm offers."""

import difflib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from aavae.errors import Damaged, UserError, first_line
from aavae.runtime.words import epochs
from aavae.weights import checkpoint, encoder_file, released, schema, unpickle

TIMM = "aavae.models.encoders.timm_model.timm_model"
HUB = "model.safetensors"  # of a folder from the Hugging Face Hub
PREFIX = "encoder."  # of an encoder's tensors in those of a whole model


class Start(NamedTuple):
    """Tensors by the names that they have in the encoder; `asked` is the setting, `origin` says what they are."""

    asked: str
    origin: str
    tensors: dict[str, Tensor]

    def __call__(self, encoder: nn.Module) -> None:
        """Give the encoder these weights; one on the meta device is only held against them.

        Raises Damaged naming the first keys, shapes and dtypes that do not fit.
        """
        if any(t.is_meta for t in encoder.state_dict().values()):
            checkpoint.refuse_misfits(encoder, self.tensors, self.asked)
        else:
            checkpoint.fit_state(encoder, self.tensors, self.asked)


def start(encoder: dict, weights: object, pretrained: object) -> Start | None:
    """What the encoder so described is to start from: the file or folder `weights`, or timm's `pretrained` weights;
    None for random ones.

    Raises UserError where they are not there, cannot be read or had, and where both are asked for.
    """
    if weights and pretrained:
        raise UserError("encoder.pretrained and encoder.weights both say what to start from; leave one out")
    if pretrained:
        return _of_timm(encoder)
    return _of_path(str(weights)) if weights else None


# ---- Files --------------------------------------------------------------------------------------------------------


def _of_path(typed: str) -> Start:
    asked, path = f"encoder.weights={typed}", Path(typed).expanduser()
    if not path.exists():
        raise UserError(f"there is no {path}, which encoder.weights names")
    if path.is_dir():
        path = _in_folder(path)
    tensors, facts = _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)
    schema.check({"tensors": tensors}, {"tensors": schema.FACTS["tensors"]}, path)
    about = "; ".join(part for part in (_about(facts), f"checksum {checkpoint.checksum(tensors)}") if part)
    return Start(asked, f"{typed} ({about})", tensors)


def _in_folder(folder: Path) -> Path:
    """The encoder file of a run or of a folder from the Hub; else the newest good checkpoint."""
    if own := next((folder / name for name in (encoder_file.ENCODER, HUB) if (folder / name).exists()), None):
        return own
    if (found := checkpoint.find(folder, schema.MODEL)) is None:
        raise UserError(f"{folder} holds no weights: no {encoder_file.ENCODER}, {checkpoint.LAST} or {HUB}")
    return found.path


def _about(facts: dict) -> str:
    if "method" not in facts:
        return ""
    said = f"{facts['method']} on {facts.get('dataset') or 'unknown images'}, {epochs(facts.get('epochs') or 0)}"
    return f"{said}, which started from {facts['start']}" if facts.get("start") else said


def _of_safetensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    try:
        with safe_open(path, "pt") as file:
            ours = "architecture" in (file.metadata() or {})
        if not ours:
            return _own(safetensors.torch.load_file(path)), {}
    except (safetensors.SafetensorError, OSError) as error:
        raise Damaged(path, f"cannot be read ({first_line(error)})") from error
    return encoder_file.read(path)


def _of_torch(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a checkpoint of ours, of Lightning's, or of a state dict, and what is known of them."""
    try:
        state = checkpoint.load(path, schema.MODEL)
    except UserError:
        content = unpickle.contents(unpickle.read(path))
        if released.written(content):
            content = {k: v for k, v in content["state_dict"].items() if not k.startswith(released.CALLBACKS)}
        if not content or not all(isinstance(v, Tensor) for v in content.values()):
            raise
        return _own(content), {}
    facts = {k: state.get(k) for k in ("dataset", "start")} | {"method": state.get("config", {}).get("method", "model")}
    if "step" in state:
        facts["epochs"] = state["step"] / state.get("steps_per_epoch", 1)
    return _own(state["model"]), facts


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part where the tensors are those of a whole model."""
    return {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)} or tensors


# ---- timm ---------------------------------------------------------------------------------------------------------


def _of_timm(encoder: dict) -> Start:
    if encoder["_target_"] != TIMM:
        raise UserError("encoder.pretrained is for encoder=timm; others start from a file, encoder.weights=PATH")
    name, arguments = encoder["name"], encoder.get("kwargs") or {}

    def built(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return pretrained(name, "encoder.pretrained=false starts from random ones", **arguments)

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        one, other = built(0), built(1)
    tensors, twin = one.state_dict(), other.state_dict()
    # timm does not say it aloud where a model is changed so much that some weights do not fit, and stay random.
    if left := [k for k, v in tensors.items() if not torch.equal(v, twin[k])]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise UserError(
            f"timm's weights of {name} have no {', '.join(left[:3])}{more} for these encoder.kwargs; leave out what "
            "changes the model"
        )
    said: Any = one.pretrained_cfg
    called = ".".join(str(said[key]) for key in ("architecture", "tag") if said.get(key))
    origin = f"timm's pretrained {called} (checksum {checkpoint.checksum(tensors)})"
    return Start("encoder.pretrained=true", origin, tensors)


def pretrained(name: str, instead: str, **arguments: Any) -> nn.Module:
    """timm's model `name` with its weights and without a classifier, downloaded unless that was done before.

    Raises UserError where they cannot be had; `instead` says what to type to do without.
    """
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it announces each of ten tries
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **arguments)
    except Exception as error:  # the hub's client raises what it likes
        if "No pretrained weights" in str(error) or "Invalid pretrained tag" in str(error):
            base = name.split(".")[0]
            there = timm.list_models(f"{base}*", pretrained=True)
            near = difflib.get_close_matches(name, there, 3, cutoff=0)
            has = f"; it has some for {', '.join(near)}" if near else ""
            raise UserError(f"timm has no pretrained weights for {name}{has}") from error
        reason = f"{type(error).__name__}: {first_line(error)}".partition(". ")[0]
        raise UserError(
            f"the weights of {name} cannot be had ({reason}); download them where there is a network, by the same "
            f"command, or {instead}"
        ) from error
