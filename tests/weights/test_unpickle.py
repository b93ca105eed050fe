"""Files of others are read, not run: plain ones as torch reads them, strange ones inert, hostile ones refused."""

import copyreg
import datetime
import decimal
import enum
import functools
import math
import pathlib
import pickle
import sys
import uuid
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import lightning_files
import numpy as np
import pytest
import torch
from conftest import command
from pickles import archive, call, named, storage, tensor, text
from torch import nn

import aavae
from aavae import convert
from aavae.errors import UserError
from aavae.weights import unpickle


def refused(path, read=unpickle.read) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and text.isprintable()  # one line, whatever the file is called and holds
    return text


# ---- What torch reads, we read ------------------------------------------------------------------------------------

GRID = torch.arange(24.0).view(4, 6)
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
PLAIN = {
    **{name: (torch.rand(3, 2) * 9).to(getattr(torch, name)) for name in DTYPES},
    "transposed": GRID.t(),
    "strided": GRID[1::2, ::3],
    "expanded": torch.ones(1, 3).expand(5, 3),
    "channels last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "empty": torch.empty(0, 3, dtype=torch.float64),
    "scalar": torch.tensor(2.5),
    "not finite": torch.tensor([math.nan, math.inf, -math.inf]),
    "parameter": nn.Parameter(torch.rand(2)),
    "state dict": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict(),
    "ordered": OrderedDict(b=1, a=2),
    "optimizer": torch.optim.Adam([nn.Parameter(torch.ones(2))]).state_dict(),
    "containers": [(1, (2, ()), [None, True]), {"a": {1: 2.5}}, {3, "b"}],
    "numbers and text": [2**100, -1, 0.1, 1 + 2j, math.inf, "β", b"bytes", "", torch.Size([2, 3])],
}


def same(a, b) -> bool:
    if isinstance(b, torch.Tensor):
        layout = (a.dtype, a.shape, a.stride(), a.storage_offset())
        values = np.array_equal(a.detach().float(), b.detach().float(), equal_nan=b.is_floating_point())
        return layout == (b.dtype, b.shape, b.stride(), b.storage_offset()) and values
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, (list, tuple)):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_read_as_torch_reads_them(tmp_path, name):
    torch.save({"it": PLAIN[name]}, tmp_path / "plain.pt")
    expected = torch.load(tmp_path / "plain.pt", weights_only=True)["it"]
    assert same(unpickle.read(tmp_path / "plain.pt")["it"], expected)


def test_tensors_that_share_their_memory_still_do(tmp_path):
    torch.save({"a": GRID[:3], "b": GRID[2:], "c": GRID.clone()}, tmp_path / "shared.pt")
    read = unpickle.read(tmp_path / "shared.pt")
    read["a"][2, 0] = -1
    assert read["b"][0, 0] == -1 and read["c"][2, 0] == 12


# ---- What Lightning writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AttributeDict", "Namespace", "dict"])
def test_hyper_parameters_can_be_read_whatever_holds_them(tmp_path, kind):
    read = unpickle.read(lightning_files.write(tmp_path / "a.ckpt", {"w": GRID}, kind=kind))
    assert unpickle.contents(read["hyper_parameters"]) == lightning_files.CIFAR
    assert torch.equal(read["state_dict"]["w"], GRID) and read["global_step"] == 70_000


def test_callbacks_keyed_by_classes_are_kept_apart(tmp_path):
    callbacks = unpickle.read(lightning_files.write(tmp_path / "a.ckpt", {}))["callbacks"]
    torch.save({datetime.date: 1, datetime.time: 2}, tmp_path / "of one module.pt")
    assert list(unpickle.read(tmp_path / "of one module.pt").values()) == [1, 2]
    names = {f"{key.__module__}.{key.__qualname__}": value for key, value in callbacks.items()}
    assert names["pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"]["best_model_path"] == "a/b.ckpt"
    assert names["src.callbacks.online_finetuner.OnlineFineTuner"] == {} and len(names) == 2


def test_nothing_a_file_names_is_imported(tmp_path, monkeypatch):
    lightning_files.write(tmp_path / "a.ckpt", {})
    for package in ("pytorch_lightning", "src"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)
    unpickle.read(tmp_path / "a.ckpt")
    assert sys.modules == before and not (tmp_path / "ran").exists()
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "a.ckpt", weights_only=False)  # which does
    assert (tmp_path / "ran").exists()
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


class Strategy(enum.Enum):
    DDP = "ddp"


Point = namedtuple("Point", "x y")
STRANGE = (
    Strategy.DDP, Point(1, 2), pathlib.PurePosixPath("a/b"), datetime.datetime(2021, 6, 1), datetime.timedelta(1),
    functools.partial(int, 2), np.float64(0.5), np.arange(3), deque([1]), Counter("aab"), defaultdict(list, {1: [2]}),
    decimal.Decimal("0.1"), uuid.UUID(int=7), torch.device("cpu"), nn.Linear(2, 1), range(3), slice(1, 2), b"",
)  # fmt: skip
STANDINS = (OrderedDict, list)


def inert(value) -> bool:
    """Whether it is an instance of an empty class, or such a class."""
    return isinstance(value, unpickle.Inert) or (isinstance(value, type) and issubclass(value, unpickle.Inert))


@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_objects_of_any_class_stay_inert(tmp_path, value):
    torch.save({"before": 1, "it": value, "after": [value, GRID]}, tmp_path / "x.pt")
    read = unpickle.read(tmp_path / "x.pt")
    known = (Counter, torch.device)  # to torch
    assert type(read["it"]) in ((type(value),) if type(value) in known else STANDINS) or inert(read["it"])
    assert read["before"] == 1 and torch.equal(read["after"][1], GRID)


def test_another_pickle_protocol_than_torchs_gets_one_sentence(tmp_path):
    torch.save({"state_dict": {}, "it": Strategy.DDP}, tmp_path / "x.pt", pickle_protocol=4)
    assert "cannot be read" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [math.sqrt, [].append, print, datetime.datetime.now])
def test_functions_and_methods_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    words = "names math.sqrt" if value is math.sqrt else "names builtins."
    assert words in refused(tmp_path / "x.pt")


# ---- What would run something -------------------------------------------------------------------------------------
# Each would leave `ran` behind. Below protocol 3, pickle takes names of modules to be Python 2's.

SHELL, RAN, PYTHON = text("touch ran"), text("ran"), text("open('ran', 'w').close()")
SYSTEM, NAMESPACE = named("os.system"), named("argparse.Namespace") + b")R"
OS = call(named("__builtin__.__import__"), text("os"))
INSIDE = b"\x80\x04" + call(SYSTEM, SHELL) + b"."
READER = "cannot be read"  # torch's reader does not know the instruction
HOSTILE = {  # protocol, pickle, what the message names
    "os.system": (2, call(SYSTEM, SHELL), "os.system"),
    "posix.system": (2, call(named("posix.system"), SHELL), "posix.system"),
    "subprocess": (2, call(named("subprocess.call"), b"](" + text("touch") + RAN + b"e"), "subprocess.call"),
    "commands": (2, call(named("commands.getoutput"), SHELL), "commands.getoutput"),
    "eval": (4, call(named("builtins.eval"), PYTHON), "builtins.eval"),
    "eval, of old": (2, call(named("__builtin__.eval"), PYTHON), "builtins.eval"),
    "exec": (4, call(named("builtins.exec"), PYTHON), "builtins.exec"),
    "__import__": (4, call(named("builtins.__import__"), text("trap")), "builtins.__import__"),
    "getattr": (2, call(call(named("__builtin__.getattr"), OS, text("system")), SHELL), "builtins.__import__"),
    "runpy": (2, call(named("runpy.run_path"), text("trap.py")), "runpy.run_path"),
    "a pickle in it": (4, call(named("_pickle.loads"), b"C" + bytes([len(INSIDE)]) + INSIDE), READER),
    "STACK_GLOBAL": (4, call(text("os") + text("system") + b"\x93", SHELL), READER),
    "INST": (2, b"(" + SHELL + b"ios\nsystem\n", READER),
    "OBJ": (2, b"(" + SYSTEM + SHELL + b"o", READER),
    "BUILD": (2, NAMESPACE + b"}" + text("__setstate__") + SYSTEM + b"sb" + SHELL + b"b", "os.system"),
    "EXT1": (2, call(b"\x82\xf0", SHELL), READER),
    "partial": (2, call(call(named("functools.partial"), SYSTEM), SHELL), "os.system"),
    "NEWOBJ": (2, named("subprocess.Popen") + b"(](" + text("touch") + RAN + b"et\x81", "subprocess.Popen"),
}  # fmt: skip
OBJECT, MKDIR = named("__builtin__.object"), named("argparse", "_os.mkdir")
HOSTILE |= {
    "partial, behind a harmless name": (4, call(call(named("functools.partial"), MKDIR), RAN), READER),
    "INST, behind a harmless name": (4, b"(" + RAN + b"iargparse\n_os.mkdir\n", READER),
    "OBJ, behind a harmless name": (4, b"(" + MKDIR + RAN + b"o", READER),
}
DISARMED = {  # names of classes and functions that are not imported, and thus do nothing
    "a name behind a harmless one": (4, call(MKDIR, RAN)),
    "a method": (4, call(named("pathlib", "Path.touch"), call(named("pathlib.Path"), RAN))),
    "BUILD": (4, NAMESPACE + b"}" + text("__setstate__") + MKDIR + b"sb" + RAN + b"b"),
    "NEWOBJ": (2, named("trap.Trap") + b")\x81"),
    "_reconstructor": (2, call(named("copy_reg._reconstructor"), named("trap.Trap"), OBJECT + b"N")),
    "a module of one's own": (2, named("trap.Trap")),
    "numpy": (2, call(named("numpy.savetxt"), RAN, b"]K\x01a")),
    "torch.save": (2, call(named("torch.save"), b"K\x01" + RAN)),
}
ASLEEP = {  # would want arguments or files that are not here
    "torch.hub": (2, call(named("torch.hub.load"), text("."), text("trap"))),
    "torch.load": (2, call(named("torch.load"), RAN, b"NN\x89")),
    "far behind a harmless one": (4, call(named("collections", "abc.os.system"), SHELL)),
}


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """An empty folder to be in, with a module that leaves `ran` when imported; says whether something ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trap.py").write_text("open('ran', 'w').close()\nclass Trap:\n    pass\n")
    copyreg.add_extension("os", "system", 0xF0)
    yield lambda: (tmp_path / "ran").exists()
    copyreg.remove_extension("os", "system", 0xF0)
    sys.modules.pop("trap", None)


@pytest.mark.parametrize("attack", [a for a in (*HOSTILE.values(), *DISARMED.values()) if b"Popen" not in a[1]])
def test_the_attacks_are_real(trapped, attack):
    protocol, payload, *_ = attack
    pickle.loads(b"\x80" + bytes([protocol]) + payload + b".")
    assert trapped()


def checkpoint(protocol, payload):
    """Lightning's checkpoint with `payload` among its hyper-parameters."""
    content = b"}" + text("state_dict") + b"}s" + text("hyper_parameters") + b"}" + text("a") + payload + b"ss."
    return archive(pathlib.Path("evil.ckpt"), b"\x80" + bytes([protocol]) + content)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [unpickle.read, aavae.load_model, aavae.load_encoder])
def test_what_would_run_something_is_refused_by_name(trapped, name, read):
    *payload, called = HOSTILE[name]
    words = READER if called is READER else f"names {called}, which no checkpoint needs"
    assert words in refused(checkpoint(*payload), read)
    assert not trapped() and "trap" not in sys.modules


@pytest.mark.parametrize("name", DISARMED | ASLEEP)
def test_what_is_only_named_does_nothing(trapped, name):
    path = checkpoint(*(DISARMED | ASLEEP)[name])
    assert inert(unpickle.read(path)["hyper_parameters"]["a"])
    assert "it has no encoder.conv1.weight" in refused(path, aavae.load_model)
    assert not trapped() and "trap" not in sys.modules


@pytest.mark.parametrize("name", ["os.system", "eval, of old", "BUILD"])
@pytest.mark.parametrize("to", ["out.pt", "out.safetensors"])
def test_the_command_refuses_too(trapped, tmp_path, monkeypatch, capsys, name, to):
    *payload, called = HOSTILE[name]
    ended = command(convert.main, "aavae-convert", tmp_path, monkeypatch, capsys)(str(checkpoint(*payload)), to)
    assert ended.code == 2 and ended.err.count("\n") == 1 and f"names {called}, which" in ended.err
    assert not trapped() and not (tmp_path / to).exists()


def test_a_name_cannot_write_on_the_screen(tmp_path):
    name = named("os.\r\x1b[2J", "system")
    assert "names os" in refused(archive(tmp_path / "x.ckpt", b"\x80\x02" + name + b"."))


def test_a_state_dict_cannot_bring_its_own_methods(trapped):
    own = named("collections.OrderedDict") + b")R}" + text("items") + MKDIR + b"sb"
    content = b"\x80\x04}" + text("state_dict") + own + b"s" + text("hyper_parameters") + own + b"s."
    assert "it has no encoder.conv1" in refused(archive(pathlib.Path("x.ckpt"), content), aavae.load_model)


# ---- What is damaged ----------------------------------------------------------------------------------------------

NUMBERS = {"0": torch.arange(3.0).numpy().tobytes()}
PICKLES = {
    "a storage shorter than it claims": tensor(of=storage(claimed=300)),
    "an offset behind the end": tensor((1,), (1,), 7),
    "an offset before the start": tensor((1,), (1,), -1),
    "a stride that leads out": tensor((2,), (3,)),
    "a stride backwards": tensor((3,), (-1,), 2),
    "a negative size": tensor((-1,), (1,)),
    "a size that overflows": tensor((2**61 + 1,), (2,)),
    "more elements than can be counted": tensor((2**40, 2**40), (0, 0)),
    "a storage of more than can be counted": tensor(of=storage(claimed=2**62 + 3)),
    "a storage of less than nothing": tensor(of=storage(claimed=-1)),
    "a storage of no numbers": tensor(of=storage(kind=named("own.Storage"))),
    "a storage that is missing": tensor(of=storage("1")),
    "a storage outside": tensor(of=storage("../../x")),
    "a module in a storage's place": tensor(of=storage(what="module")),
    "a word in a storage's place": tensor(of=RAN + b"Q"),
    "a word of old in a storage's place": tensor(of=b"Pran\n"),
    "no storage at all": tensor(of=b"N"),
    "a pickle that announces more than there is": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b".",
    "a pickle without an end": b"\x80\x02K\x01",
    "an empty pickle": b"",
    "an unknown instruction": b"\x80\x02\xff.",
    "an unknown extension": b"\x80\x02\x82\xf1.",
    "a set of lists": b"\x80\x02" + call(named("__builtin__.set"), b"]]a") + b".",
}  # fmt: skip


def test_the_tensor_that_is_damaged_below_is_good(tmp_path):
    assert unpickle.read(archive(tmp_path / "x.ckpt", tensor(), NUMBERS)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("read", [unpickle.read, aavae.load_model])
def test_a_damaged_pickle_gets_one_sentence(tmp_path, name, read):
    text = refused(archive(tmp_path / "x.ckpt", PICKLES[name], NUMBERS), read)
    assert "cannot be read" in text or "more memory than there is" in text


def rewritten(path, change):
    """The file `path` with the entries of its archive changed, but checksums that agree."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in change(entries).items():
            file.writestr(name, data)


def flipped(path, where: bytes):
    data = bytearray(path.read_bytes())
    data[data.index(where)] ^= 1
    path.write_bytes(data)


def scripted(path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)), path)


def without(part):
    return lambda entries: {k: v for k, v in entries.items() if part not in k}


DAMAGE = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-200]),
    "no pickle": lambda p: rewritten(p, without("data.pkl")),
    "two pickles": lambda p: rewritten(p, lambda e: e | {"other/data.pkl": b"N."}),
    "no storages": lambda p: rewritten(p, without("/data/")),
    "short storages": lambda p: rewritten(p, lambda e: {k: v[:8] if "/data/" in k else v for k, v in e.items()}),
    "a flipped bit in the pickle": lambda p: flipped(p, b"state_dict"),
    "a flipped bit in a storage": lambda p: flipped(p, GRID.numpy().tobytes()),
    "TorchScript": scripted,
    "of torch before 1.6": lambda p: torch.save({"state_dict": {}}, p, _use_new_zipfile_serialization=False),
    "a bare pickle": lambda p: p.write_bytes(pickle.dumps({"state_dict": {}})),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("read", [unpickle.read, aavae.load_model])
def test_a_damaged_file_gets_one_sentence(tmp_path, damage, read):
    lightning_files.write(tmp_path / "x.ckpt", {"w": GRID})
    DAMAGE[damage](tmp_path / "x.ckpt")
    if (damage, read) != ("TorchScript", unpickle.read):  # which is a module, inert
        assert "cannot be read" in refused(tmp_path / "x.ckpt", read)
