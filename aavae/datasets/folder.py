"""Images in folders or in a zip: `train/<class>/*.png` and `test/…`, `<class>/*.png`, or images without classes."""

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import functional as tvf

from aavae.augmentations import crop_boxes
from aavae.datasets import Dataset, Split, seeded_split, to_float
from aavae.errors import UserError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
HELD_OUT = ("test", "val", "valid", "validation")


def _cores() -> int:
    """How many this process may use, which a job scheduler may have cut down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Store:
    """The images below a folder or inside a zip, by their relative names, in sorted order.

    Raises UserError for a path that is missing, is no zip, or holds no images.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._local = threading.local()  # a ZipFile is not to be shared among threads or processes
        if self.path.is_dir():
            found = (
                (PurePosixPath(where) / name).relative_to(self.path).as_posix()
                for where, _, names in os.walk(self.path, followlinks=True)
                for name in names
            )
        elif self.path.is_file():
            found = self._zip().namelist()
        else:
            raise UserError(f"dataset.path={path} does not exist; it should be a folder or a zip of images")
        self.names = sorted(n for n in found if self._is_image(PurePosixPath(n)))
        if not self.names:
            raise UserError(f"{path} holds no images ({', '.join(sorted(EXTENSIONS))})")
        self.names = self._without_common_folder(self.names)

    @staticmethod
    def _is_image(name: PurePosixPath) -> bool:
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        return name.suffix.lower() in EXTENSIONS and not hidden

    def _without_common_folder(self, names: list[str]) -> list[str]:
        # A zip often wraps everything in one folder of its own name; a single class folder is left alone.
        self.prefix = ""
        tops = {n.split("/", 1)[0] for n in names}
        if len(tops) == 1 and all(n.count("/") >= 2 for n in names) and not tops & {"train", *HELD_OUT}:
            self.prefix = f"{tops.pop()}/"
        return [n.removeprefix(self.prefix) for n in names]

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state):
        self.__dict__.update(state, _local=threading.local())

    def _zip(self) -> zipfile.ZipFile:
        if getattr(self._local, "pid", None) != os.getpid():
            try:
                self._local.zip, self._local.pid = zipfile.ZipFile(self.path), os.getpid()
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{self.path} is neither a folder nor a readable zip ({error})") from error
        return self._local.zip

    def open(self, name: str) -> Image.Image:
        """The image `name`, in RGB; raises UserError if it is damaged."""
        name = self.prefix + name
        try:
            data = (self.path / name).read_bytes() if self.path.is_dir() else self._zip().read(name)
            return _rgb(Image.open(io.BytesIO(data)))
        except UserError:
            raise
        except Exception as error:  # zipfile, zlib and PIL's plugins raise some fifteen kinds
            raise UserError(f"the image {name} in {self.path} is damaged ({error}); mend or remove it") from error

    def read(self, names: list[str], make: Callable[[Image.Image], Tensor]) -> Tensor:
        """`make` of every image, stacked; PIL decodes outside the interpreter lock, so threads help."""
        first = make(self.open(names[0]))
        out = first.new_empty(len(names), *first.shape)
        filled = out.numpy()  # numpy's small copies cost a tenth of torch's

        def fill(start: int) -> None:
            for i in range(start, min(start + 256, len(names))):
                filled[i] = make(self.open(names[i])).numpy()

        # One job for many images: a job each costs more than decoding a small one.
        with ThreadPoolExecutor(min(8, _cores())) as pool:
            for _ in pool.map(fill, range(0, len(names), 256)):
                pass
        return out


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def square(image: Image.Image, size: int, resize: int | None = None) -> Tensor:
    """The image resized (shorter side to `resize`, or `size`; bilinear), centre-cropped: uint8 `(3, size, size)`."""
    if image.size != (size, size) or (resize or size) != size:
        image = tvf.center_crop(tvf.resize(image, resize or size, antialias=True), [size, size])
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


def layout(names: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Names by part (`train` and, where there, `val` and `test`) and the class names; no classes: unlabelled.

    The class of an image is the first folder below its part.
    """
    parts: dict[str, list[str]] = {}
    folders = {n.split("/", 1)[0] if "/" in n else "" for n in names}
    nested = folders <= {"train", *HELD_OUT}
    if not nested and "train" in folders and folders & set(HELD_OUT):
        strange = ", ".join(sorted(f or "loose images" for f in folders - {"train", *HELD_OUT}))
        raise UserError(f"dataset.path has train/ and a held-out part, but also {strange}; move that away")
    if nested:
        for name in names:
            top = name.split("/", 1)[0]
            parts.setdefault(top if top in ("train", "test") else "val", []).append(name)
    else:
        parts["train"] = names
    depth = 1 if nested else 0
    classes = {n.split("/")[depth] if n.count("/") > depth else None for n in parts.get("train", [])}
    return parts, sorted(classes) if None not in classes else []


def _labels(names: list[str], classes: list[str], depth: int, path: Path) -> Tensor:
    index = {c: i for i, c in enumerate(classes)}
    try:
        return torch.tensor([index[n.split("/")[depth]] for n in names])
    except KeyError as error:
        raise UserError(f"{path} has the class {error} outside its training images only") from error


def read_labelled(path: Path, image_size: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels of a folder or zip with `train/<class>` and `test/<class>`.

    Raises UserError where the layout or the number of classes is another.
    """
    store = Store(path)
    parts, classes = layout(store.names)
    if len(classes) != num_classes or "test" not in parts:
        raise UserError(
            f"{path} should hold train/<class>/ and test/<class>/ for {num_classes} classes, but has "
            f"{len(classes)} classes and the parts {', '.join(parts)}; dataset=image_folder takes other layouts"
        )
    out = []
    for part in ("train", "test"):
        out.append(store.read(parts[part], lambda image: square(image, image_size)))
        out.append(_labels(parts[part], classes, 1, path))
    return tuple(out)


def _collate(items: list):
    return next((i for i in items if isinstance(i, UserError)), None) or default_collate(items)


class StreamedSplit:
    """Images decoded from disk by DataLoader workers each time they are needed; the interface of a `Split`."""

    def __init__(
        self, store: Store, names: list[str], labels: Tensor | None, image_size: int, resize: int, workers: int
    ):
        self.store, self.names, self.labels = store, names, labels
        self.image_size, self.resize, self.workers = image_size, resize, workers

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Tensor) -> "StreamedSplit":
        """The images at `indices`, as a split of their own."""
        labels = None if self.labels is None else self.labels[indices]
        names = [self.names[i] for i in indices.tolist()]
        return StreamedSplit(self.store, names, labels, self.image_size, self.resize, self.workers)

    def clean(self, image: Image.Image) -> Tensor:
        """Resize to `resize`, centre-crop to `image_size`: uint8 `(3, H, W)`."""
        image = tvf.resize(image, self.resize, antialias=True)
        return tvf.pil_to_tensor(tvf.center_crop(image, [self.image_size, self.image_size]))

    def pair(self, index: int, draws: Tensor | None, scale, ratio) -> tuple[Tensor, Tensor]:
        """The clean image and its random resized crop by `draws`, both uint8 `(3, H, W)`; without draws, twice clean."""
        image = self.store.open(self.names[index])
        clean = self.clean(image)
        if draws is None:
            return clean, clean
        box = [int(t) for t in crop_boxes(draws[None], image.height, image.width, scale, ratio)]
        crop = tvf.resized_crop(image, *box, [self.image_size, self.image_size], antialias=True)
        return clean, tvf.pil_to_tensor(crop)

    def __getitem__(self, request) -> Tensor | tuple[Tensor, Tensor]:
        try:
            if isinstance(request, int):
                return self.clean(self.store.open(self.names[request]))
            return self.pair(*request)
        except UserError as error:  # as a value: raised, it would arrive wrapped in a worker's traceback
            return error

    def stream(self, requests) -> Iterator:
        """Batches answering an iterable of lists of requests, each by `__getitem__`, in worker processes."""
        workers = min(self.workers, _cores())
        for batch in DataLoader(self, batch_sampler=requests, num_workers=workers, collate_fn=_collate):
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The clean images in order, uint8, on the CPU."""
        yield from self.stream(i.tolist() for i in torch.arange(len(self)).split(batch_size))

    def fingerprint(self) -> str:
        """A short hash of the names and labels."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


class ImageFolder(Dataset):
    """Your own images: a folder or zip with class folders, split into `train/` and `test/` or not, or without labels.

    What is not split already is split under seed 42: a tenth of the training images for validation and, without a
    `test/` part, a tenth for test. `in_memory=false` streams the images through `workers` processes. `mean` and `std`
    are computed from the training images where they are not given; `stem=by_size` is cifar up to 64 pixels, stl up to 128, then imagenet.
    """

    name = "image_folder"

    def __init__(
        self,
        path: str | None = None,
        image_size: int = 64,
        in_memory: bool = True,
        workers: int = 4,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        stem: str = "by_size",
        strength: float = 1.0,
        blur_p: float = 0.5,
        resize: int | None = None,
    ):
        super().__init__()
        if path is None:
            raise UserError("dataset.path= must name the folder or zip with the images")
        if image_size < 1 or workers < 0 or (resize is not None and resize < image_size):
            raise UserError(
                "dataset.image_size must be 1 or more, dataset.workers 0 or more, dataset.resize no smaller than "
                f"dataset.image_size; got {image_size}, {workers}, {resize}"
            )
        if (mean is None) != (std is None):
            raise UserError("dataset.mean and dataset.std must be given together, or left to be computed")
        if mean is not None and (len(mean) != 3 or len(std) != 3 or min(std) <= 0):
            raise UserError(f"dataset.mean and dataset.std are three numbers each, std positive; not {mean} and {std}")
        self.path = Path(path).expanduser()
        self.image_size, self.in_memory, self.workers = image_size, in_memory, workers
        self.resize = resize or image_size
        self.mean, self.std = mean, std
        by_size = "cifar" if image_size <= 64 else "stl" if image_size <= 128 else "imagenet"
        self.stem = by_size if stem == "by_size" else stem
        self.strength, self.blur_p = strength, blur_p
        self.store = Store(self.path)
        self.parts, self.classes = layout(self.store.names)
        if "train" not in self.parts:
            raise UserError(f"{path} has {', '.join(self.parts)} but no train/ folder")
        self.num_classes = len(self.classes)

    def _split(self, names: list[str], labels: Tensor | None, device: torch.device) -> Split | StreamedSplit:
        if not self.in_memory:
            return StreamedSplit(self.store, names, labels, self.image_size, self.resize, self.workers)
        return Split(self.store.read(names, lambda image: square(image, self.image_size, self.resize)).to(device), labels)

    def read(self, device: torch.device) -> dict[str, Split]:
        """`pretrain` and `pretrain_val`, and with labels `train`, `val` and `test`."""
        names = dict(self.parts)
        for part in ("test", "val") if self.classes else ("val",):
            if part not in names:
                kept, held = seeded_split(len(names["train"]), len(names["train"]) - len(names["train"]) // 10)
                pool = names["train"]
                names["train"], names[part] = ([pool[i] for i in sorted(index.tolist())] for index in (kept, held))
        if not all(names.values()):
            raise UserError(f"{self.path} holds too few images to hold out a tenth of them for validation")
        depth = 1 if set(self.parts) != {"train"} or all(n.startswith("train/") for n in self.parts["train"]) else 0
        splits = {}
        for part, members in names.items():
            labels = _labels(members, self.classes, depth, self.path) if self.classes else None
            splits[part] = self._split(members, labels, device)
        if self.mean is None:
            self.mean, self.std = _mean_and_std(splits["train"])
        pretraining = {"pretrain": splits["train"], "pretrain_val": splits["val"]}
        return pretraining | (splits if self.classes else {})


def _mean_and_std(split: Split | StreamedSplit, images: int = 10_000) -> tuple[list[float], list[float]]:
    """Per channel, over up to 10,000 evenly spaced training images in [0, 1]."""
    some = split.take(torch.arange(0, len(split), max(1, len(split) // images)))
    total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for batch in some.batches(256):
        pixels = to_float(batch).cpu().double()
        total += pixels.sum((0, 2, 3))
        squares += (pixels**2).sum((0, 2, 3))
        count += pixels[:, 0].numel()
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1e-6).sqrt()
    return mean.tolist(), std.tolist()


class ImageNet(ImageFolder):
    """ImageNet-1k from `path/train/<class>/` and `path/val/<class>/`, by default streamed.

    `val/` is the test split; a tenth of the training images is held out. The target is resized to 256 (in proportion)
    and centre-cropped; strengths and normalisation as spec §1.5.
    """

    name = "imagenet"

    def __init__(self, path: str, image_size: int = 224, in_memory: bool = False, workers: int = 12):
        super().__init__(
            path, image_size, in_memory, workers, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
            stem="imagenet", resize=round(image_size * 256 / 224),
        )  # fmt: skip
        if "val" in self.parts and "test" not in self.parts:
            self.parts["test"] = self.parts.pop("val")
