"""The images in a folder or a zip, by name: opened, checked, or decoded into memory at once."""

import hashlib
import os
import stat
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aavae.datasets import checked, decode, listing
from aavae.datasets.layout import common_folder, listed, readable
from aavae.errors import UserError
from aavae.loggers.screen import Reporter
from aavae.runtime.threads import cores
from aavae.runtime.words import count

THREADS = 8  # for reading into memory
PIECE = 256  # images of a thread's job: a job each costs more than decoding a small one


def reporter() -> Reporter:
    """Tells how far reading is, once however many processes train together."""
    return Reporter(quiet=os.environ.get("RANK", "0") != "0")


class BadImage(UserError):
    """The image `name` below `path` cannot be used, for a `reason` that follows its name in a sentence."""

    def __init__(self, name: str, path: str, reason: str):
        super().__init__(name, path, reason)  # as they are, so that it comes whole from a worker
        self.name, self.path, self.reason = readable(name), path, reason

    @property
    def fact(self) -> str:
        """What is the matter, without advice."""
        return f"the image {self.name} in {self.path} {self.reason}"

    def __str__(self) -> str:
        return f"{self.fact}; repair or remove it"


class Store:
    """The images below a folder or inside a zip, by their relative names, in sorted order.

    Folders that wrap everything are no part of the names; `notes` are sentences on what was passed over. With
    `skip=None` nobody can ask for bad images to be left out; otherwise they are, or are refused. Raises UserError for a
    path that is missing, is no zip, or holds no images.
    """

    def __init__(self, path: Path, skip: bool | None = None):
        self.path, self.skip = Path(path), skip
        self._local = threading.local()  # a ZipFile is not to be shared among threads or processes
        try:
            self.is_folder = stat.S_ISDIR(self.path.stat().st_mode)
        except (OSError, ValueError) as error:
            why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise UserError(f"dataset.path={path} {why}; it should be a folder or a zip of images") from error
        if not self.is_folder and not self.path.is_file():
            raise UserError(f"dataset.path={path} is neither a folder nor a file")
        found = listing.of_folder(self.path) if self.is_folder else listing.of_zip(self._zip())
        self.notes = found.notes()
        if not found.sizes:
            also = "".join(f"; {note}" for note in self.notes)
            raise UserError(f"{path} holds no images ({', '.join(sorted(listing.EXTENSIONS))}){also}")
        names = found.names
        self.prefix = common_folder(names)
        self.names = [name.removeprefix(self.prefix) for name in names]
        self._sizes = dict(zip(self.names, (found.sizes[name] for name in names), strict=True))
        # CRC-32 of each file: a zip says them, those of a folder are found by `check`.
        self._crcs = {name.removeprefix(self.prefix): crc for name, crc in found.crcs.items()}
        self._members, self._stamp = found.members, found.stamp

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state):
        self.__dict__.update(state, _local=threading.local())

    def _zip(self) -> zipfile.ZipFile:
        if getattr(self._local, "pid", None) != os.getpid():
            try:
                self._local.zip, self._local.pid = zipfile.ZipFile(self.path), os.getpid()
            except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
                raise UserError(f"{self.path} is neither a folder nor a readable zip ({error})") from error
        return self._local.zip

    def _bytes(self, name: str) -> bytes:
        decode.refuse_large(self._sizes[name])
        name = self.prefix + name
        try:
            if self.is_folder:
                return (self.path / name).read_bytes()
            info = self._zip().getinfo(self._members.get(name, name))
            if info.flag_bits & 1:
                raise decode.Unreadable("is encrypted")
            return self._zip().read(info)
        except OSError as error:
            raise decode.Unreadable(f"cannot be read ({error.strerror or error})") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise decode.Unreadable(f"is damaged ({error})") from error

    def open(self, name: str) -> Image.Image:
        """The image `name`, upright and in RGB; raises BadImage, a UserError, if it cannot be used."""
        return self._named(name, lambda: decode.rgb(self._bytes(name)))

    def _named(self, name: str, do: Callable):
        try:
            return do()
        except decode.Unreadable as error:
            raise BadImage(self.prefix + name, str(self.path), str(error)) from error

    def read(self, names: list[str], image_size: int, resize: int | None = None) -> tuple[Tensor, list[str]]:
        """The images as squares (see `decode.square`), uint8 `(N, 3, H, W)`, and their names: all, or with
        `skip` those that can be used. Raises UserError for the others."""
        out = torch.empty(len(names), 3, image_size, image_size, dtype=torch.uint8)
        filled = out.numpy()  # numpy's small copies cost a tenth of torch's

        def fill(i: int) -> None:
            filled[i] = decode.square(self.open(names[i]), image_size, resize).numpy()

        bad = self._each(names, fill, min(THREADS, len(cores())), "reading images")
        self._refuse_or_say(list(bad.values()))
        if not bad:
            return out, names
        kept = [i for i in range(len(names)) if i not in bad]
        return out[kept], [names[i] for i in kept]

    def check(self, names: list[str]) -> list[str]:
        """Open all of `names` once, and return those that can be used. Raises UserError for the others, unless `skip`.

        A check that took long is remembered for as long as the files do not change.
        """
        key = hashlib.sha256(f"{self.path.resolve()}{self._stamp}{len(names)}".encode(errors="surrogateescape"))
        if (known := checked.recall(key.hexdigest(), len(names))) is None:

            def look(i: int) -> None:
                content = self._bytes(names[i])
                self._crcs[names[i]] = zlib.crc32(content)
                decode.rgb(content)

            began = time.monotonic()
            bad = self._each(names, lambda i: self._named(names[i], lambda: look(i)), len(cores()), "checking images")
            reasons = {i: error.reason for i, error in bad.items()}
            crcs = [self._crcs.get(name, 0) for name in names]
            checked.remember(key.hexdigest(), crcs, reasons, time.monotonic() - began)
        else:
            crcs, reasons = known
            self._crcs = dict(zip(names, crcs, strict=True))
        self._refuse_or_say([BadImage(self.prefix + names[i], str(self.path), why) for i, why in reasons.items()])
        return [name for i, name in enumerate(names) if i not in reasons] if reasons else names

    @staticmethod
    def _each(names: list[str], do: Callable[[int], None], threads: int, what: str) -> dict[int, BadImage]:
        # PIL decodes outside the interpreter lock, so threads help.
        def piece(start: int) -> dict[int, BadImage]:
            bad = {}
            for i in range(start, min(start + PIECE, len(names))):
                try:
                    do(i)
                except BadImage as error:
                    bad[i] = error
            return bad

        starts = range(0, len(names), PIECE)
        bad: dict[int, BadImage] = {}
        with ThreadPoolExecutor(threads) as pool:
            for found in reporter().track(pool.map(piece, starts), len(starts), what):
                bad |= found
        return bad

    def _refuse_or_say(self, bad: list[BadImage]) -> None:
        if not bad:
            return
        named = listed((f"{error.name} {error.reason}" for error in bad), 10)
        if self.skip:
            reporter().say(f"left out    {count(len(bad), 'image')} that cannot be used: {named}")
            return
        advice = "" if self.skip is None else ", or leave out what cannot be used with dataset.on_error=skip"
        if len(bad) == 1:
            raise UserError(f"{bad[0]}{advice}")
        raise UserError(f"{len(bad):,} images in {self.path} cannot be used: {named}; repair or remove them{advice}")

    def fingerprint(self, names: list[str], labels: Tensor | None) -> str:
        """Eight letters of a hash of names, sizes and labels, and eight of one of all bytes (their CRC-32), which are
        known of a zip, and of a folder once it is checked; otherwise they are left out."""
        outline = hashlib.sha256()
        for name in names:
            outline.update(f"{name}\n{self._sizes[name]}\n".encode(errors="surrogateescape"))
        if labels is not None:
            outline.update(labels.numpy().tobytes())
        crcs = [self._crcs.get(name) for name in names]
        content = "" if None in crcs else hashlib.sha256(np.array(crcs, np.uint32).tobytes()).hexdigest()[:8]
        return outline.hexdigest()[:8] + content
