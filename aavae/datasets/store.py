"""Images in a folder or a zip: decoded into memory at once, or streamed by worker processes."""

import atexit
import hashlib
import io
import multiprocessing
import os
import signal
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from aavae.augmentations import crop_boxes
from aavae.errors import UserError, WorkerDied
from aavae.signals import STOPS, blocked

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
PARTS = ("train", "test", "val", "valid", "validation")


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
        if len(tops) == 1 and all(n.count("/") >= 2 for n in names) and not tops & set(PARTS):
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


def _torchvision():
    from torchvision.transforms import functional  # takes seconds, which images of the right size need not wait

    return functional


def square(image: Image.Image, size: int, resize: int | None = None) -> Tensor:
    """The image resized (shorter side to `resize`, or `size`; bilinear), centre-cropped: uint8 `(3, size, size)`."""
    if image.size != (size, size) or (resize or size) != size:
        tvf = _torchvision()
        image = tvf.center_crop(tvf.resize(image, resize or size, antialias=True), [size, size])
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


def _ignore_signals(worker: int) -> None:
    for signum in STOPS:  # where a process does not inherit that they are blocked; its parent ends it
        signal.signal(signum, signal.SIG_IGN)


_workers: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in list(_workers):  # multiprocessing would send them a SIGTERM, and wait
        worker.kill()


def _collate(items: list):
    return next((i for i in items if isinstance(i, UserError)), None) or default_collate(items)


def _next(iterator: Iterator, workers: set):
    """The next batch, None after the last. Raises WorkerDied if a process that reads images was killed."""
    try:
        if not any(worker.exitcode for worker in workers):
            return next(iterator, None)
    except RuntimeError:  # torch has noticed, too
        if not any(worker.exitcode for worker in workers):
            raise
    code = next(worker.exitcode for worker in workers if worker.exitcode)
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    hint = {-signal.SIGKILL: ", as when memory runs out", -signal.SIGBUS: ", as when /dev/shm is full"}.get(code, "")
    raise WorkerDied(f"a process that reads images died ({how}{hint}); dataset.workers= sets how many there are")


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
        tvf = _torchvision()
        image = tvf.resize(image, self.resize, antialias=True)
        return tvf.pil_to_tensor(tvf.center_crop(image, [self.image_size, self.image_size]))

    def pair(self, index: int, draws: Tensor | None, scale, ratio) -> tuple[Tensor, Tensor]:
        """The clean image and its crop by `draws`, both uint8 `(3, H, W)`; without draws, twice the clean one."""
        image = self.store.open(self.names[index])
        clean = self.clean(image)
        if draws is None:
            return clean, clean
        box = [int(t) for t in crop_boxes(draws[None], image.height, image.width, scale, ratio)]
        tvf = _torchvision()
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
        loader = DataLoader(
            self,
            batch_sampler=requests,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # for the workers' seeds, which nobody uses; else torch's own would move
        )
        before = set(multiprocessing.active_children())
        with blocked():
            iterator = iter(loader)
        workers = set(multiprocessing.active_children()) - before
        _workers.update(workers)
        if threading.current_thread() is threading.main_thread():
            # Torch raises the death of a worker wherever it finds the main process, as in the middle of a step.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            while (batch := _next(iterator, workers)) is not None:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            del iterator  # ends them, as far as they listen
            for worker in workers:
                worker.kill()

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """The clean images, or those at `order`, uint8, on the CPU."""
        order = torch.arange(len(self)) if order is None else order
        yield from self.stream(i.tolist() for i in order.split(batch_size))

    def fingerprint(self) -> str:
        """A short hash of the names and labels."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]
