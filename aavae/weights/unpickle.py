"""Torch files that others wrote, read without executing anything: what their pickle names is not imported.

A pickle is a program, and `torch.load` without `weights_only` runs it. Lightning's checkpoints need more than
`weights_only` allows: their callbacks and hyper-parameters name classes of Lightning's, and of the code that wrote
them. Here such a name becomes an empty class of that name, which keeps what the file puts into it and does nothing.
"""

import builtins
import io
import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aavae.errors import UserError

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
PLAIN = {t.__name__: t for t in (dict, list, set, frozenset, tuple, int, float, complex, bool, str, object)}
# Modules of Python's own whose classes are mere data. All others are refused: nobody's hyper-parameters need os.system.
HARMLESS = {"argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "functools", "pathlib",
            "types", "typing", "uuid"}  # fmt: skip


class Inert:
    """Stands for an object of a class that was not imported; `content` is what the file says is in it."""

    content: dict[Any, Any]

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls)
        instance.content = {}
        return instance

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        for part in state if isinstance(state, tuple) else (state,):  # attributes, and those in slots
            self.content.update(part if isinstance(part, dict) else {})

    def __setitem__(self, key, value):
        self.content[key] = value

    def append(self, item):
        """Of a list: not kept."""

    extend = add = append

    def __call__(self, *args, **kwargs):
        return self


class _Dict(dict):
    """An OrderedDict without the attributes a file may hang on it: `_metadata`, or an `items` of its own."""

    def __setstate__(self, state):
        """Of attributes: not kept."""


def contents(value: Any) -> dict:
    """What is in a dict, or in the object that an `Inert` stands for; nothing in anything else."""
    if isinstance(value, Inert):
        return value.content
    return dict(value) if isinstance(value, dict) else {}


def read(path: Path) -> Any:
    """The content of a file written by `torch.save` (since torch 1.6), on the CPU.

    Raises UserError where it cannot be read, or names what no checkpoint needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            [name] = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
            # All of it, so that its checksum is looked at before the first instruction is.
            file = io.BytesIO(archive.read(name))
            return _Reader(file, archive, name.removesuffix(".pkl"), path).load()
    except UserError:
        raise
    except MemoryError as error:  # a pickle says itself how much is to come
        raise UserError(f"the checkpoint {path} asks for more memory than there is") from error
    except Exception as error:  # a damaged file can fail in the zip reader, the unpickler or the storage
        raise UserError(
            f"the checkpoint {path} cannot be read: it is truncated, damaged or not a checkpoint"
        ) from error


class _Reader(pickle.Unpickler):
    def __init__(self, file, archive: zipfile.ZipFile, folder: str, path: Path):
        super().__init__(file)
        self.archive, self.folder, self.path = archive, folder, path
        self.storages: dict[str, Tensor] = {}
        self.strangers: dict[tuple[str, str], type] = {}

    def persistent_load(self, pid: tuple) -> Tensor:
        """The numbers of a storage, `(N,)`."""
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"{kind} of {dtype}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.folder}/{key}"))
            if not 0 <= numel * dtype.itemsize <= len(data):  # which torch would count in 64 bits
                raise pickle.UnpicklingError(f"{numel} elements in {len(data)} bytes")
            self.storages[key] = torch.frombuffer(data, dtype=dtype, count=numel) if numel else torch.empty(0).to(dtype)
        return self.storages[key]

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name: never what it is the name of. Raises UserError for what no checkpoint needs."""
        # torch.save writes protocol 2, which calls Python's own modules by their names of old.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "builtins" and name in PLAIN:
            return PLAIN[name]
        package = module.split(".")[0]
        harmless = package in HARMLESS or (module == "builtins" and isinstance(vars(builtins).get(name), type))
        if package in sys.stdlib_module_names and not harmless:
            called = f"{module}.{name}".encode("unicode_escape").decode()  # of the file's choosing
            raise UserError(f"{self.path} names {called}, which no checkpoint needs; it is refused")
        return self.strangers.setdefault((module, name), type(name, (Inert,), {"__module__": module}))


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
    return storage.as_strided(size, stride, offset)


KNOWN = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): _Dict,
    ("copyreg", "_reconstructor"): lambda cls, *_: cls(),
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),  # how protocol 2 writes bytes
}
