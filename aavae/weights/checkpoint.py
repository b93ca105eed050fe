"""Checkpoints are data: written atomically, loaded without executing anything, built into models without Hydra."""

import contextlib
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from aavae.errors import Damaged, UserError, first_line
from aavae.models import Model
from aavae.models.assemble import assemble, model_class
from aavae.runtime import files, seals
from aavae.runtime.targets import ARCHITECTURES, builder
from aavae.weights import schema

LAST, PREVIOUS = "last.pt", "previous.pt"
FORMAT = 1

Module = TypeVar("Module", bound=nn.Module)


# ---- Files --------------------------------------------------------------------------------------------------------


def save(path: Path, state: dict) -> None:
    """Save a checkpoint atomically; the `last.pt` before it is kept as `previous.pt`.

    Raises UserError where it cannot be written; what was there before then still is.
    """
    if path.name == LAST and path.exists():
        files.also_as(path, PREVIOUS)  # so that there is a last.pt at every moment
    chosen = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)  # for readers that know nothing of the digest
    try:
        with files.whole(path) as handle:
            sealed = seals.SealedZip(handle)
            torch.save(state | {"format": FORMAT}, sealed)  # type: ignore[arg-type]  # which only writes
            sealed.seal()
    finally:
        torch.serialization.set_crc32_options(chosen)


def load(path: Path, needed: Sequence[str] = ()) -> dict:
    """Read a checkpoint to the CPU, every byte verified by its digest and every key by the rules of `schema`.

    Raises Damaged if it is missing, damaged, malformed, without the keys `needed`, or not one of ours.
    """
    if not path.is_file():
        raise Damaged(path, "is not a file") if path.exists() else Damaged("there is no checkpoint", str(path))
    try:
        with open(path, "rb") as handle, warnings.catch_warnings(action="ignore"):  # of pickles that it then refuses
            seals.verify_zip(handle)
            state = torch.load(handle, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in the zip reader, the unpickler or the storage
        raise Damaged(
            f"the checkpoint {path}", "cannot be read: it is truncated, damaged or not a checkpoint"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Damaged(path, "is not a checkpoint of this version of aavae")
    schema.check(state, schema.CHECKPOINT, path, needed)
    return state


def begun(folder: Path) -> bool:
    """Whether a run folder holds checkpoints, good or not."""
    return any(path for pattern in (LAST, PREVIOUS, "epoch_*.pt") for path in folder.glob(pattern))


class Found(NamedTuple):
    """A checkpoint of a run folder, its file, and what `find` was to make of it.

    `note` is what to tell the user if it is not the last one written.
    """

    state: dict
    path: Path
    made: Any
    note: str | None


def find(folder: Path, needed: Sequence[str] = (), use: Callable[[dict, Path], Any] = lambda *_: None) -> Found | None:
    """The newest good checkpoint of a run folder, with what `use` makes of it; None if there is no checkpoint.

    One that is damaged, malformed, or for which `use` raises Damaged is passed over. Raises Damaged if there are
    checkpoints and none is good.
    """
    faults: dict[str, str] = {}
    for path, state in _newest_first(folder, needed, faults):
        try:
            made = use(state, path)
        except Damaged as error:
            faults[path.name] = error.reason
            continue
        note = None
        if path.name != LAST:
            why = faults.get(LAST, "is missing")
            note = f"{LAST} {why}; {path.name} (step {state['step']:,}) is used instead"
        return Found(state, path, made, note)
    if faults:
        first, reason = next(iter(faults.items()))
        raise Damaged(f"no checkpoint in {folder} can be used ({', '.join(faults)}):", f"{first} {reason}")
    return None


def _newest_first(folder: Path, needed: Sequence[str], faults: dict[str, str]) -> Iterator[tuple[Path, dict]]:
    """The checkpoints that can be loaded, as few as are asked for; `faults` says what is wrong with the others."""

    def epoch_of(path: Path) -> int:
        number = path.stem.removeprefix("epoch_")
        return int(number) if number.isdecimal() else -1

    def loaded(path: Path) -> dict | None:
        try:
            return load(path, (*needed, "step")) if path.exists() else None
        except Damaged as error:
            faults[path.name] = error.reason
            return None

    if last := loaded(folder / LAST):
        yield folder / LAST, last
    previous = loaded(folder / PREVIOUS)
    for path in sorted(folder.glob("epoch_*.pt"), key=epoch_of, reverse=True):
        if kept := loaded(path):  # which may be newer than previous.pt
            if previous and previous["step"] >= kept["step"]:
                yield folder / PREVIOUS, previous
                previous = None
            yield path, kept
    if previous:
        yield folder / PREVIOUS, previous


def fit_state(module: nn.Module, state: dict, what: object) -> None:
    """Load a state dict strictly. Raises Damaged naming the first keys, shapes and dtypes that do not fit."""
    refuse_misfits(module, state, what)
    module.load_state_dict(state)


def refuse_misfits(module: nn.Module, state: dict, what: object) -> None:
    """Raise Damaged naming the first keys, shapes and dtypes of a state dict that do not fit."""
    own = module.state_dict()
    wrong = [f"missing {k}" for k in own if k not in state] + [f"unknown {k}" for k in state if k not in own]
    for name in ("shape", "dtype"):
        facts = {k: [_plain(getattr(t, name)) for t in (state[k], own[k])] for k in own if k in state}
        wrong += [f"{k} is {has}, not {should}" for k, (has, should) in facts.items() if has != should]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Damaged(what, f"does not fit this model: {'; '.join(wrong[:3])}{more}")


def checksum(tensors: dict[str, Tensor]) -> str:
    """A short hash of tensors and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(fact: torch.Size | torch.dtype) -> str:
    return str(tuple(fact)) if isinstance(fact, torch.Size) else str(fact).removeprefix("torch.")


def fitted(describe: Callable[[], Module], weights: dict[str, Tensor], path: Path) -> Module:
    """The module that `describe` builds, with `weights`; built on the meta device first, where sizes cost no memory.

    Raises Damaged, naming `path`, where nothing can be built or the weights do not fit.
    """
    try:
        with torch.device("meta"), _at_most(2 * len(weights) + 1000):
            module = describe()
        refuse_misfits(module, weights, path)
    except Damaged:
        raise
    except Exception as error:  # what a file says may do anything to a builder
        if "meta" not in str(error).lower():  # an encoder of one's own may read numbers while it is built
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            raise Damaged(path, f"describes what cannot be built ({kind}{first_line(error)})") from error
    module = describe()
    fit_state(module, weights, path)
    return module


@contextlib.contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Refuse to register more parameters than that: a description may ask for a billion layers."""
    count = itertools.count(1)

    def counted(*_) -> None:
        if next(count) > parameters:
            raise ValueError("it has many more layers than the file has weights")

    handle = nn.modules.module.register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def model_of(state: dict, path: Path, allowed: tuple[str, ...] = ARCHITECTURES) -> Model:
    """The model of the checkpoint `state`, read from `path`. Raises UserError if it does not describe one."""
    schema.check(state, {}, path, schema.MODEL)
    described = state["architecture"]
    model_class(described.get("_target_"), allowed)
    for part in ("encoder", *({"decoder"} & described.keys() if "_target_" in described else ("decoder",))):
        builder(described.get(part), allowed)  # a class that is not trusted is refused; the file is not damaged
    return fitted(lambda: assemble(state["architecture"], allowed), state["model"], path)
