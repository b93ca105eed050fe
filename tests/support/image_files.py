"""Folders and zips of small pictures."""

import hashlib
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

# Python 3.12 warns of every fork of a process with threads, and torch has threads.
FORKS = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


def picture(seed, height=12, width=12, mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def save(root, names, **size):
    """Distinct pictures under `names`; the content depends on the name alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]), **size).save(root / name)
    return root


def classes(part, n=20, names=("cat", "dog")):
    return [f"{part}{name}/{i:02d}.png" for name in names for i in range(n)]


def zipped(root, target, prefix="", compression=zipfile.ZIP_STORED):
    assert root not in target.parents, "the zip would swallow itself"
    with zipfile.ZipFile(target, "w", compression) as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, prefix + file.relative_to(root).as_posix())
    return target


def read(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def rows(images):
    return sorted(image.numpy().tobytes() for image in images)
