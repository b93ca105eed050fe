"""What is in memory: every image once, one sample of the bound at a time, and after 10,000 steps what after ten."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from aavae import build
from aavae.datasets import downloads
from aavae.datasets.digits import Digits
from aavae.datasets.downloads import CIFAR10, STL10
from aavae.datasets.folder import ImageFolder
from aavae.datasets.synthetic import Synthetic
from aavae.loggers import Beginning, Loggers
from aavae.loggers.metrics_file import MetricsFile
from aavae.loggers.screen import Reporter
from aavae.runtime.device import pick_precision
from aavae.runtime.signals import listening
from aavae.training.loop import Loop
from aavae.training.validation import Validator

CPU = torch.device("cpu")


class Storages(TorchDispatchMode):
    """Counts the bytes behind the tensors made meanwhile that `counts` chooses, whoever holds them."""

    def __init__(self, counts=lambda tensor: True):
        super().__init__()
        self.counts = counts
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else (made,):
            if isinstance(tensor, torch.Tensor) and self.counts(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:  # a weak reference keeps the address from being given to another
                    self._known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self.note()
        return made

    def note(self) -> None:
        """Something new is in memory."""

    @property
    def live(self) -> int:
        """Bytes in memory now."""
        self._known = {where: kept for where, kept in self._known.items() if not kept[0].expired()}
        return sum(size for _, size in self._known.values())


class Peak(Storages):
    """The most there ever were, in `peak`."""

    peak = 0

    def note(self) -> None:
        self.peak = max(self.peak, self.live)


# ---- Images -------------------------------------------------------------------------------------------------------


def write_images(folder: Path, names: list[str], size: int) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def write_stl(folder: Path, unlabelled: int, labelled: int) -> Path:
    """Binaries of black images, which take no room on the disk."""
    (folder / "stl10_binary").mkdir()
    for part, n in (("unlabeled", unlabelled), ("train", labelled), ("test", labelled)):
        for kind, size in (("X", 3 * 96 * 96), ("y", 1)):
            with open(folder / "stl10_binary" / f"{part}_{kind}.bin", "wb") as file:
                file.truncate(n * size)
    return folder


@pytest.fixture
def unchecked(monkeypatch):
    """Torchvision does not compare checksums."""
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)


def cifar(folder: Path) -> tuple[CIFAR10, int]:
    names = [
        f"{part}/{c}/{i}.png" for part, n in (("train", 5), ("test", 1)) for c in CIFAR10.classes for i in range(n)
    ]
    return CIFAR10(path=str(write_images(folder, names, 32))), len(names)


def stl(folder: Path) -> tuple[STL10, int]:
    return STL10(path=str(write_stl(folder, 60, 20))), 100


def image_folder(folder: Path) -> tuple[ImageFolder, int]:
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(30)]
    return ImageFolder(str(write_images(folder, names, 16)), image_size=16, mean=[0.5] * 3, std=[0.5] * 3), 60


@pytest.mark.parametrize(
    "made", [cifar, stl, image_folder, lambda _: (Digits(), 1797), lambda _: (Synthetic(64), 128)],
    ids=["cifar10", "stl10", "image_folder", "digits", "synthetic"],
)  # fmt: skip
def test_every_image_is_on_the_device_once_and_never_was_there_twice(made, tmp_path, unchecked, monkeypatch):
    monkeypatch.setattr(downloads, "PIECE", 2)
    data, n = made(tmp_path)
    one = 3 * data.image_size**2
    with Peak(lambda tensor: tensor.is_meta and tensor.dtype == torch.uint8) as device:
        data.load("meta")
    storages = {s.images.untyped_storage()._cdata: s.images.untyped_storage().nbytes() for s in data.splits.values()}
    gc.collect()
    assert sum(storages.values()) == device.live == n * one
    assert device.peak <= (n + 3 * downloads.PIECE) * one  # of STL-10, which is sent in pieces


def test_measuring_mean_and_std_copies_two_batches_of_images_at_most(tmp_path):
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(400)]
    data = ImageFolder(str(write_images(tmp_path, names, 8)), image_size=8)
    with Peak(lambda tensor: tensor.dtype == torch.uint8) as host:
        data.load()
    assert host.peak <= (800 + 2 * 256) * 3 * 8**2


def resident(what: str) -> int:
    """Bytes of this process in memory now (VmRSS), or at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def test_stl_needs_little_more_memory_than_its_images_to_be_read(tmp_path, unchecked):
    data = STL10(path=str(write_stl(tmp_path, 7600, 200)))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from now on
    except OSError:
        pytest.skip("only Linux tells how much memory a process had at most")
    before = resident("VmRSS")
    data.load()
    assert resident("VmHWM") - before < 1.5 * 8000 * 3 * 96**2


# ---- The bound ----------------------------------------------------------------------------------------------------

SMALL = ("dataset=synthetic", "dataset.size=24", "encoder=resnet_tiny", "decoder=resnet_tiny", "latent_dim=4")
SMALL += ("schedule.warmup_epochs=0", "probe=[]")


def test_more_samples_of_the_bound_need_no_more_memory():
    cfg = build.compose([*SMALL])
    data = build.dataset(cfg).load()
    model, split = build.model(cfg, data), data["pretrain_val"]

    def peak(samples: int) -> int:
        validator = Validator(data, build.augmentation(cfg, data), samples, 0, CPU)
        with Peak() as made:
            validator.run(model, split, pick_precision("fp32", CPU))
        return made.peak

    assert peak(64) - peak(2) < 4 * split.images.numel()  # the bytes of one reconstruction of each image


# ---- Steps --------------------------------------------------------------------------------------------------------


class Census:
    """A logger that asks `count` every so many steps."""

    place = "census"

    def __init__(self, count, every: int):
        self.count, self.every, self.found = count, every, []

    def log(self, metrics, step, epoch):
        if step % self.every == 0 and "train/loss" in metrics:
            gc.collect()
            self.found.append(self.count())

    def start(self, run):
        pass

    def picture(self, name, path, step):
        pass

    def state(self):
        return {}

    def close(self, failed=False):
        pass


@pytest.mark.slow
def test_steps_leave_neither_tensors_nor_objects_behind(tmp_path):
    settings = ("epochs=8", "batch_size=4", "trainer.log_every=6", "trainer.validate_every=2", "trainer.val_samples=2")
    settings += ("trainer.save_minutes=0", "probe=[online]", "probe.online.batch_size=4")
    trainer, memory = build.trainer(build.compose([*SMALL, *settings])), Storages()
    census = Census(lambda: (memory.live, len(gc.get_objects())), every=12)  # before a validation
    loggers = Loggers({"metrics": MetricsFile(), "census": census})
    loggers.start(Beginning(tmp_path))
    try:
        with listening() as signals, memory:
            Loop(trainer, tmp_path, loggers, Reporter(quiet=True), signals, {}).run()
    finally:
        loggers.close()
    tensors, objects = zip(*census.found, strict=True)
    assert len(tensors) == 4 and tensors[1] > 0  # the first count knows nothing yet of what is made once
    assert tensors[1] == tensors[2] == tensors[3], tensors
    assert objects[3] - objects[1] < 24, objects  # less than one a step


def test_what_a_step_returns_holds_on_to_no_graph():
    trainer = build.trainer(build.compose([*SMALL, "batch_size=4", "loss.learn_scale=true", "trainer.clip=1"]))
    terms = trainer.train_step(next(iter(trainer.loader.epoch(0))), measure=True)
    assert not [name for name, value in terms.items() if value.requires_grad]
