"""Torch files that others wrote, read without executing anything: what their pickle names is not imported.

A pickle is a program, and `torch.load` without `weights_only` runs it. Lightning's checkpoints need more than
`weights_only` allows: their callbacks and hyper-parameters name classes of Lightning's, and of the code that wrote
them. Here such a name becomes an empty class of that name, which does nothing.
"""

import builtins
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from aavae.errors import UserError
from aavae.runtime.seals import verify_zip

# Modules of Python's own whose classes are mere data. All others are refused: nobody's hyper-parameters need os.system.
HARMLESS = {"argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "functools", "pathlib",
            "types", "typing", "uuid"}  # fmt: skip


class Inert:
    """Stands for an object of a class that is not imported; `content` is what the file says its attributes are."""

    content: dict[str, Any]

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls)
        instance.content = {}
        return instance

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        for part in state if isinstance(state, tuple) else (state,):  # attributes, and those in slots
            self.content.update(part if isinstance(part, dict) else {})


class _Mapping(Inert):
    def __new__(cls, *args, **kwargs):
        return OrderedDict()  # torch's reader sets items of this type and of no other, subclasses included


class _Sequence(Inert):
    def __new__(cls, *args, **kwargs):
        return []


STANDS_FOR = {"dict": _Mapping, "list": _Sequence, "deque": _Sequence}  # what names end with, in lower case


def contents(value: Any) -> dict:
    """What is in a dict, or in the object that an `Inert` stands for; nothing in anything else."""
    if isinstance(value, Inert):
        return value.content
    # A file may hang a method `items` of its own on an OrderedDict.
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def read(path: Path) -> Any:
    """The content of a file written by `torch.save` (since torch 1.6), on the CPU.

    Raises UserError where it cannot be read, or names what no checkpoint needs.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):  # of pickles that it then refuses
            verify_zip(file)
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
            if refused := [name for name in names if not _harmless(name)]:
                called = refused[0].encode("unicode_escape").decode()  # of the file's choosing
                raise UserError(f"{path} names {called}, which no checkpoint needs; it is refused")
            file.seek(0)
            with torch.serialization.safe_globals([_inert(name) for name in names]):
                content = torch.load(file, map_location="cpu", weights_only=True)
            return contents(content) if isinstance(content, dict) else content
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in the zip reader, the unpickler or the storage
        raise UserError(
            f"the checkpoint {path} cannot be read: it is truncated, damaged or not a checkpoint"
        ) from error


def _harmless(name: str) -> bool:
    package, *rest = name.split(".")
    package = IMPORT_MAPPING.get(package, package)  # Python 2's name of the module
    if package == "builtins":
        return isinstance(vars(builtins).get(".".join(rest)), type)
    return package in HARMLESS or package not in sys.stdlib_module_names


def _inert(name: str) -> type:
    module, _, own = name.rpartition(".")
    kind = next((kind for end, kind in STANDS_FOR.items() if own.lower().endswith(end)), Inert)
    return type(own, (kind,), {"__module__": module})
