"""Digests inside files: what damages them is seen, and other readers read the files as before."""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import random
import zipfile

import pytest
import torch

from aavae.errors import UserError
from aavae.runs import tidy
from aavae.runs.results import read_results, write_results
from aavae.runtime import files, seals
from aavae.weights import checkpoint

RECORD = {
    "probe": "knn",
    "feature": "h",
    "split": "test",
    "metric": "accuracy",
    "value": 0.1 + 0.2,
    "n": 300,
    "protocol": "k=20, T=0.07, “cosine”",
    "epoch": 2.0,
}
RECORDS = [RECORD, RECORD | {"probe": "linear", "value": 1.0}, RECORD | {"split": "val", "value": 1e-7}]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": {"w": torch.arange(40.0)}, "step": 7})
    return path


def flips(path, every: int = 1, seed: int = 0):
    """Damage the file by a flipped bit in one of `every` bytes, one after the other; it is whole again at the end."""
    draw, data = random.Random(seed), path.read_bytes()
    with open(path, "r+b", buffering=0) as file:  # in its place: to write it whole takes the disk much longer
        for i in range(0, len(data), every):
            os.pwrite(file.fileno(), bytes([data[i] ^ 1 << draw.randrange(8)]), i)
            yield i
            os.pwrite(file.fileno(), data[i : i + 1], i)
    assert path.read_bytes() == data


def refused(read, path) -> str:
    """Why a damaged file is refused, in a sentence; the test fails where it is taken for good."""
    try:
        found = read(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return str(error)
    pytest.fail(f"taken for good: {found}")


# ---- Checkpoints --------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_seen_in_each_byte_of_a_checkpoint(saved):
    data = saved.read_bytes()
    assert len(data) > 1500
    for _ in flips(saved):
        said = refused(checkpoint.load, saved)
        assert said.endswith("last.pt cannot be read: it is truncated, damaged or not a checkpoint")
        assert not tidy.is_whole(saved)
    for end in (1, 2, 21, 22, seals.COMMENT, seals.COMMENT + 1, seals.COMMENT + 23, 1000, len(data)):
        for cut in (data[:-end], data + b"\0" * end):
            saved.write_bytes(cut)
            refused(checkpoint.load, saved)


def test_the_digest_is_what_anybody_can_compute(saved):
    data = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        mark, digest = archive.comment.split(b":")
    assert (mark, digest.decode()) == (
        b"aavae blake2b",
        hashlib.blake2b(data[: -seals.COMMENT - 2], digest_size=32).hexdigest(),
    )
    # Without the comment it is what torch writes, to the byte.
    chosen = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    torch.save({"model": {"w": torch.arange(40.0)}, "step": 7, "format": 1}, buffer := io.BytesIO())
    torch.serialization.set_crc32_options(chosen)
    assert buffer.getvalue() == data[: -seals.COMMENT - 2] + b"\0\0"


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_it_as_before(saved, mmap):
    assert torch.equal(torch.load(saved, weights_only=True, mmap=mmap)["model"]["w"], torch.arange(40.0))


def test_one_without_a_digest_has_its_checksums_verified(saved):
    data = saved.read_bytes()[: -seals.COMMENT - 2] + b"\0\0"
    saved.write_bytes(data)
    good = checkpoint.load(saved)
    assert tidy.is_whole(saved)
    for _ in flips(saved, every=7):
        with contextlib.suppress(UserError):
            assert repr(checkpoint.load(saved)) == repr(good)
    for comment in (b"mine", seals.MARK + b"0" * 64):
        saved.write_bytes(data[:-2] + len(comment).to_bytes(2, "little") + comment)
        with pytest.raises(UserError, match="cannot be read"):
            checkpoint.load(saved)


def test_writing_in_pieces_of_any_size_gives_the_same_file():
    data = b"PK" + bytes(range(256)) * 2 + seals.END + bytes(18)
    files_ = []
    for size in (1, 2, 3, 7, 1000):
        sealed = seals.SealedZip(buffer := io.BytesIO())
        for start in range(0, len(data), size):
            sealed.write(memoryview(data)[start : start + size])
        sealed.seal()
        files_.append(buffer.getvalue())
    assert len({*files_}) == 1 and files_[0].startswith(data[:-2])


# ---- Results ------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_seen_in_each_byte_of_results(tmp_path):
    write_results(tmp_path, RECORDS)
    path = tmp_path / "results.json"
    assert 4 * path.stat().st_size > 2000
    for _ in itertools.chain(*(flips(path, seed=seed) for seed in range(4))):
        said = refused(read_results, tmp_path)
        assert "results.json is damaged (" in said and said.endswith("); delete it and evaluate again")


def test_results_are_json_for_everybody(tmp_path):
    write_results(tmp_path, RECORDS)
    path = tmp_path / "results.json"
    assert json.loads(path.read_text()) == RECORDS == read_results(tmp_path)
    lines = path.read_text().splitlines()
    assert "\n".join(lines[:-1]) == json.dumps(RECORDS, indent=1) and not lines[-1].strip()
    for text in (json.dumps(RECORDS), json.dumps(RECORDS) + "\n", json.dumps(RECORDS, indent=3) + "\r\n\n"):
        path.write_bytes(text.encode())  # as earlier versions wrote it, or a person
        assert read_results(tmp_path) == RECORDS
    write_results(tmp_path, [])
    assert read_results(tmp_path) == []


def test_the_digest_of_a_text_is_that_of_any_machine():
    digest = f"{int.from_bytes(hashlib.blake2b(b'[1]' + bytes([10]), digest_size=16).digest()):0128b}"
    assert seals.seal_json("[1]").decode() == "[1]\n" + digest.replace("0", " ").replace("1", "\t") + "\n"
    assert seals.unseal_json(seals.seal_json("[1]")) == "[1]"


# ---- Folders ------------------------------------------------------------------------------------------------------


def test_the_folder_reaches_the_disk_after_the_rename(tmp_path, monkeypatch):
    done, replace, fsync = [], os.replace, os.fsync

    def flushed(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", flushed)
    monkeypatch.setattr(files.os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    files.write(tmp_path / "a", "1")
    assert done == ["file", "rename", "folder"]
    files.also_as(tmp_path / "a", "b")
    assert done[3:] == ["rename", "folder"]

    def refused(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(files.os, "link", refused)
    files.also_as(tmp_path / "a", "c")
    assert done[5:] == ["file", "rename", "folder"]
    assert [(tmp_path / name).read_text() for name in "abc"] == ["1"] * 3 and len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("operation", ["replace", "fsync"])
def test_a_second_name_that_cannot_be_given_is_said(tmp_path, monkeypatch, operation):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.write(tmp_path / "a", "1")
    monkeypatch.setattr(files.os, operation, full)
    with pytest.raises(UserError, match=r"cannot write .*b: .*No space left on device"):
        files.also_as(tmp_path / "a", "b")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_disk_that_flushes_no_folders_will_do(tmp_path, monkeypatch, code, passes):
    fsync = os.fsync

    def flushed(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", flushed)
    if passes:
        files.write(tmp_path / "a", "1")
    else:
        with pytest.raises(UserError, match=r"cannot write .*a: "):
            files.write(tmp_path / "a", "1")
