"""The image files below a folder or in a zip, each real file once, and what was passed over."""

import errno
import hashlib
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from aavae.datasets.layout import listed, readable
from aavae.errors import UserError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
# Litter of operating systems and network storage; some hold copies or small copies of the images.
LITTER = {"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir"}


class Listing:
    """Names of images relative to `path`, with slashes, in sorted order; their `sizes` in bytes; of a zip's members the
    `crcs`, and what they are called there (`members`) where that is not the name.

    `passed_over` counts what is no image here, by kind; `archives` are named; `empty` are folders without any image.
    `stamp` changes with names, sizes and times of change.
    """

    def __init__(self):
        self.sizes: dict[str, int] = {}
        self.crcs: dict[str, int] = {}
        self.members: dict[str, str] = {}
        self.passed_over: Counter[str] = Counter()
        self.archives: list[str] = []
        self.empty: list[str] = []
        self._stamp = hashlib.sha256()

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self.sizes)

    @property
    def stamp(self) -> str:
        """A hash of names, sizes and times."""
        return self._stamp.hexdigest()

    def notes(self) -> list[str]:
        """Sentences on what was passed over."""
        notes = []
        if self.passed_over:
            counts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.passed_over.items()))
            notes.append(f"passed over: {counts}")
        if self.archives:
            names = listed(sorted(self.archives))
            notes.append(f"not opened: {names}; unpack archives, or give the path of one zip")
        if self.empty:
            notes.append(f"folders without images: {listed(f'{folder}/' for folder in self.empty)}")
        return notes

    def wants(self, name: str) -> bool:
        """Whether a file of this name is an image; counts it otherwise."""
        path = PurePosixPath(name)
        if any(is_hidden(part) for part in path.parts):
            self.passed_over["hidden"] += 1
        elif path.suffix.lower() in ARCHIVES:
            self.archives.append(name)
        elif path.suffix.lower() not in EXTENSIONS:
            self.passed_over[f"{path.suffix.lower() or 'without extension'}"] += 1
        else:
            return True
        return False

    def add(self, name: str, size: int, *stamp: int) -> None:
        """Count an image in."""
        self.sizes[name] = size
        self._stamp.update(repr((name, size, *stamp)).encode())

    def close(self, folders: set[str]) -> "Listing":
        """Find the empty ones among all `folders`."""
        full = {parent.as_posix() for name in {os.path.dirname(n) for n in self.sizes} for parent in _and_above(name)}
        self.empty = sorted(f for f in folders - full if not any(is_hidden(part) for part in f.split("/")))
        return self


def _and_above(folder: str) -> list[PurePosixPath]:
    path = PurePosixPath(folder)
    return [path, *path.parents]


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is litter of an operating system, or not meant to be seen."""
    return part.startswith(".") or part.lower() in LITTER


def of_zip(archive: zipfile.ZipFile) -> Listing:
    """The images of a zip. Names that Windows has written with backslashes are read as folders."""
    listing, folders = Listing(), set()
    for info in archive.infolist():
        name = "/".join(part for part in info.filename.replace("\\", "/").split("/") if part not in ("", "."))
        if info.is_dir() or info.filename.endswith("\\"):
            folders.add(name)
        elif stat.S_ISLNK(info.external_attr >> 16):
            listing.passed_over["links"] += 1
        elif listing.wants(name):
            listing.add(name, info.file_size, info.CRC)
            listing.crcs[name] = info.CRC
            if name != info.filename:
                listing.members[name] = info.filename
    return listing.close(folders)


def of_folder(root: Path) -> Listing:
    """The images below a folder, through links too; a file or folder that is there twice by links counts once, and then
    where it really lies. Raises UserError for a folder that cannot be read."""
    try:
        return _Walk(root).listing
    except OSError as error:  # else its images would be missing, and nobody would know
        raise UserError(
            f"{readable(str(error.filename))} cannot be read ({error.strerror}); make it readable (folders also want "
            "the right to enter them, chmod +rx), or move it away"
        ) from error


class _Walk:
    def __init__(self, root: Path):
        self.listing = Listing()
        self.folders: set[int] = set()
        self.files: set[int] = set()
        self.names: set[str] = set()
        # A link to a folder around this one leads to everything once more.
        self.folders |= {_identity(os.stat(folder)) for folder in (root.resolve(), *root.resolve().parents)}
        self.links: list[tuple[str, str]] = []
        self._enter(str(root), "")
        while self.links:  # links last: what they lead to may have been found by its own name
            links, self.links = sorted(self.links), []
            for name, path in links:
                self._follow(name, path)
        self.listing.close(self.names)

    def _enter(self, folder: str, prefix: str) -> None:
        waiting = [(folder, prefix)]
        while waiting:
            folder, prefix = waiting.pop()
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                name = prefix + entry.name
                if entry.is_symlink():
                    self.links.append((name, entry.path))
                elif not entry.is_dir():
                    self._file(name, entry.stat)
                elif is_hidden(entry.name):
                    self.listing.passed_over["hidden"] += 1
                elif self._new_folder(entry.stat()):
                    self.names.add(name)
                    waiting.append((entry.path, f"{name}/"))

    def _follow(self, name: str, path: str) -> None:
        try:
            found = os.stat(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self.listing.passed_over["broken links"] += 1
            return
        if not stat.S_ISDIR(found.st_mode):
            self._file(name, lambda: found)
        elif is_hidden(name.rsplit("/", 1)[-1]):
            self.listing.passed_over["hidden"] += 1
        elif self._new_folder(found):
            self.names.add(name)
            self._enter(path, f"{name}/")
        else:
            self.listing.passed_over["links to folders that are read already"] += 1

    def _new_folder(self, found: os.stat_result) -> bool:
        new = _identity(found) not in self.folders
        self.folders.add(_identity(found))
        return new

    def _file(self, name: str, look: Callable[[], os.stat_result]) -> None:
        if not self.listing.wants(name):
            return
        try:
            found = look()
        except FileNotFoundError:  # gone in the meantime
            return
        if not stat.S_ISREG(found.st_mode):  # a pipe would keep us waiting for ever
            self.listing.passed_over["no regular files"] += 1
        elif _identity(found) in self.files:
            self.listing.passed_over["links to images that are read already"] += 1
        else:
            self.files.add(_identity(found))
            self.listing.add(name, found.st_size, found.st_mtime_ns)


def _identity(found: os.stat_result) -> int:
    return (found.st_dev << 64) + found.st_ino
