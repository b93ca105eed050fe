"""What a dataset has read, held against what everything else relies on, in words for the author of its class."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from aavae.datasets import Dataset, Split, to_float
from aavae.errors import UserError
from aavae.runtime.words import described

PRETRAINING, LABELLED = ("pretrain", "pretrain_val"), ("train", "val", "test")
OFFERED = ("take", "batches", "fingerprint", "__len__")  # by every split


def check(dataset: Dataset) -> Dataset:
    """The `dataset`, which is loaded. Raises UserError where its facts or what it has read cannot be used."""
    kind, read = type(dataset).__name__, dataset.splits
    _check_facts(dataset, kind)
    if not isinstance(read, Mapping):
        raise UserError(f"{kind}.read must return a dict of splits, not {described(read)}")
    needed = (*PRETRAINING, *(LABELLED if dataset.labelled else ()))
    if lost := [name for name in needed if name not in read]:
        why = f", because num_classes is {dataset.num_classes}" if lost[0] in LABELLED else ""
        raise UserError(f"{kind}.read must return a split {lost[0]}{why}; it returned {', '.join(map(str, read))}")
    for name, split in read.items():
        if not all(hasattr(split, method) for method in OFFERED) or not hasattr(split, "labels"):
            raise UserError(f"{kind}.read must return a Split of images and labels as {name}, not {described(split)}")
        if isinstance(split, Split):
            _check_images(split.images, dataset, f"{kind}: the images of {name}")
        if dataset.labelled and name in LABELLED:
            _check_labels(split.labels, len(split), dataset.num_classes, f"{kind}: the labels of {name}")
    return dataset


def _check_facts(dataset: Dataset, kind: str) -> None:
    for fact, least in (("num_classes", 0), ("image_size", 1)):
        value = getattr(dataset, fact, None)
        if not isinstance(value, int) or value < least:
            raise UserError(f"{kind}.{fact} must be a whole number of {least} or more, not {value!r}")
    if not isinstance(getattr(dataset, "name", None), str):
        raise UserError(f"{kind} must have a name, as text")
    for fact, positive in (("mean", False), ("std", True)):
        values = getattr(dataset, fact, None)
        try:
            numbers = [float(value) for value in values]  # type: ignore[union-attr]  # TypeError is caught
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != 3 or not all(math.isfinite(n) and (n > 0 or not positive) for n in numbers):
            what = "three numbers above 0" if positive else "three numbers"
            raise UserError(f"{kind}.{fact} must be {what}, of the channels of images in [0, 1], not {values!r}")
    if dataset.classes and len(dataset.classes) != dataset.num_classes:
        raise UserError(f"{kind} has {len(dataset.classes)} names in classes, and num_classes is {dataset.num_classes}")


def _check_images(images: object, dataset: Dataset, what: str) -> None:
    size = dataset.image_size
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        hint = ""
        if isinstance(images, Tensor) and images.is_floating_point():
            hint = "; aavae.datasets.to_uint8 converts images in [0, 1]"
        raise UserError(
            f"{what} must be a Tensor of uint8 and shape (N, 3, {size}, {size}), because image_size is {size}, not "
            f"{described(images)}{hint}"
        )
    if (target := dataset.target(to_float(images[:1]))).shape != images[:1].shape:
        raise UserError(f"{what} must keep their shape in target, which makes {described(target)} of one of them")


def _check_labels(labels: object, n: int, classes: int, what: str) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (n,):
        without = "; num_classes = 0 is for images without labels" if labels is None else ""
        raise UserError(f"{what} must be a Tensor of int64 and shape ({n},), not {described(labels)}{without}")
    least, most = (int(labels.min()), int(labels.max())) if n else (0, 0)
    if least < 0 or most >= classes:
        raise UserError(
            f"{what} must be from 0 to {classes - 1}, because num_classes is {classes}, not from {least} to {most}"
        )
