"""Your own images: `train/<class>/*.png` and `test/…`, `<class>/*.png`, or images without classes; and ImageNet."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from aavae.augmentations.pipeline import Pipeline
from aavae.augmentations.simclr import ResizedCrops
from aavae.datasets import Dataset, Images, Split, seeded_split, stratified_split, to_float
from aavae.datasets.layout import Layout, layout, listed, readable
from aavae.datasets.store import Store, reporter
from aavae.datasets.streaming import StreamedSplit
from aavae.errors import UserError
from aavae.runtime.words import count


def read_labelled(path: Path, image_size: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels of a folder or zip with `train/<class>` and `test/<class>`.

    Raises UserError where the layout or the number of classes is another, and for an image that cannot be used.
    """
    store = Store(path)
    found = layout(store.names)
    _say([*store.notes, *found.notes])
    if len(found.classes) != num_classes or "test" not in found.parts:
        raise UserError(
            f"{path} should hold train/<class>/ and test/<class>/ for {count(num_classes, 'class')}, but has "
            f"{count(len(found.classes), 'class')} and the parts {', '.join(found.parts)}; "
            "dataset=image_folder takes other layouts"
        )

    def read(part: str) -> tuple[Tensor, Tensor]:
        return store.read(found.parts[part], image_size)[0], _labels(found, part)

    return *read("train"), *read("test")


def _labels(found: Layout, part: str) -> Tensor:
    index = {c: i for i, c in enumerate(found.classes)}
    return torch.tensor([index[found.class_of(part, name)] for name in found.parts[part]])


def _flat(names: dict[str, list[str]]) -> list[str]:
    return [name for some in names.values() for name in some]


def _say(notes: list[str]) -> None:
    for note in notes:
        reporter().say(f"images      {note}")


HELD_OUT = 10_000  # images at most: more would only make validation slow


class ImageFolder(Dataset):
    """Your own images: a folder or zip with class folders, split into `train/` and `test/` or not, or without labels.

    What is not split already is split under seed 42, stratified by class: without a `test/` part a tenth of the images,
    10,000 at most, for test, and then a tenth of the others, 10,000 at most, for validation. `in_memory=false` streams
    the images through `workers` processes, after a `check` that opens each once. `on_error=skip` leaves out images that
    cannot be used.
    `mean` and `std` are computed from the training images where they are not given; `stem=by_size` is cifar up to 64
    pixels, stl up to 128, then imagenet.
    """

    name = "image_folder"
    mean: Any  # three numbers; None until they are computed
    std: Any

    def __init__(
        self,
        path: str | None = None,
        image_size: int = 64,
        in_memory: bool = True,
        workers: int = 4,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        stem: str = "by_size",
        strength: float = 1.0,
        blur_p: float = 0.5,
        resize: int | None = None,
        check: bool = True,
        on_error: str = "fail",
    ):
        super().__init__()
        if path is None:
            raise UserError("dataset.path= must name the folder or zip with the images")
        if image_size < 1 or workers < 0 or (resize is not None and resize < image_size):
            raise UserError(
                "dataset.image_size must be 1 or more, dataset.workers 0 or more, dataset.resize no smaller than "
                f"dataset.image_size; got {image_size}, {workers}, {resize}"
            )
        if on_error not in ("fail", "skip"):
            raise UserError(f"dataset.on_error must be fail or skip, not {on_error!r}")
        if on_error == "skip" and not (check or in_memory):
            raise UserError("dataset.on_error=skip finds out what to skip by the check; leave dataset.check=true")
        if (mean is None) != (std is None):
            raise UserError("dataset.mean and dataset.std must be given together, or left to be computed")
        if mean is not None and std is not None and (len(mean) != 3 or len(std) != 3 or min(std) <= 0):
            raise UserError(f"dataset.mean and dataset.std are three numbers each, std positive; not {mean} and {std}")
        self.path = Path(path).expanduser()
        self.image_size, self.in_memory, self.workers = image_size, in_memory, workers
        self.resize = resize or image_size
        self.mean, self.std = mean, std
        by_size = "cifar" if image_size <= 64 else "stl" if image_size <= 128 else "imagenet"
        self.stem = by_size if stem == "by_size" else stem
        self.strength, self.blur_p = strength, blur_p
        self.check, self.on_error = check, on_error
        self._find()

    def _find(self) -> None:
        self.store = Store(self.path, skip=self.on_error == "skip")
        self.layout = layout(self.store.names)
        self.parts, self.classes = self.layout.parts, [readable(name) for name in self.layout.classes]
        self.num_classes = len(self.classes)

    def crops(self) -> Pipeline:
        """Random resized crops and flips."""
        return ResizedCrops()

    def read(self, device: torch.device) -> dict[str, Images]:
        """`pretrain` and `pretrain_val`, and with labels `train`, `val` and `test`."""
        _say([*self.store.notes, *self.layout.notes])
        splits = self._in_memory(device) if self.in_memory else self._streamed()
        if self.classes:
            self._say_rare({part: split.labels for part, split in splits.items() if split.labels is not None})
        if self.mean is None:
            self.mean, self.std = _mean_and_std(splits["train"])
        pretraining = {"pretrain": splits["train"], "pretrain_val": splits["val"]}
        return pretraining | (splits if self.classes else {})

    def _streamed(self) -> dict[str, Images]:
        names = _flat(self.parts)
        found, labels = self._divided(self.store.check(names) if self.check else names)
        how = self.image_size, self.resize, self.workers
        return {part: StreamedSplit(self.store, some, labels.get(part), *how) for part, some in found.items()}

    def _in_memory(self, device: torch.device) -> dict[str, Images]:
        found, labels = self._divided(_flat(self.parts))
        images, usable = self.store.read(_flat(found), self.image_size, self.resize)
        if len(usable) < len(_flat(found)):
            # Divided anew, as if the others were not there: once they are removed, it is the same dataset.
            found, labels = self._divided(usable)
            row = {name: i for i, name in enumerate(usable)}
            images = images[[row[name] for name in _flat(found)]]
        rows = images.split([len(some) for some in found.values()])
        return {part: Split(mine, labels.get(part)).to(device) for part, mine in zip(found, rows, strict=True)}

    def _divided(self, usable: list[str]) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
        """Names and labels of the parts, of which those that are not there are held out. Raises UserError for a part
        without images."""
        there = set(usable)
        names = {part: [name for name in some if name in there] for part, some in self.parts.items()}
        labels = {}
        if self.classes:
            labels = {part: _labels(self.layout._replace(parts=names), part) for part in names}
        for part in ("test", "val") if self.classes else ("val",):
            if part not in names:
                self._hold_out(part, names, labels)
        if empty := [part for part, some in names.items() if not some and part in self.parts]:
            raise UserError(f"no image of the {empty[0]} part of {self.path} can be used")
        if not all(names.values()):
            n, cure = sum(map(len, self.parts.values())), ""
            if self.classes:
                cure = (
                    f" in {self.num_classes:,} classes, each of which keeps one; put them into one folder to do without"
                )
            raise UserError(f"{self.path} holds too few images to hold out some for validation: {n:,}{cure}")
        return names, labels

    def _hold_out(self, part: str, names: dict[str, list[str]], labels: dict[str, Tensor]) -> None:
        n, pool = len(names["train"]), names["train"]
        held = min(n // 10, HELD_OUT)
        chosen = stratified_split(labels["train"], held) if self.classes and held else seeded_split(n, n - held)
        kept, out = (index.sort().values for index in chosen)
        names["train"], names[part] = ([pool[i] for i in index.tolist()] for index in (kept, out))
        if self.classes:
            labels["train"], labels[part] = labels["train"][kept], labels["train"][out]

    def _say_rare(self, labels: dict[str, Tensor]) -> None:
        for part in ("train", "val", "test"):
            counts = labels[part].bincount(minlength=self.num_classes)
            if missing := [self.classes[i] for i in (counts == 0).nonzero().flatten().tolist()]:
                _say(
                    [f"{len(missing):,} of {count(self.num_classes, 'class')} have no {part} images: {listed(missing)}"]
                )

    def fingerprint(self) -> str:
        """A short hash over all splits; of streamed images its second half says the bytes, where they are known."""
        if self.in_memory:
            return super().fingerprint()
        found = {name: split.fingerprint() for name, split in sorted(self.splits.items())}
        halves = ["|".join(f"{name}:{f[start : start + 8]}" for name, f in found.items()) for start in (0, 8)]
        known = all(len(f) > 8 for f in found.values())
        return "".join(hashlib.sha256(half.encode()).hexdigest()[:8] for half in halves[: 1 + known])


def _mean_and_std(split: Images, images: int = 10_000) -> tuple[list[float], list[float]]:
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
    centre-cropped; strengths and normalisation as docs/reproduction.md.
    """

    name, image_size, stem = "imagenet", 224, "imagenet"
    sizes: ClassVar[dict[str, int]] = {
        "pretrain": 1_271_167,
        "pretrain_val": 10_000,
        "train": 1_271_167,
        "val": 10_000,
        "test": 50_000,
    }
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self,
        path: str | None = None,
        data_dir: str = "data",
        image_size: int = 224,
        in_memory: bool = False,
        workers: int = 12,
        check: bool = True,
        on_error: str = "fail",
    ):
        self.named = path is not None
        super().__init__(
            path or f"{data_dir}/imagenet", image_size, in_memory, workers, mean=self.mean, std=self.std,
            stem=self.stem, resize=round(image_size * 256 / 224), check=check, on_error=on_error,
        )  # fmt: skip

    def present(self) -> bool:
        """Whether there is a folder or zip to read."""
        return self.named or self.path.exists()

    def read(self, device: torch.device) -> dict[str, Images]:
        """As of every folder. Raises UserError where there is none."""
        if not self.present():
            raise UserError(
                f"there is no ImageNet in {self.path}; name the folder that holds train/ and val/ with dataset.path="
            )
        return super().read(device)

    def _find(self) -> None:
        if not self.present():  # its facts are known all the same
            self.num_classes = 1000
            return
        super()._find()
        if "val" in self.parts and "test" not in self.parts:
            depths = self.layout.depths
            self.parts["test"], depths["test"] = self.parts.pop("val"), depths.pop("val")
