"""`_target_` to object, from allowed modules only."""

import importlib
import os
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from torch import nn

from aavae.errors import UserError

INSTALLED = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
NOT_OWN = ("<", *(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], *INSTALLED)))  # beginnings of paths
ARCHITECTURES = ("aavae.models.encoders.", "aavae.models.decoders.")


# ---- Models -------------------------------------------------------------------------------------------------------


def builder(node: dict, allowed: tuple[str, ...] = ARCHITECTURES) -> Callable[..., nn.Module]:
    """What the `_target_` of a node names.

    Raises UserError for a target outside the `allowed` module prefixes: a checkpoint may not name just any function.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(f"{node!r} does not name the class to build as _target_")
    target = str(node["_target_"])
    module, _, name = target.rpartition(".")
    refusal = f"{target} is not among what a model may be built from ({'*, '.join(allowed)}*)"
    if not target.startswith(allowed) or name.startswith("_"):
        if not target.startswith((*allowed, "aavae.")):
            package = target.split(".")[0]
            refusal += f"; if you trust it, say trust=[{package}], and in Python trust=[{package!r}]"
        raise UserError(refusal)
    if not module:
        raise UserError(f"_target_: {target} names no class in a module; write it as MODULE.CLASS")
    found = _imported(module, target)
    try:
        build = getattr(found, name)
    except AttributeError as error:
        raise UserError(f"there is no {target} ({error})") from error
    if "" not in allowed and target.startswith("aavae.") and getattr(build, "__module__", None) != module:
        raise UserError(refusal)  # what such a module has imported is not its own to offer
    return build


def component(node: dict, allowed: tuple[str, ...] = ARCHITECTURES, **facts) -> nn.Module:
    """Build `{"_target_": "aavae.models.encoders.resnet.resnet", …}` with its other entries and `facts` as arguments.

    Raises UserError for a target that is not `allowed`, and for arguments that it does not take or cannot use.
    """
    build = builder(node, allowed)
    try:
        return build(**{k: v for k, v in node.items() if k != "_target_"} | facts)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        kind = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
        raise UserError(f"{node['_target_']} cannot be built: {kind}{error}{_place(error)}") from error


def _imported(module: str, target: str) -> ModuleType:
    """The module of a target. Raises UserError where there is none, or importing it fails or ends the process."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):  # it imports what is not installed
            raise UserError(f"{module} cannot be imported: {error}{_place(error)}") from error
        hint = "" if target.startswith("aavae.") else "; PYTHONPATH=. finds modules of the folder you are in"
        raise UserError(f"there is no {target} ({error}){hint}") from error
    except (Exception, SystemExit) as error:  # whatever is at the top of a file
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(f"{module} cannot be imported: {said}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """Where in somebody's own code an error was raised: ` (flat.py, line 12)`; nothing where that is not known."""
    if isinstance(error, SyntaxError):
        return ""  # it says where
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(NOT_OWN)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def trusting(modules: str | Sequence[str], own: tuple[str, ...] = ARCHITECTURES) -> tuple[str, ...]:
    """The prefixes of aavae's `own` modules and of `modules`, each with a dot at its end, so that trusting `foo`
    does not trust `foobar`."""
    modules = [modules] if isinstance(modules, str) else modules
    return (*own, *(f"{module.removesuffix('.')}." for module in modules))
