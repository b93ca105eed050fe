"""CIFAR-10 and STL-10 through torchvision, downloaded once and checked against its checksums."""

import contextlib
import http.client
import math
import os
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from aavae.augmentations.pipeline import Pipeline
from aavae.augmentations.simclr import ResizedCrops
from aavae.datasets import Dataset, Split, seeded_split
from aavae.datasets.folder import read_labelled
from aavae.errors import UserError
from aavae.runtime import files

DOWNLOADING = ".download.lock"


@contextlib.contextmanager
def _quiet_and_alone(folder: Path):
    # torchvision prints as it downloads, and two jobs of a sweep must not download at once.
    with (
        files.locked(folder / DOWNLOADING, wait=True),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def _tidy(root: Path, archive: Path, made: list[Path]):
    # Leave no half archive, lock or empty folder: as long as it is held, which is why nobody else is at work there.
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            archive.unlink(missing_ok=True)
            (root / DOWNLOADING).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        raise


def fetch(kind: type, root: Path, present: str, **arguments):
    """torchvision's dataset `kind` below `root`, downloaded if `present`, the folder it unpacks to, is not there.

    Raises UserError where the data is neither there nor to be had, naming the folder and the ways out.
    """
    ways_out = (
        "give the folder that has it with dataset.path= (or data_dir=), or try dataset=digits, which needs no download"
    )
    if (root / present).is_dir():
        try:
            return kind(root, download=False, **arguments)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            damage = error
        with contextlib.suppress(RuntimeError, EOFError, OSError, ValueError), _quiet_and_alone(root):
            return kind(root, download=False, **arguments)  # another process may have been unpacking it
        raise UserError(f"{kind.__name__} in {root / present} is damaged ({damage}); delete it, or {ways_out}")
    print(f"{kind.__name__} is not in {root}; downloading it, once", flush=True)
    made = [p for p in (root, *root.parents) if not p.exists()]
    archive = root / getattr(kind, "filename", "archive")
    try:
        with _quiet_and_alone(root), _tidy(root, archive, made):
            return kind(root, download=True, **arguments)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"no {kind.__name__} in {root / present} and no way to download it ({error}); {ways_out}"
        ) from error


def _given(path: str | None, in_memory: bool) -> Path | None:
    if not in_memory:
        raise UserError("dataset.in_memory=false is for dataset=image_folder and imagenet; this dataset fits in memory")
    if path is None:
        return None
    if not Path(path).expanduser().exists():  # nothing is downloaded into a misspelt folder
        raise UserError(f"dataset.path={path} does not exist")
    return Path(path).expanduser()


class CIFAR10(Dataset):
    """50,000 training images, split 45,000 / 5,000 under seed 42, and 10,000 test images of 32×32.

    `path` is a folder or zip in class-folder layout, or a folder that holds torchvision's `cifar-10-batches-py`;
    without it the data is looked for in `data_dir`, then downloaded there.
    """

    name, num_classes, image_size = "cifar10", 10, 32
    sizes: ClassVar[dict[str, int]] = {
        "pretrain": 45_000,
        "pretrain_val": 5_000,
        "train": 45_000,
        "val": 5_000,
        "test": 10_000,
    }
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    std = (63.0 / 255, 62.1 / 255, 66.7 / 255)

    def __init__(self, data_dir: str = "data", path: str | None = None, in_memory: bool = True):
        super().__init__()
        self.data_dir, self.path = Path(data_dir).expanduser(), _given(path, in_memory)

    def present(self) -> bool:
        """Whether there is nothing to download."""
        return self.path is not None or (self.data_dir / "cifar-10-batches-py").is_dir()

    def _torchvision(self, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        import torchvision  # takes seconds, which a run on a folder or zip need not wait

        def part(train: bool) -> tuple[Tensor, Tensor]:
            data = fetch(torchvision.datasets.CIFAR10, root, "cifar-10-batches-py", train=train)
            return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)

        return *part(True), *part(False)

    def read(self, device: torch.device) -> dict[str, Split]:
        """The three splits; a tenth of the training images, 5,000 of all of them, is held out."""
        if self.path and not (self.path / "cifar-10-batches-py").is_dir():
            images, labels, test_images, test_labels = read_labelled(self.path, self.image_size, self.num_classes)
        else:
            images, labels, test_images, test_labels = self._torchvision(self.path or self.data_dir)
        everything = Split(images, labels)
        chosen = seeded_split(len(images), len(images) - len(images) // 10)
        train, val = (everything.take(indices).to(device) for indices in chosen)
        test = Split(test_images, test_labels).to(device)
        return {"pretrain": train, "pretrain_val": val, "train": train, "val": val, "test": test}


STL_IMAGE = (3, 96, 96)
PIECE = 1000  # images read at a time


PRECISION = 22  # bits of PIL's weights
HALF = 1 << (PRECISION - 1)


@cache
def _taps(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the middle 96 of 105 pixels that PIL makes of 96: the two that each comes from, `(96,)`, and their weights in
    units of 2⁻²², `(96,)` int32: PIL computes in whole numbers, and rounds to 8 bits after rows and after columns."""
    extent, enlarged = STL_IMAGE[1], 105
    margin = round((enlarged - extent) / 2)
    centre = (torch.arange(margin, margin + extent, dtype=torch.float64) + 0.5) * extent / enlarged - 0.5
    first = centre.floor()
    near = ((1 - (centre - first)) * 2**PRECISION + 0.5).floor()
    places = [(first + i).clamp(0, extent - 1).long().to(device) for i in (0, 1)]
    return *places, *(w.to(torch.int32).to(device) for w in (near, 2**PRECISION - near))


def _stl_images(path: Path, order: Tensor, device: torch.device) -> Tensor:
    """The images of a binary of STL-10 on the device, `(N, 3, 96, 96)` uint8, image `order[i]` of the file as i-th.

    It is read once, from beginning to end and piece by piece, so that neither host nor device holds images twice.
    """
    out = torch.empty(len(order), *STL_IMAGE, dtype=torch.uint8, device=device)
    with open(path, "rb") as file:
        for places in order.argsort().split(PIECE):
            piece = torch.from_numpy(np.fromfile(file, np.uint8, len(places) * math.prod(STL_IMAGE)))
            # The file stores columns before rows.
            out[places.to(device)] = piece.view(-1, *STL_IMAGE).to(device).transpose(2, 3)
    return out


def _stl_splits(binary: Path, part: str, held_out: int | None, device: torch.device) -> list[Split]:
    """The images of `part`, shuffled in two splits of which the second has one of `held_out`; or one, in order."""
    path = binary / f"{part}_X.bin"
    n = path.stat().st_size // math.prod(STL_IMAGE)
    orders = seeded_split(n, n - n // held_out) if held_out else (torch.arange(n),)
    images = _stl_images(path, torch.cat(orders), device).split([len(order) for order in orders])
    if part == "unlabeled":
        return [Split(some) for some in images]
    labels = torch.from_numpy(np.fromfile(binary / f"{part}_y.bin", np.uint8)).long() - 1
    return [Split(some, labels[order]) for some, order in zip(images, orders, strict=True)]


class STL10(Dataset):
    """100,000 unlabelled images split 95,000 / 5,000, 5,000 labelled ones split 4,500 / 500, and 8,000 for test; 96×96.

    `target_transform=official` reconstructs the image resized to 105 and centre-cropped to 96, as the released code
    does; `raw` the image itself (docs/reproduction.md). `path` is the folder that holds torchvision's `stl10_binary`.
    """

    name, num_classes, image_size, stem = "stl10", 10, 96, "stl"
    sizes: ClassVar[dict[str, int]] = {
        "pretrain": 95_000,
        "pretrain_val": 5_000,
        "train": 4_500,
        "val": 500,
        "test": 8_000,
    }
    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    mean, std = (0.43, 0.42, 0.39), (0.27, 0.26, 0.27)
    strength, blur_p, reference_batch = 1.0, 0.5, 512

    def __init__(
        self,
        data_dir: str = "data",
        path: str | None = None,
        in_memory: bool = True,
        target_transform: str = "official",
    ):
        super().__init__()
        if target_transform not in ("official", "raw"):
            raise UserError(f"dataset.target_transform must be official or raw, not {target_transform!r}")
        self.root = _given(path, in_memory) or Path(data_dir).expanduser()
        if path and not (self.root / "stl10_binary").is_dir():
            raise UserError(f"dataset.path={path} should be the folder that holds stl10_binary, and does not")
        self.target_transform = target_transform

    def present(self) -> bool:
        """Whether there is nothing to download."""
        return (self.root / "stl10_binary").is_dir()

    def read(self, device: torch.device) -> dict[str, Split]:
        """The five splits; a twentieth of the unlabelled and a tenth of the labelled images is held out."""
        # Torchvision checks the sums of all files; what it reads itself is dropped at once.
        import torchvision

        fetch(torchvision.datasets.STL10, self.root, "stl10_binary", split="test")
        binary = self.root / "stl10_binary"
        pretrain, pretrain_val = _stl_splits(binary, "unlabeled", 20, device)
        train, val = _stl_splits(binary, "train", 10, device)
        (test,) = _stl_splits(binary, "test", None, device)
        return {"pretrain": pretrain, "pretrain_val": pretrain_val, "train": train, "val": val, "test": test}

    def crops(self) -> Pipeline:
        """Random resized crops and flips."""
        return ResizedCrops()

    def target(self, images: Tensor) -> Tensor:
        """Resize(105) and CenterCrop(96) in 8 bits, as PIL does it, or the images as they are."""
        if self.target_transform == "raw":
            return images
        levels = (images * 255).round().int()
        first, second, near, far = _taps(images.device)
        levels = (levels[..., first] * near + levels[..., second] * far + HALF) >> PRECISION
        near, far = near[:, None], far[:, None]
        levels = (levels[..., first, :] * near + levels[..., second, :] * far + HALF) >> PRECISION
        return levels / 255
