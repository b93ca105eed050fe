"""Every kind of file that a command reads, damaged in four ways: what it gives is what was written, or a sentence."""

import io
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import faults
import lightning_files
import pytest
import safetensors.torch
import torch
from test_bad_input import KINDS, NAMES, PICTURES, RUNS, ZIP, desk, shelf  # noqa: F401 (fixtures)
from test_kept import KEPT

from aavae import build, manage
from aavae.datasets import checked
from aavae.datasets.store import Store
from aavae.errors import UserError
from aavae.runs.results import read_results
from aavae.weights import checkpoint, encoder_file, start

pytestmark = pytest.mark.faults
EACH = max(4, faults.EXAMPLES // 12)  # of every kind of file
WAYS = ("flipped", "truncated", "foreign", "swapped")


def damages(data: bytes, foreign: list[bytes], other: bytes, seed: str, each: int):
    """The bytes with a flipped bit, cut off, of another kind of file, or of another file of that kind, in turn."""
    draw = random.Random(seed)
    for number in range(each):
        way = WAYS[number % len(WAYS)]
        at = draw.randrange(len(data))
        if way == "flipped":
            yield way, data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif way == "truncated":
            yield way, data[:at]
        elif way == "foreign":
            yield way, draw.choice(foreign)
        else:  # a part of the other one in its place
            yield way, other if draw.random() < 0.2 else data[:at] + other[at : at + draw.randrange(1, len(data) + 1)]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def try_all(
    path: Path,
    data: bytes,
    other: bytes,
    read: Callable,
    injected: Counter,
    sealed: tuple | None = None,
    each: int = EACH,
) -> None:
    """Read damaged `data` at `path`; what is `sealed` is refused, or what was written there once, or one of these."""
    foreign = [b"", b"\0" * 4096, b"a,b\n1,2\n", (KEPT / "simclr.pt").read_bytes(), *PICTURES.values(), ZIP]
    foreign += [(KEPT / "encoder.safetensors").read_bytes(), b"{}", b"[]", b"null", b"\x80\x04\x95", b"\xff\xfe{\0}\0"]
    path.write_bytes(data)
    good = [read()]
    path.write_bytes(other)
    good.append(read())
    for way, content in damages(data, foreign, other, path.name, each):
        path.write_bytes(content)
        tried = Counter()
        found = faults.refusal(read, tried)
        if tried["done"] and sealed is not None:
            assert any(same(found, one) for one in (*good, *sealed)), (way, found)
        injected["refused" if tried["refused"] else "read"] += 1
    path.write_bytes(data)


def test_checkpoints(tmp_path, injected):
    for name, other in (("aavae.pt", "simclr.pt"), ("simclr.pt", "aavae.pt")):
        path = tmp_path / name
        data = [(KEPT / n).read_bytes() for n in (name, other)]
        try_all(path, *data, lambda path=path: checkpoint.load(path), injected, sealed=())


def test_encoder_files(tmp_path, injected):
    path, data = tmp_path / "encoder.safetensors", (KEPT / "encoder.safetensors").read_bytes()
    tensors, facts = encoder_file.read(KEPT / "encoder.safetensors")
    layer = torch.nn.Module()
    layer.state_dict = lambda: {name: value + 1 for name, value in tensors.items() if value.is_floating_point()}
    encoder_file.save(path, layer, facts)
    try_all(path, data, path.read_bytes(), lambda: encoder_file.read(path), injected, sealed=())


def test_weights_of_others_to_start_from(tmp_path, injected):
    def saved(write: Callable, name: str) -> list[bytes]:
        found = []
        for value in (0.5, 1.5):
            write({"conv1.weight": torch.full((4, 3, 3, 3), value), "bn1.weight": torch.ones(4)}, tmp_path / name)
            found.append((tmp_path / name).read_bytes())
        return found

    writers = {
        "a.ckpt": lambda tensors, path: lightning_files.write(path, tensors, lightning_files.CIFAR),
        "a.pth": torch.save,
        "a.safetensors": safetensors.torch.save_file,
    }
    for name, write in writers.items():
        path = tmp_path / name
        try_all(path, *saved(write, name), lambda path=path: start._of_path(str(path)), injected)


def test_results_are_sealed(shelf, tmp_path, injected):  # noqa: F811
    folder, _ = shelf
    data = [(folder / n / "results.json").read_bytes() for n in "01"]
    try_all(tmp_path / "results.json", *data, lambda: read_results(tmp_path), injected, ([],))  # as without a seal


@pytest.mark.parametrize("name", NAMES)
def test_small_files_of_runs(shelf, injected, name):  # noqa: F811
    folder, whole = shelf
    other = whole[name] if name == "sweep.json" else (folder / name.replace("0/", "1/")).read_bytes()
    words = RUNS[NAMES.index(name) % len(RUNS)]
    words = ["ls"] if words[0] == "tail" else words  # it would wait for a run that says it is running

    def read():
        return faults.command("aavae-runs", manage._work, words, Counter(), good=(0, 1))

    try:
        try_all(folder / name, whole[name], other, read, injected)
    finally:
        (folder / name).write_bytes(whole[name])


@pytest.mark.parametrize("end", sorted(KINDS))
def test_pictures(tmp_path, injected, end):
    others = {"jpg": "png"}
    path = tmp_path / f"a.{end}"
    read = lambda: Store(tmp_path).read([path.name], 8)[0]  # noqa: E731
    try_all(path, PICTURES[end], PICTURES[others.get(end, "jpg")], read, injected)


def test_zips_of_pictures(tmp_path, injected):
    def read():
        store = Store(tmp_path / "images.zip")
        return store.read(store.check(store.names), 8)[0]

    with zipfile.ZipFile(other := io.BytesIO(), "w") as images:
        images.writestr("x/a.png", PICTURES["png"])
    try_all(tmp_path / "images.zip", ZIP, other.getvalue(), read, injected)


def test_a_remembered_check_that_is_damaged_is_made_again(tmp_path, monkeypatch, injected):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = []
    for key in ("a" * 32, "b" * 32):
        checked.remember(key, [1, 2, ord(key[0])], {1: "is empty"}, 1e9)
        files.append(checked._place(key).read_bytes())

    def read():
        found = checked.recall("a" * 32, 3)
        if found is None:
            raise UserError("it is not known")
        return found

    try_all(checked._place("a" * 32), *files, read, injected, sealed=())


def test_configs_of_ones_own(tmp_path, injected):
    (tmp_path / "loss").mkdir()
    path = tmp_path / "loss" / "mine.yaml"
    data = [(Path(build.__file__).parent / "conf" / "loss" / f"{n}.yaml").read_bytes() for n in ("mse", "elbo")]
    read = lambda: build.plain(build.compose(["loss=mine"], str(tmp_path)))  # noqa: E731
    try_all(path, *data, read, injected, each=max(4, EACH // 8))  # composing takes its time
