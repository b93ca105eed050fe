"""Pickles assembled instruction by instruction, in files like torch.save's: what no pickler would write."""

import zipfile

FLOATS = b"ctorch\nFloatStorage\n"


def archive(path, pickled: bytes, storages=()):
    """Write torch's zip with that pickle in it and, by key, the bytes of storages."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for key, data in dict(storages).items():
            file.writestr(f"archive/data/{key}", data)
    return path


def text(s: str) -> bytes:
    """A string."""
    return b"X" + len(s.encode()).to_bytes(4, "little") + s.encode()


def named(dotted: str, name: str | None = None) -> bytes:
    """The class or function of that name; a `name` of its own may have dots."""
    module, name = (dotted, name) if name else dotted.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    """What that function gives."""
    return function + b"(" + b"".join(arguments) + b"tR"


def number(n: int) -> bytes:
    """An integer."""
    return b"\x8a\x08" + n.to_bytes(8, "little", signed=True)


def integers(*numbers: int) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(number, numbers)) + b"t"


def storage(key: str = "0", kind: bytes = FLOATS, claimed: int = 3, what: str = "storage") -> bytes:
    """The storage kept under `key`, which claims a number of elements."""
    return b"(" + text(what) + kind + text(key) + text("cpu") + number(claimed) + b"tQ"


def tensor(size=(3,), stride=(1,), offset=0, of: bytes | None = None) -> bytes:
    """A whole pickle of a tensor that lies in a storage as the arguments say."""
    where = (of or storage()) + number(offset) + integers(*size) + integers(*stride)
    return b"\x80\x02" + call(named("torch._utils._rebuild_tensor_v2"), where + b"\x89}") + b"."
