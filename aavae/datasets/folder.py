"""Your own images: `train/<class>/*.png` and `test/…`, `<class>/*.png`, or images without classes; and ImageNet."""

from pathlib import Path

import torch
from torch import Tensor

from aavae.datasets import Dataset, Split, seeded_split, to_float
from aavae.datasets.store import PARTS, Store, StreamedSplit, square
from aavae.errors import UserError
from aavae.pipelines import Pipeline, ResizedCrops


def layout(names: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Names by part (`train` and, where there, `val` and `test`) and the class names; no classes: unlabelled.

    The class of an image is the first folder below its part.
    """
    parts: dict[str, list[str]] = {}
    folders = {n.split("/", 1)[0] if "/" in n else "" for n in names}
    nested = folders <= set(PARTS)
    if not nested and "train" in folders and folders & (set(PARTS) - {"train"}):
        strange = ", ".join(sorted(f or "loose images" for f in folders - set(PARTS)))
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


HELD_OUT = 10_000  # images at most: more would only make validation slow


class ImageFolder(Dataset):
    """Your own images: a folder or zip with class folders, split into `train/` and `test/` or not, or without labels.

    What is not split already is split under seed 42: a tenth of the training images, 10,000 at most, for validation
    and, without a `test/` part, as many for test. `in_memory=false` streams the images through `workers` processes.
    `mean` and `std` are computed from the training images where they are not given; `stem=by_size` is cifar up to 64
    pixels, stl up to 128, then imagenet.
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
        images = self.store.read(names, lambda image: square(image, self.image_size, self.resize))
        return Split(images, labels).to(device)

    def crops(self) -> Pipeline:
        """Random resized crops and flips."""
        return ResizedCrops()

    def read(self, device: torch.device) -> dict[str, Split]:
        """`pretrain` and `pretrain_val`, and with labels `train`, `val` and `test`."""
        names = dict(self.parts)
        for part in ("test", "val") if self.classes else ("val",):
            if part not in names:
                n = len(names["train"])
                kept, held = seeded_split(n, n - min(n // 10, HELD_OUT))
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
    some = torch.arange(0, len(split), max(1, len(split) // images))
    total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for batch in split.batches(256, some):
        pixels = to_float(batch).cpu().double()
        total += pixels.sum((0, 2, 3))
        squares += (pixels**2).sum((0, 2, 3))
        count += pixels[:, 0].numel()
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1e-6).sqrt()
    return mean.tolist(), std.tolist()


class ImageNet(ImageFolder):
    """ImageNet-1k from `path/train/<class>/` and `path/val/<class>/`, by default streamed, and in `data_dir/imagenet`.

    `val/` is the test split; 10,000 training images are held out. The target is resized to 256 (in proportion) and
    centre-cropped; strengths and normalisation as spec §1.5.
    """

    name, image_size, stem = "imagenet", 224, "imagenet"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self,
        path: str | None = None,
        data_dir: str = "data",
        image_size: int = 224,
        in_memory: bool = False,
        workers: int = 12,
    ):
        super().__init__(
            path or f"{data_dir}/imagenet", image_size, in_memory, workers,
            mean=self.mean, std=self.std, stem=self.stem, resize=round(image_size * 256 / 224),
        )  # fmt: skip
        if "val" in self.parts and "test" not in self.parts:
            self.parts["test"] = self.parts.pop("val")
