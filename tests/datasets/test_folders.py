"""Image folders that are not what they look like: understood, or refused in a sentence; against zipfile, PIL and os."""

import os
import shutil
import subprocess
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import FORKS, classes, picture, read, rows, save, zipped
from PIL import Image, ImageOps
from sklearn.model_selection import StratifiedShuffleSplit

from aavae.datasets import Split, checked, decode, downloads, layout, seeded_split, store, stratified_split
from aavae.datasets.folder import ImageFolder, ImageNet
from aavae.errors import UserError


def loaded(path, **settings):
    return ImageFolder(path, **{"image_size": 12} | settings).load()


def sizes(data):
    return {name: len(data[name]) for name in ("train", "val", "test")}


# ---- Parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"), ("TRAIN", "TEST"), ("Training", "Testing"), ("training_set", "test_set"),
        ("trainingSet", "testSet"), ("train_images", "test_images"), ("train", "Test-Data"),
    ],
)  # fmt: skip
def test_parts_in_any_spelling_are_parts(tmp_path, train, test):
    data = loaded(save(tmp_path, classes(f"{train}/", 10) + classes(f"{test}/", 2)))
    assert data.classes == ["cat", "dog"] and sizes(data) == {"train": 18, "val": 2, "test": 4}
    assert rows(data["test"].images) == rows([read(p) for p in (tmp_path / test).glob("*/*")])


@pytest.mark.parametrize("val", ["val", "Val", "valid", "validation", "Validation", "eval", "dev", "val_set", "VALID"])
def test_validation_in_any_spelling_is_validation(tmp_path, val):
    data = loaded(save(tmp_path, classes("train/", 10) + classes(f"{val}/", 3)))
    assert data.classes == ["cat", "dog"] and len(data["val"]) == 6
    assert rows(data["val"].images) == rows([read(p) for p in (tmp_path / val).glob("*/*")])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (classes("seg_train/", 5) + classes("seg_test/", 5), ["seg_train/", "seg_test/"]),
        (["trainA/1.png", "trainB/1.png", "testA/1.png", "testB/1.png"], ["trainA/", "testB/"]),
        (["train2017/1.png", "val2017/1.png"], ["train2017/", "val2017/"]),
        (classes("train/", 5) + classes("val/", 2) + classes("Validation/", 2), ["val/", "Validation/"]),
        (classes("test/", 5) + classes("", 5), ["test/", "cat/"]),
        (classes("train/", 5) + classes("", 5), ["train/", "cat/"]),
        (classes("Testing/", 5), ["Testing/", "train/"]),
        (["cat/train/1.png", "cat/test/2.png", "dog/train/1.png", "dog/test/2.png"], ["cat/train/", "test/cat/"]),
        (classes("train/", 5) + classes("test/", 5) + ["test/loose.png"], ["test", "loose.png"]),
        (classes("train/", 5) + classes("test/", 5) + ["cover.png"], ["train/", "loose images (cover.png)"]),
        ([*classes("", 5), "cat/val/1.png", "dog/val/2.png"], ["cat/val/", "val/cat/"]),
        ([*classes("train/", 5), "train/cat/test/1.png"], ["cat/test/", "test/cat/"]),
        (classes("data/train/", 5) + classes("data/test/", 5) + ["cover.png"], ["data/train/", "dataset.path="]),
        ([f"{kind}/{i}.png" for kind in ("images", "masks") for i in range(5)], ["images/ beside masks/"]),
        ([f"{i}/1.png" for i in range(30)], ["30 in 30 classes", "one folder"]),
    ],
    ids=[
        "seg_", "cyclegan", "coco", "twice", "test beside classes", "train beside classes", "test", "inside", "loose",
        "loose beside parts", "val inside", "test inside train", "wrapped parts", "masks", "one image a class",
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused_and_named(tmp_path, names, said):
    with pytest.raises(UserError) as error:
        loaded(save(tmp_path, names))
    assert all(words in str(error.value) for words in said) and "\n" not in str(error.value)


def test_parts_that_are_wrapped_in_themselves_are_unwrapped(tmp_path):
    data = loaded(save(tmp_path, classes("train/train/", 10) + classes("test/test/", 2)))
    assert data.classes == ["cat", "dog"] and sizes(data) == {"train": 18, "val": 2, "test": 4}


@pytest.mark.parametrize("wrapped", ["", "test/", "unknown/"])
def test_a_test_part_without_classes_is_left_out_and_said(tmp_path, capsys, wrapped):
    save(tmp_path, classes("train/", 20) + [f"test/{wrapped}{i}.png" for i in range(7)])
    data = loaded(tmp_path)
    assert data.classes == ["cat", "dog"] and sizes(data) == {"train": 33, "val": 3, "test": 4}
    assert not {*rows([read(p) for p in tmp_path.glob("test/**/*.png")])} & {
        row for split in data.splits.values() for row in rows(split.images)
    }
    assert "not used: 7 images of the test part, which have no classes" in capsys.readouterr().out


def test_one_class_is_none(tmp_path, capsys):
    data = loaded(save(tmp_path, classes("", 20, ["cat"])))
    assert not data.labelled and "one class folder only, cat/" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["", "train/"])
def test_folders_within_classes_are_said(tmp_path, capsys, part):
    data = loaded(save(tmp_path, [n for fold in ("fold1/", "fold2/") for n in classes(f"{part}{fold}", 10)]))
    assert data.classes == ["fold1", "fold2"]
    assert "folders within, such as fold1/cat/, are not told apart" in capsys.readouterr().out
    save(tmp_path / "tiny", [f"train/{c}/images/{i}.png" for c in ("a", "b") for i in range(10)])
    assert loaded(tmp_path / "tiny").classes == ["a", "b"] and "within" not in capsys.readouterr().out


def test_loose_images_beside_folders_are_said(tmp_path, capsys):
    loaded(save(tmp_path, [*classes(""), "cover.png"]))
    assert "1 loose images (cover.png)" in capsys.readouterr().out


# ---- Zips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["data/photos/", "a/b/c/d/"])
@pytest.mark.parametrize("parts", [("",), ("Train/", "Test/")])
def test_a_zip_wrapped_as_often_as_one_likes_is_unwrapped(tmp_path, prefix, parts):
    source = save(tmp_path / "images", [name for part in parts for name in classes(part)])
    data = loaded(zipped(source, tmp_path / "a.zip", prefix))
    assert data.classes == ["cat", "dog"] and data.fingerprint() == loaded(source).fingerprint()


def test_a_zip_with_backslashes_has_folders(tmp_path):
    source = save(tmp_path / "images", classes("train/") + classes("test/"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(source.rglob("*.png")):
            archive.writestr(str(file.relative_to(source)).replace("/", "\\"), file.read_bytes())
    for in_memory in (True, False):
        data, expected = (loaded(p, in_memory=in_memory, workers=0) for p in (tmp_path / "a.zip", source))
        assert data.classes == ["cat", "dog"] and data.fingerprint() == expected.fingerprint()


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "FILE_LIMIT", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bmp", bytes(10**6))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match=r"bomb\.bmp in .* takes 0\.0 GB, more than"):
        store.Store(tmp_path / "a.zip").open("bomb.bmp")


def test_an_encrypted_zip_says_so(tmp_path):
    content = bytearray(zipped(save(tmp_path / "i", ["a.png"]), tmp_path / "a.zip").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png.* is encrypted"):
        store.Store(tmp_path / "a.zip").open("a.png")


# ---- Each real file once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parent", "self", "around", "folder twice", "file", "hard link"])
def test_a_link_does_not_multiply_images(tmp_path, capsys, kind):
    root = save(tmp_path / "images", classes(""))
    if kind == "parent":
        (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    elif kind == "self":
        (root / "again").symlink_to(".", target_is_directory=True)
    elif kind == "around":
        (root / "around").symlink_to(tmp_path, target_is_directory=True)
    elif kind == "folder twice":
        (root / "a cat").symlink_to(root / "cat", target_is_directory=True)
    elif kind == "file":
        (root / "dog" / "0.png").symlink_to(root / "cat" / "00.png")
    else:
        os.link(root / "cat" / "00.png", root / "dog" / "0.png")
    data = loaded(root)
    assert data.classes == ["cat", "dog"] and sum(sizes(data).values()) == 40
    assert sorted(rows(torch.cat([data[s].images for s in sizes(data)]))) == rows([read(root / n) for n in classes("")])
    assert "1 links to" in capsys.readouterr().out


def test_a_folder_of_links_is_a_folder_of_images(tmp_path):
    save(tmp_path / "all", [f"{i}.png" for i in range(40)])
    for i in range(40):
        link = tmp_path / "sorted" / ("cat" if i % 2 else "dog") / f"{i}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "all" / f"{i}.png")
    assert sum(sizes(loaded(tmp_path / "sorted")).values()) == 40


def test_pipes_broken_links_and_names_that_are_no_text(tmp_path, capsys):
    root = save(tmp_path / "images", classes(""))
    os.mkfifo(root / "cat" / "x.png")
    (root / "cat" / "y.png").symlink_to(tmp_path / "nowhere")
    strange = os.fsencode(str(root / "dog")) + b"/\xff.png"
    os.rename(os.fsencode(str(root / "dog" / "00.png")), strange)
    for in_memory in (True, False):
        data = loaded(root, in_memory=in_memory, workers=0)
        assert sum(sizes(data).values()) == 40 and data.fingerprint()
    said = capsys.readouterr().out
    assert "1 no regular files" in said and "1 broken links" in said
    Path(os.fsdecode(strange)).write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        loaded(root)
    assert r"dog/\xff.png" in str(error.value).encode().decode()


def test_a_class_whose_name_is_no_text_can_be_printed(tmp_path):
    save(tmp_path, classes("", 10, ["cat", "dog", "two\nlines"]))
    os.rename(tmp_path / "dog", os.fsencode(str(tmp_path)) + b"/h\xfcnd")
    data = loaded(tmp_path)
    assert [name.encode() for name in data.classes] == [b"cat", rb"h\xfcnd", rb"two\nlines"]


@pytest.fixture
def nobody():
    """A folder that anyone may enter; what follows runs as a user whom permissions bind."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    as_root = os.geteuid() == 0
    if as_root:
        loaded(save(folder / "warm", classes("")))  # imports lie where nobody else may read
        os.seteuid(65534)
    yield folder
    if as_root:
        os.seteuid(0)
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("locked", "mode"), [("dog", 0), ("dog", 0o444), (".", 0), ("dog/sub", 0), ("dog/00.png", 0)], ids=str
)
def test_what_may_not_be_read_is_named_and_never_left_out_unsaid(nobody, locked, mode):
    root = save(nobody / "images", [*classes(""), "dog/sub/1.png"])
    (root / locked).chmod(mode)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)") as error:
        loaded(root)
    assert str(error.value).startswith("the image dog/00.png" if mode == 0 and "png" in locked else str(root / locked))
    (root / locked).chmod(0)
    with pytest.raises(UserError, match=r"cannot be read \(.*Permission denied"):
        loaded(root / locked / "a.zip" if (root / locked).is_dir() else root)


def test_what_is_passed_over_is_said_once_with_counts(tmp_path, capsys):
    save(tmp_path, classes(""))
    for name in ("horse/1.heic", "horse/2.heic", "cat/a.avif", "dog/.hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    (tmp_path / "cow").mkdir()
    loaded(tmp_path)
    out = capsys.readouterr().out
    assert out.count("passed over: 1 .avif, 2 .heic, 1 .txt, 1 hidden\n") == 1
    assert out.count("folders without images: cow/, horse/\n") == 1


def test_archives_are_named_and_litter_is_no_class(tmp_path, capsys):
    save(tmp_path / "images", [*classes(""), "@eaDir/1.png", "$RECYCLE.BIN/1.png", "lost+found/1.png"])
    (tmp_path / "images" / "more.zip").write_bytes(b"PK")
    assert loaded(tmp_path / "images").classes == ["cat", "dog"]
    assert "not opened: more.zip; unpack archives" in capsys.readouterr().out
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"holds no images.*not opened: photos\.zip; .* give the path of one zip"):
        loaded(tmp_path / "only")


# ---- Pixels -------------------------------------------------------------------------------------------------------


def opened(tmp_path, name="a.tif"):
    return np.asarray(store.Store(tmp_path).open(name))


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "32-bit floats"), (np.int32, "32-bit integers")])
def test_floats_and_long_integers_are_refused_not_clipped(tmp_path, dtype, kind):
    Image.fromarray(np.arange(144).reshape(12, 12).astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif .*holds {kind}.*8 or 16 bits"):
        opened(tmp_path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_either_byte_order_are_scaled(tmp_path, order):
    deep = np.arange(0, 65536, 257).astype(f"{order}u2").reshape(16, 16)
    mode = "I;16" if order == "<" else "I;16B"
    Image.frombytes(mode, (16, 16), deep.tobytes()).save(tmp_path / "a.tif")
    assert np.abs(opened(tmp_path)[..., 1].astype(int) - deep // 257).max() <= 1


def test_a_deep_pgm_and_a_deep_colour_png_are_scaled(tmp_path):
    deep = np.arange(0, 65536, 257).astype(">u2").reshape(16, 16)
    (tmp_path / "a.ppm").write_bytes(b"P5 16 16 65535\n" + deep.tobytes())
    assert np.abs(opened(tmp_path, "a.ppm")[..., 0].astype(int) - deep // 257).max() <= 1
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "b.png").write_bytes(png)
    assert np.abs(opened(tmp_path, "b.png").astype(int) - (deep // 257)[..., None]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_in_memory_and_streamed(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(20):
        picture(i, 16, 24).save(tmp_path / f"{i:02d}.png", exif=exif)
    with Image.open(tmp_path / "00.png") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(opened(tmp_path, "00.png"), np.asarray(expected))
    there, streamed = (loaded(tmp_path, in_memory=m, workers=0) for m in (True, False))
    assert torch.equal(torch.cat([*streamed["pretrain"].batches(9)]), there["pretrain"].images)


def test_large_images_are_read_up_to_a_limit_that_is_named(tmp_path, monkeypatch):
    Image.new("1", (15_000, 12_100), 1).save(tmp_path / "a.png")  # 181.5 megapixels: PIL alone refuses
    assert decode.rgb((tmp_path / "a.png").read_bytes()).size == (15_000, 12_100)
    monkeypatch.setattr(decode, "LIMIT", 100)
    with pytest.raises(UserError, match=r"a\.png .*has 182 megapixels \(15,000×12,100\)"):
        opened(tmp_path, "a.png")


# ---- Stratified ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_image_that_is_all_but_a_line_or_nothing_is_refused(tmp_path, in_memory):
    root = save(tmp_path, classes(""))
    Image.new("RGB", (1201, 12)).save(root / "cat" / "line.png")
    Image.new("RGB", (1200, 12)).save(root / "cat" / "long.png")
    (root / "dog" / "empty.jpg").write_bytes(b"")
    with pytest.raises(UserError) as error:
        loaded(root, in_memory=in_memory, workers=0)
    said = str(error.value)
    assert "2 images" in said and "cat/line.png is 1,201×12 pixels" in said and "dog/empty.jpg is empty" in said


def test_splits_are_stratified_as_scikit_learn_does():
    labels = torch.from_numpy(np.random.default_rng(0).choice(5, 1000, p=[0.5, 0.25, 0.15, 0.06, 0.04]))
    kept, held = stratified_split(labels, 100)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(1000))
    (_, oracle) = next(StratifiedShuffleSplit(1, test_size=100, random_state=0).split(labels, labels))
    difference = labels[held].bincount(minlength=5) - labels[oracle].bincount(minlength=5)
    assert difference.abs().max() <= 1 and len(held) == 100
    assert stratified_split(labels, 100)[1].tolist() == held.tolist()


def test_rare_classes_are_in_every_split_as_far_as_they_reach(tmp_path, capsys):
    names = classes("", 100, ["cat"]) + classes("", 3, ["three"]) + classes("", 2, ["two"]) + classes("", 1, ["one"])
    data = loaded(save(tmp_path, names))
    counts = {part: Counter(data.classes[i] for i in data[part].labels.tolist()) for part in sizes(data)}
    assert {part: c["three"] for part, c in counts.items()} == {"train": 1, "val": 1, "test": 1}
    assert {part: c["two"] for part, c in counts.items()} == {"train": 1, "val": 0, "test": 1}
    assert {part: c["one"] for part, c in counts.items()} == {"train": 1, "val": 0, "test": 0}
    assert "2 of 4 classes have no val images: one, two" in capsys.readouterr().out


def test_cifar_keeps_its_official_split(tmp_path):
    names = [f"{i}" for i in range(10)]
    data = downloads.CIFAR10(path=str(save(tmp_path, classes("Train/", 4, names) + classes("Test/", 1, names)))).load()
    labels = torch.arange(10).repeat_interleave(4)
    assert data["val"].labels.tolist() == labels[seeded_split(40, 36)[1]].tolist()


# ---- Fingerprints -------------------------------------------------------------------------------------------------


def test_a_fingerprint_sees_every_byte_of_every_image():
    images = torch.zeros(5000, 3, 4, 4, dtype=torch.uint8)
    seen = {Split(images).fingerprint()}
    for i in (0, 1, 2, 7, 4093, 4999):
        changed = images.clone()
        changed[i, 2, 3, 3] = 1
        seen.add(Split(changed).fingerprint())
    assert len(seen) == 7


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_streamed_fingerprint_sees_content_and_folder_and_zip_agree(tmp_path, kind):
    def fingerprint(root, **settings):
        path = root if kind == "folder" else zipped(root, tmp_path / f"{root.name}.zip")
        return loaded(path, in_memory=False, workers=0, **settings).fingerprint()

    one = save(tmp_path / "one", [f"{i}.bmp" for i in range(20)])
    before, unchecked = fingerprint(one), fingerprint(one, check=False)
    assert before == loaded(one, in_memory=False, workers=0).fingerprint()
    assert before.startswith(unchecked) and len(before) == 16
    content = bytearray((one / "7.bmp").read_bytes())
    content[-1] ^= 1
    (one / "7.bmp").write_bytes(content)  # of the same size
    assert fingerprint(one) != before


# ---- Images that cannot be used -----------------------------------------------------------------------------------


def spoil(root, *names):
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:100])


@FORKS
@pytest.mark.parametrize("kind", ["memory", "streamed", "zip"])
def test_all_bad_images_are_named_before_the_first_step_or_skipped(tmp_path, capsys, kind):
    root = save(tmp_path / "images", classes("train/") + classes("test/", 3))
    spoil(root, "train/cat/03.png", "test/dog/01.png")
    path = zipped(root, tmp_path / "a.zip") if kind == "zip" else root
    settings = {"in_memory": kind == "memory", "workers": 0}
    with pytest.raises(UserError, match=r"dataset\.on_error=skip") as error:
        loaded(path, **settings)
    assert "cat/03.png" in str(error.value) and "\n" not in str(error.value)
    data = loaded(path, on_error="skip", **settings)
    said = capsys.readouterr().out
    assert "cat/03.png" in said and "dog/01.png" in said and "left out" in said
    assert len(data["test"]) == 5 and data["test"].labels.tolist() == [0, 0, 0, 1, 1]
    assert len(data["train"]) + len(data["val"]) == 39
    assert len(torch.cat([*data["train"].batches(8)])) == len(data["train"].labels)


def test_a_long_check_is_remembered_until_the_files_change(tmp_path, monkeypatch, capsys):
    root = save(tmp_path / "images", classes(""))
    spoil(root, "dog/05.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "WORTH", 0.0)
    settings = {"in_memory": False, "workers": 0, "on_error": "skip", "mean": [0.5] * 3, "std": [0.2] * 3}
    first = loaded(root, **settings)
    with monkeypatch.context() as m:
        m.setattr(decode, "rgb", lambda content: pytest.fail("opened again"))
        second = loaded(root, **settings)
    assert first.fingerprint() == second.fingerprint() and sizes(first) == sizes(second)
    assert capsys.readouterr().out.count("dog/05.png") == 2
    spoil(root, "cat/05.png")
    assert sum(sizes(loaded(root, **settings)).values()) == 38
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(b"damaged")
    assert sum(sizes(loaded(root, **settings)).values()) == 38


def test_without_a_check_the_first_step_comes_sooner(tmp_path, monkeypatch):
    root = save(tmp_path, classes(""))
    spoil(root, "dog/05.png")
    data = loaded(root, in_memory=False, workers=0, check=False, mean=[0.5] * 3, std=[0.2] * 3)
    with pytest.raises(UserError, match=r"dog/05\.png.*put an undamaged copy"):
        for part in sizes(data):
            list(data[part].batches(8))
    with pytest.raises(UserError, match=r"dataset\.check"):
        ImageFolder(root, in_memory=False, check=False, on_error="skip")
    with pytest.raises(UserError, match=r"dataset\.on_error must be fail or skip"):
        ImageNet(root, on_error="ignore")


def test_layout_of_many_names_is_pure():
    names = classes("x/y/train/", 3) + classes("x/y/dev/", 3)
    prefix = layout.common_folder(names)
    found = layout.layout([n.removeprefix(prefix) for n in names])
    assert prefix == "x/y/" and found.classes == ["cat", "dog"] and {*found.parts} == {"train", "val"}


# ---- A run on images that are not all whole -----------------------------------------------------------------------

RUN = (
    "dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "dataset.workers=0", "batch_size=4",
    "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=4", "epochs=1", "trainer.validate_every=0", "probe=[]",
    "hydra.run.dir=run",
)  # fmt: skip


@pytest.mark.slow
@FORKS
@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_a_damaged_image_has_ways_out_that_lead_somewhere(tmp_path, train, in_memory):
    command = [*RUN, f"dataset.in_memory={in_memory}"]
    spoil(save(tmp_path / "photos", classes("")), "dog/05.png")
    ended = train(*command)
    assert ended.code == 2 and "dog/05.png" in ended.err and not Path("run").exists()
    stopped = train(*command, "dataset.on_error=skip", "trainer.max_steps=2")
    assert stopped.code == 0 and "left out    1 image that cannot be used: dog/05.png" in stopped.out
    went_on = train(*command, "dataset.on_error=skip")
    assert went_on.code == 0 and "from step 2" in went_on.out
    (tmp_path / "photos" / "dog" / "05.png").unlink()  # what was left out is gone: the same images
    assert "is finished" in train(*command).out
    (tmp_path / "photos" / "dog" / "06.png").unlink()
    ended = train(*command)
    assert ended.code == 2 and "resume=never" in ended.err and "put back what was removed" in ended.err
    assert train(*command, "resume=never").code == 0


def test_a_run_that_has_taken_no_step_may_be_given_other_images(tmp_path, train):
    save(tmp_path / "photos", classes(""))
    assert train(*RUN, "trainer.max_steps=0").code == 0
    (tmp_path / "photos" / "dog" / "06.png").unlink()
    ended = train(*RUN, "trainer.max_steps=1")
    assert ended.code == 0, ended.err
