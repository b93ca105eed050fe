"""Datasets against torchvision, scikit-learn, PIL and numpy."""

import hashlib
import io
import multiprocessing
import pickle
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from image_files import FORKS, classes, picture, read, rows, save, zipped
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import transforms

from aavae.augmentations.crops import crop_boxes, crop_draws
from aavae.datasets import downloads, folder, seeded_split, to_float, to_uint8
from aavae.datasets.digits import Digits
from aavae.datasets.downloads import CIFAR10, STL10
from aavae.datasets.folder import ImageFolder, ImageNet
from aavae.datasets.synthetic import Synthetic
from aavae.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


# ---- Splits and the base class ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "first", "train", "val"),
    [
        (50_000, 45_000, [37542, 44491, 216, 43688], [17408, 40845, 3378, 22188]),
        (100_000, 95_000, [37542, 60279, 68544], []),
        (5_000, 4_500, [2542, 430, 846], []),
    ],
)
def test_split_is_torchs_random_split_with_the_papers_fingerprint(n, first, train, val):
    kept, held = seeded_split(n, first)
    oracle = torch.utils.data.random_split(range(n), [first, n - first], torch.Generator().manual_seed(42))
    assert [kept.tolist(), held.tolist()] == [part.indices for part in oracle]
    assert kept[: len(train)].tolist() == train
    assert held[: len(val)].tolist() == val


def test_split_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    seeded_split(100, 90)
    assert torch.equal(torch.get_rng_state(), before)


def test_normalize_equals_torchvision():
    data, images = Synthetic(), torch.rand(2, 3, 16, 16)
    expected = transforms.Normalize(data.mean, data.std)(images)
    torch.testing.assert_close(data.normalize(images), expected)
    torch.testing.assert_close(data.denormalize(expected), images)


def test_denormalize_clamps_to_what_a_picture_can_show():
    shown = Synthetic().denormalize(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))
    assert shown.min() == 0 and shown.max() == 1


def test_uint8_survives_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values).dtype == torch.float32 and to_float(values).max() == 1


def test_images_are_read_once():
    data = Synthetic()
    assert data["train"] is data.load()["train"] is data["pretrain"]


def test_batches_return_every_image_in_order():
    split = Synthetic(size=10)["train"]
    batches = list(split.batches(4))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), split.images)


def test_fingerprint_tells_pixels_labels_and_order_apart():
    split = Synthetic(size=10)["train"]
    changed = split.images.clone()
    changed[3, 0, 0, 0] ^= 1
    others = [
        type(split)(changed, split.labels),
        type(split)(split.images, split.labels.roll(1)),
        split.take(torch.arange(9, -1, -1)),
    ]
    assert len({split.fingerprint(), *(s.fingerprint() for s in others)}) == 4
    assert split.fingerprint() == type(split)(split.images.clone(), split.labels).fingerprint()


def test_synthetic_classes_differ_and_every_split_is_another_draw():
    data = Synthetic(size=40, image_size=16, num_classes=4).load()
    assert {n: len(data[n]) for n in ("pretrain", "pretrain_val", "test")} == {
        "pretrain": 40,
        "pretrain_val": 20,
        "test": 20,
    }
    assert data["train"].labels.bincount().tolist() == [10] * 4
    assert not set(rows(data["train"].images)) & set(rows(data["test"].images))
    assert not torch.equal(data["val"].images, data["test"].images)


@pytest.mark.parametrize("wrong", [{"size": 3}, {"image_size": 0}, {"num_classes": 0}])
def test_synthetic_refuses(wrong):
    with pytest.raises(UserError, match=f"dataset.{next(iter(wrong))}"):
        Synthetic(**wrong)


# ---- Digits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


def enlarged_digits():
    """PIL's bilinear filter on float images: no code of ours or torch's."""
    images = [Image.fromarray((d / 16 * 255).astype(np.float32)).resize((16, 16), 2) for d in load_digits().images]
    return np.stack([np.asarray(i) for i in images])


def test_digits_are_1297_200_300_of_uint8(digits):
    assert [len(digits[s]) for s in ("train", "val", "test")] == [1297, 200, 300]
    for split in digits.splits.values():
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1:] == (3, 16, 16)


def test_digits_are_scikit_learns_enlarged_bilinearly_and_none_is_lost(digits):
    ours = np.concatenate([digits[s].images.numpy() for s in ("train", "val", "test")])
    assert (ours[:, :1] == ours).all()
    oracle = enlarged_digits()
    # Neither order is known to the other: match by nearest image, within the rounding to uint8.
    ours, oracle = ours[:, 0].reshape(1797, -1).astype(np.float32), oracle.reshape(1797, -1)
    distance = torch.cdist(torch.from_numpy(ours), torch.from_numpy(oracle), p=float("inf"))
    nearest = distance.argmin(1)
    assert len(nearest.unique()) == 1797
    assert distance.amin(1).max() <= 0.51
    labels = torch.cat([digits[s].labels for s in ("train", "val", "test")])
    assert torch.equal(torch.from_numpy(load_digits().target)[nearest], labels)


def test_digits_splits_are_stratified(digits):
    total = np.bincount(load_digits().target)
    for name in ("train", "val", "test"):
        labels = digits[name].labels
        expected = total * len(labels) / total.sum()
        assert np.abs(labels.bincount(minlength=10).numpy() - expected).max() < 1.5


def test_digits_constants_are_those_of_the_training_images(digits):
    pixels = digits["train"].images.numpy() / 255
    assert digits.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-3)
    assert digits.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-3)


def test_digits_split_is_always_the_same(digits):
    torch.manual_seed(5)
    assert Digits().load().fingerprint() == digits.fingerprint()


# ---- CIFAR-10 -----------------------------------------------------------------------------------------------------


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """Torchvision's layout with 20 images a batch, torchvision told their checksums."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, 20).tolist()}
        (base / name).write_bytes(pickle.dumps(batch))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    kind = torchvision.datasets.CIFAR10
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[n, md5(base / n)] for n, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(base / "batches.meta")})
    return tmp_path


@pytest.mark.parametrize("argument", ["data_dir", "path"])
def test_cifar_equals_torchvision_split_by_random_split(cifar_folder, argument):
    data = CIFAR10(**{argument: str(cifar_folder)}).load()
    whole, test = (torchvision.datasets.CIFAR10(cifar_folder, train=t) for t in (True, False))
    train, val = torch.utils.data.random_split(whole, [90, 10], torch.Generator().manual_seed(42))
    for name, oracle in {"pretrain": train, "train": train, "pretrain_val": val, "val": val, "test": test}.items():
        images, labels = zip(*oracle, strict=True)
        assert torch.equal(data[name].images, torch.stack([transforms.PILToTensor()(i) for i in images])), name
        assert data[name].labels.tolist() == list(labels), name
    assert data["pretrain"].images.is_contiguous()


def test_cifar_constants_are_the_papers():
    assert CIFAR10.mean == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert CIFAR10.std == pytest.approx((0.2471, 0.2435, 0.2616), abs=1e-4)


def test_damaged_cifar_says_so_and_names_the_folder(cifar_folder):
    batch = cifar_folder / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"cifar-10-batches-py is damaged.*dataset.path=") as error:
        CIFAR10(str(cifar_folder)).load()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def png_zip():
    path = SHARED / "data" / "cifar10-png-6k.zip"
    if not path.exists():
        pytest.skip("../shared/data/cifar10-png-6k.zip is not here")
    return path


@pytest.fixture(scope="module")
def cifar_from_zip(png_zip):
    return CIFAR10(path=str(png_zip)).load()


def test_cifar_from_a_zip_has_the_facts_and_sizes(cifar_from_zip):
    assert [len(cifar_from_zip[s]) for s in ("pretrain", "pretrain_val", "train", "val", "test")] == [
        4500, 500, 4500, 500, 1000,
    ]  # fmt: skip
    assert cifar_from_zip.num_classes == 10 and cifar_from_zip.mean == CIFAR10.mean


def test_cifar_from_a_zip_holds_pils_pixels_under_torchvisions_labels(cifar_from_zip, png_zip):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    ours = {}
    for part in ("train", "val", "test"):
        for image, label in zip(cifar_from_zip[part].images, cifar_from_zip[part].labels.tolist(), strict=True):
            ours[image.numpy().tobytes()] = (label, part == "test")
    with zipfile.ZipFile(png_zip) as archive:
        for name in archive.namelist()[::60]:
            part, label, _ = name.split("/")
            assert ours[read(io.BytesIO(archive.read(name))).numpy().tobytes()] == (names.index(label), part == "test")


@pytest.mark.slow
def test_cifar_from_an_unpacked_folder_is_the_same(cifar_from_zip, png_zip, tmp_path):
    with zipfile.ZipFile(png_zip) as archive:
        archive.extractall(tmp_path)
    assert CIFAR10(path=str(tmp_path)).load().fingerprint() == cifar_from_zip.fingerprint()


@pytest.mark.parametrize("names", [classes("train/") + classes("test/"), classes("")], ids=["2 classes", "no test"])
def test_cifar_refuses_another_layout(tmp_path, names):
    with pytest.raises(UserError, match=r"10 classes.*dataset=image_folder"):
        CIFAR10(path=str(save(tmp_path, names))).load()


@pytest.mark.parametrize("kind", [CIFAR10, STL10])
def test_what_fits_in_memory_refuses_to_stream(kind):
    with pytest.raises(UserError, match="in_memory"):
        kind(in_memory=False)


# ---- STL-10 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stl_folder(tmp_path, monkeypatch):
    """Torchvision's binaries with 40 unlabelled, 20 labelled and 10 test images, torchvision told their checksums."""
    base = tmp_path / "stl10_binary"
    base.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("unlabeled", 40), ("train", 20), ("test", 10)):
        (base / f"{part}_X.bin").write_bytes(rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tobytes())
        (base / f"{part}_y.bin").write_bytes(rng.integers(1, 11, n, dtype=np.uint8).tobytes())
    kind = torchvision.datasets.STL10
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[n, md5(base / n)] for n, _ in getattr(kind, attribute)])
    return tmp_path


def test_stl_equals_torchvision_split_by_random_split(stl_folder):
    data = STL10(str(stl_folder)).load()

    def oracle(split):
        return torchvision.datasets.STL10(stl_folder, split=split)

    def halves(whole):
        n = len(whole) // (20 if whole.split == "unlabeled" else 10)
        return torch.utils.data.random_split(whole, [len(whole) - n, n], torch.Generator().manual_seed(42))

    expected = dict(zip(("pretrain", "pretrain_val"), halves(oracle("unlabeled")), strict=True))
    expected |= dict(zip(("train", "val"), halves(oracle("train")), strict=True)) | {"test": oracle("test")}
    assert set(data.splits) == set(expected)
    for name, subset in expected.items():
        images, labels = zip(*subset, strict=True)
        assert torch.equal(data[name].images, torch.stack([transforms.PILToTensor()(i) for i in images])), name
        if name.startswith("pretrain"):
            assert data[name].labels is None
        else:
            assert data[name].labels.tolist() == list(labels), name


def test_damaged_stl_says_so(stl_folder):
    (stl_folder / "stl10_binary" / "test_y.bin").write_bytes(b"\x01")
    with pytest.raises(UserError, match=r"stl10_binary is damaged"):
        STL10(path=str(stl_folder)).load()


def test_stl_target_is_torchvisions_resize_105_and_center_crop_96():
    """Of 8-bit images, as the released code transformed them, to the last level: `bpd_8bit` counts levels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(96, 96), mode="bicubic").clamp(0, 1)
    rough = torch.rand(4, 3, 96, 96, generator=generator)
    images = (torch.cat([smooth, rough]) * 255).round().to(torch.uint8)
    released = transforms.Compose([transforms.Resize(105), transforms.CenterCrop(96), transforms.PILToTensor()])
    expected = torch.stack([released(transforms.ToPILImage()(image)) for image in images])
    target = STL10().target(to_float(images))
    levels = (target * 255).round()
    torch.testing.assert_close(target * 255, levels, rtol=0, atol=1e-4)
    assert torch.equal(levels, expected.float())


def test_stl_raw_target_is_the_image():
    images = torch.rand(2, 3, 96, 96)
    assert torch.equal(STL10(target_transform="raw").target(images), images)


def test_stl_refuses_an_unknown_target():
    with pytest.raises(UserError, match="official or raw"):
        STL10(target_transform="cropped")


# ---- Downloads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize(("kind", "present"), [(CIFAR10, "cifar-10-batches-py"), (STL10, "stl10_binary")])
@pytest.mark.parametrize("exists", [True, False], ids=["folder", "no folder"])
def test_no_network_and_no_data_is_one_sentence_and_leaves_nothing(tmp_path, no_network, capsys, kind, present, exists):
    root = tmp_path / "data"
    if exists:
        root.mkdir()
    with pytest.raises(UserError) as error:
        kind(str(root)).load()
    for words in (str(root / present), "no route to host", "dataset.path=", "dataset=digits"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.rglob("*")) == ([root] if exists else [])
    assert capsys.readouterr() == (f"{kind.__name__} is not in {root}; downloading it, once\n", "")


def test_no_network_leaves_no_parent_folders(tmp_path, no_network):
    with pytest.raises(UserError):
        CIFAR10(str(tmp_path / "a" / "b")).load()
    assert list(tmp_path.iterdir()) == []


def test_data_dir_that_cannot_be_made_is_a_user_error(tmp_path, no_network):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"dataset\.path="):
        CIFAR10(str(tmp_path / "file" / "data")).load()


def test_broken_download_leaves_no_half_file(tmp_path, monkeypatch):
    class Half(io.BytesIO):
        url, length = None, 100

        def read(self, size):
            if self.tell() == 4:
                raise ConnectionResetError("connection lost")
            return super().read(4)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: Half(b"half"))
    with pytest.raises(UserError, match="connection lost"):
        CIFAR10(str(tmp_path)).load()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unpacking", [False, True], ids=["downloading", "unpacking"])
def test_second_process_waits_until_the_first_has_downloaded(tmp_path, monkeypatch, unpacking):
    halfway, go_on, downloads_made = threading.Event(), threading.Event(), []

    class Slow:
        """Torchvision's contract: complain about incomplete data unless asked to download what is missing."""

        def __init__(self, root, download):
            if (root / "slow" / "complete").exists():
                return
            if not download:
                raise RuntimeError("Dataset not found or corrupted")
            downloads_made.append(threading.current_thread())
            if unpacking:
                (root / "slow").mkdir()
            halfway.set()
            assert go_on.wait(10)
            (root / "slow").mkdir(exist_ok=True)
            (root / "slow" / "complete").touch()

    monkeypatch.setattr("sys.stdout", io.StringIO())  # silenced by both threads, and restored crosswise
    monkeypatch.setattr("sys.stderr", io.StringIO())
    first = threading.Thread(target=downloads.fetch, args=(Slow, tmp_path, "slow"))
    first.start()
    assert halfway.wait(10)
    threading.Timer(0.2, go_on.set).start()
    try:
        assert isinstance(downloads.fetch(Slow, tmp_path, "slow"), Slow)
    finally:
        go_on.set()
        first.join(10)
    assert len(downloads_made) == 1


# ---- image_folder: what is found ----------------------------------------------------------------------------------


def test_class_folders_are_split_80_10_10_and_nothing_is_lost_or_doubled(tmp_path):
    data = ImageFolder(save(tmp_path, classes("", 50)), image_size=12).load()
    assert data.classes == ["cat", "dog"] and data.num_classes == 2
    assert [len(data[s]) for s in ("train", "val", "test")] == [81, 9, 10]
    assert rows(torch.cat([data[s].images for s in ("train", "val", "test")])) == rows(
        [read(p) for p in tmp_path.rglob("*.png")]
    )


def test_labels_are_the_index_of_the_class_folder(tmp_path):
    data = ImageFolder(save(tmp_path, classes("", 20)), image_size=12).load()
    label_of = {read(p).numpy().tobytes(): ["cat", "dog"].index(p.parent.name) for p in tmp_path.rglob("*.png")}
    for part in ("train", "val", "test"):
        assert [label_of[i.numpy().tobytes()] for i in data[part].images] == data[part].labels.tolist()


@pytest.mark.parametrize("held_out", ["val", "valid", "validation"])
def test_given_parts_are_kept(tmp_path, held_out):
    save(tmp_path, classes("train/", 6) + classes("test/", 2) + classes(f"{held_out}/", 3))
    data = ImageFolder(tmp_path, image_size=12).load()
    assert [len(data[s]) for s in ("pretrain", "pretrain_val", "train", "val", "test")] == [12, 6, 12, 6, 4]
    assert rows(data["test"].images) == rows([read(p) for p in tmp_path.glob("test/*/*")])


def test_train_and_test_alone_give_a_tenth_of_train_for_validation(tmp_path):
    data = ImageFolder(save(tmp_path, classes("train/", 10) + classes("test/", 2)), image_size=12).load()
    assert [len(data[s]) for s in ("train", "val", "test")] == [18, 2, 4]
    assert rows(data["test"].images) == rows([read(p) for p in tmp_path.glob("test/*/*")])


@pytest.mark.parametrize("prefix", ["", "everything/"])
@pytest.mark.parametrize("parts", [("",), ("train/", "test/")])
def test_zip_equals_folder_even_wrapped_in_a_top_folder(tmp_path, prefix, parts):
    source = save(tmp_path / "images", [name for part in parts for name in classes(part)])
    archive = zipped(source, tmp_path / "images.zip", prefix)
    data, expected = (ImageFolder(p, image_size=12).load() for p in (archive, source))
    assert data.classes == ["cat", "dog"]
    assert data.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(20)],
        [f"{i}.png" for i in range(10)] + [f"more/{i}.png" for i in range(10)],
        [f"train/{i}.png" for i in range(20)] + ["test/1.png"],
    ],
    ids=["flat", "nested", "parts"],
)
def test_unlabelled_images_give_two_splits_and_no_labels(tmp_path, names):
    data = ImageFolder(save(tmp_path, names), image_size=12).load()
    assert not data.labelled
    assert {n: len(s) for n, s in data.splits.items()} == {"pretrain": 18, "pretrain_val": 2}
    assert data["pretrain"].labels is None


def test_hidden_files_and_macos_litter_are_no_images(tmp_path):
    images = save(tmp_path / "images", classes(""))
    for litter in ("__MACOSX/cat/._1.png", "cat/._1.png", ".thumbnails/1.png", "cat/Thumbs.db", "notes.txt"):
        (images / litter).parent.mkdir(parents=True, exist_ok=True)
        (images / litter).write_text("no image")
    for path in (images, zipped(images, tmp_path / "images.zip")):
        data = ImageFolder(path, image_size=12).load()
        assert data.classes == ["cat", "dog"] and sum(len(data[s]) for s in ("train", "val", "test")) == 40


def test_extensions_in_capitals_count(tmp_path):
    save(tmp_path, ["cat/a.PNG", "dog/b.JPG", "dog/c.Jpeg"])
    assert len(ImageFolder(tmp_path, image_size=12).store.names) == 3


def test_linked_folders_are_followed(tmp_path):
    save(tmp_path / "elsewhere", classes(""))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert ImageFolder(tmp_path / "images", image_size=12).classes == ["cat", "dog"]


def test_a_class_may_be_called_train(tmp_path):
    assert ImageFolder(save(tmp_path, classes("", names=("train", "truck"))), image_size=12).classes == [
        "train",
        "truck",
    ]


def test_strangers_beside_train_and_test_do_not_put_test_images_into_training(tmp_path):
    save(tmp_path, classes("train/") + classes("test/") + ["logo.png"])
    try:
        data = ImageFolder(tmp_path, image_size=12).load()
    except UserError:
        return  # asking is as good
    test = set(rows([read(p) for p in tmp_path.glob("test/*/*")]))
    assert not test & set(rows(data["pretrain"].images))


# ---- image_folder: pixels -----------------------------------------------------------------------------------------


def test_mixed_sizes_are_resized_and_cropped_as_torchvision_does(tmp_path):
    sizes = [(16, 16), (16, 40), (40, 16), (7, 5), (33, 20)]
    for i, (height, width) in enumerate(sizes * 4):
        picture(i, height, width).save(tmp_path / f"{i:02d}.png")
    oracle = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16), transforms.PILToTensor()])
    data = ImageFolder(tmp_path, image_size=16).load()
    expected = [oracle(picture(i, *size)) for i, size in enumerate(sizes * 4)]
    assert rows([*data["pretrain"].images, *data["pretrain_val"].images]) == rows(expected)


@pytest.mark.parametrize(
    ("mode", "extension"),
    [
        ("L", "png"), ("LA", "png"), ("1", "png"), ("P", "png"), ("P", "gif"), ("RGBA", "png"), ("RGB", "bmp"),
        ("CMYK", "jpg"), ("RGB", "webp"), ("RGB", "tif"), ("RGB", "ppm"),
    ],
)  # fmt: skip
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode, extension):
    file = tmp_path / f"a.{extension}"
    picture(0, mode=mode).save(file)
    store = folder.Store(tmp_path)
    assert torch.equal(store.read(store.names, 12)[0][0], read(file))


def test_transparent_palettes_are_read_without_a_warning(tmp_path):
    picture(0).quantize(4).save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
    assert folder.Store(tmp_path).open("a.png").mode == "RGB"


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    read_back = np.asarray(folder.Store(tmp_path).open("a.png"))[..., 0]
    assert np.abs(read_back.astype(int) - deep // 257).max() <= 1


def test_photograph_with_exif_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture(0, 16, 24).save(tmp_path / "a.jpg", exif=exif)
    assert ImageFolder(tmp_path, image_size=12).store.open("a.jpg").mode == "RGB"


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    data = ImageFolder(save(tmp_path, classes("train/") + classes("test/")), image_size=12).load()
    pixels = data["train"].images.numpy() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-6)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-6)


def test_mean_and_std_given_are_kept(tmp_path):
    data = ImageFolder(save(tmp_path, classes("")), image_size=12, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]).load()
    assert (data.mean, data.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("size", "stem"), [(32, "cifar"), (64, "cifar"), (65, "stl"), (96, "stl"), (128, "stl"), (129, "imagenet")]
)
def test_stem_goes_by_size(tmp_path, size, stem):
    assert ImageFolder(save(tmp_path, ["a.png"]), image_size=size).stem == stem
    assert ImageFolder(tmp_path, image_size=size, stem="imagenet").stem == "imagenet"


# ---- image_folder: bad input --------------------------------------------------------------------------------------


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'nowhere'} does not exist"):
        ImageFolder(tmp_path / "nowhere")


def test_no_path_at_all_says_which_key():
    with pytest.raises(UserError, match=r"dataset\.path="):
        ImageFolder()


@pytest.mark.parametrize("full", [False, True], ids=["empty", "only text"])
def test_folder_without_images_says_what_counts_as_one(tmp_path, full):
    if full:
        (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"holds no images.*\.png"):
        ImageFolder(tmp_path)


def test_zip_without_images_says_so(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="holds no images"):
        ImageFolder(zipped(tmp_path / "texts", tmp_path / "a.zip"))


def test_text_file_is_no_zip(tmp_path):
    (tmp_path / "a.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"a\.zip.*zip"):
        ImageFolder(tmp_path / "a.zip")


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tif", "webp"])
@pytest.mark.parametrize("keep", [0.0, 0.5], ids=["empty", "half"])
def test_truncated_image_is_named(tmp_path, extension, keep):
    save(tmp_path, [*classes(""), f"dog/broken.{extension}"])
    file = tmp_path / "dog" / f"broken.{extension}"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(UserError, match=rf"dog/broken\.{extension}.* is (damaged|empty)") as error:
        ImageFolder(tmp_path, image_size=12).load()
    assert "\n" not in str(error.value)


def test_image_too_large_to_be_true_is_named(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png"):
        folder.Store(tmp_path).open("bomb.png")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_damaged_zip_member_is_named(tmp_path, compression):
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "a.bmp")
    archive = zipped(tmp_path / "images", tmp_path / "a.zip", compression=compression)
    content = bytearray(archive.read_bytes())
    content[60:90] = b"\xff" * 30  # inside the member's data
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bmp"):
        folder.Store(archive).open("a.bmp")


def test_class_only_in_test_is_named(tmp_path):
    save(tmp_path, classes("train/") + classes("test/", 2, ("cat", "horse")))
    with pytest.raises(UserError, match="horse"):
        ImageFolder(tmp_path, image_size=12).load()


def test_parts_without_train_are_refused(tmp_path):
    with pytest.raises(UserError, match="train/"):
        ImageFolder(save(tmp_path, classes("test/")), image_size=12)


def test_too_few_images_to_hold_some_out(tmp_path):
    with pytest.raises(UserError, match="too few"):
        ImageFolder(save(tmp_path, classes("", 2)), image_size=12).load()


@pytest.mark.parametrize(
    "wrong", [{"image_size": 0}, {"workers": -1}, {"resize": 8, "image_size": 12}, {"mean": [0.5, 0.5, 0.5]}]
)
def test_arguments_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match=f"dataset.{next(iter(wrong))}"):
        ImageFolder(save(tmp_path, ["a.png"]), **wrong)


# ---- Streaming ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "zip"])
def mixed(request, tmp_path):
    """Two classes in 40 images of several sizes."""
    for i in range(40):
        file = tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(i, 14 + i % 5, 14 + i % 3).save(file)
    return tmp_path / "images" if request.param == "folder" else zipped(tmp_path / "images", tmp_path / "a.zip")


@FORKS
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_are_those_in_memory(mixed, workers):
    data = ImageFolder(mixed, image_size=12, in_memory=False, workers=workers).load()
    expected = ImageFolder(mixed, image_size=12).load()
    for name in ("train", "val", "test"):
        assert torch.equal(torch.cat(list(data[name].batches(7))), expected[name].images), name
        assert torch.equal(data[name].labels, expected[name].labels), name
    assert data.mean == pytest.approx(expected.mean) and data.std == pytest.approx(expected.std)
    some = torch.tensor([5, 0, 3])
    assert torch.equal(next(data["train"].take(some).batches(3)), expected["train"].take(some).images)


def test_streamed_pair_is_torchvisions_target_and_resized_crop(mixed):
    split = ImageFolder(mixed, image_size=12, in_memory=False, resize=14)["pretrain"]
    target = transforms.Compose([transforms.Resize(14), transforms.CenterCrop(12), transforms.PILToTensor()])
    draws = crop_draws(len(split), torch.Generator().manual_seed(0))
    for i, draw in enumerate(draws):
        image = split.store.open(split.names[i])
        clean, crop = split.crops(i, [draw], (0.08, 1.0), (3 / 4, 4 / 3))
        box = [int(t) for t in crop_boxes(draw[None], image.height, image.width, (0.08, 1.0), (3 / 4, 4 / 3))]
        expected = transforms.functional.resized_crop(image, *box, [12, 12])
        assert torch.equal(clean, target(image))
        assert torch.equal(crop, transforms.functional.pil_to_tensor(expected))


@FORKS
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_in_a_worker_is_the_same_sentence(tmp_path, workers):
    save(tmp_path, classes(""))
    data = ImageFolder(tmp_path, image_size=12, in_memory=False, workers=workers).load()
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError) as error:
        list(data["train"].batches(4))
    assert str(error.value).startswith("the image ") and ".png" in str(error.value)
    assert "\n" not in str(error.value)
    # Workers left to the garbage collector are waited for, five seconds each.
    assert not multiprocessing.active_children()


def test_streamed_fingerprint_changes_with_the_images(tmp_path):
    def fingerprint():
        return ImageFolder(tmp_path, image_size=12, in_memory=False, workers=0).load().fingerprint()

    save(tmp_path, classes(""))
    before = fingerprint()
    assert fingerprint() == before
    save(tmp_path, ["dog/another.png"])
    assert fingerprint() != before


# ---- ImageNet -----------------------------------------------------------------------------------------------------


@FORKS
def test_imagenet_tests_on_val_and_holds_out_a_tenth_of_train(tmp_path):
    save(tmp_path, classes("train/", 10) + classes("val/", 3), height=40, width=30)
    data = ImageNet(tmp_path, image_size=14, workers=0).load()
    assert [len(data[s]) for s in ("pretrain", "pretrain_val", "train", "val", "test")] == [18, 2, 18, 2, 6]
    oracle = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.PILToTensor()])
    expected = []
    for file in tmp_path.glob("val/*/*.png"):
        with Image.open(file) as image:
            expected.append(oracle(image))
    assert rows(torch.cat(list(data["test"].batches(4)))) == rows(expected)
    assert data["test"].labels.bincount().tolist() == [3, 3]


def test_imagenet_has_its_own_facts(tmp_path):
    data = ImageNet(save(tmp_path, classes("train/") + classes("val/", 2)))
    assert (data.image_size, data.resize, data.stem, data.in_memory) == (224, 256, "imagenet", False)
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("in_memory", [True, False])
def test_imagenet_target_does_not_depend_on_where_the_images_live(tmp_path, in_memory):
    save(tmp_path, classes("train/") + classes("val/", 2), height=40, width=30)
    data = ImageNet(tmp_path, image_size=14, in_memory=in_memory, workers=0).load()
    oracle = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.PILToTensor()])
    with Image.open(tmp_path / "val/cat/00.png") as image:
        expected = oracle(image)
    assert torch.equal(to_uint8(data.target(to_float(next(iter(data["test"].batches(1))))))[0], expected)
