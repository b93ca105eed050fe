"""Images that are decoded from disk by worker processes each time they are needed."""

import atexit
import contextlib
import multiprocessing
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from aavae.augmentations.crops import crop_boxes
from aavae.datasets import decode
from aavae.datasets.store import BadImage, Store, reporter
from aavae.errors import UserError, WorkerDied
from aavae.runtime.signals import STOPS, blocked
from aavae.runtime.threads import cores
from aavae.runtime.words import count


def _ignore_signals(worker: int) -> None:
    for signum in STOPS:  # where a process does not inherit that they are blocked; its parent ends it
        signal.signal(signum, signal.SIG_IGN)


_workers: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in list(_workers):  # multiprocessing would send them a SIGTERM, and wait
        worker.kill()


class Instead(NamedTuple):
    """What is given in the place of an image that cannot be used: that of another, and why."""

    images: Any
    why: BadImage


def _collate(items: list) -> UserError | tuple[Any, list[BadImage]]:
    """A batch, and the images in it whose places others have taken; or what refuses it."""
    if refused := next((i for i in items if isinstance(i, UserError)), None):
        return refused
    bad = [i.why for i in items if isinstance(i, Instead)]
    return default_collate([i.images if isinstance(i, Instead) else i for i in items]), bad


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
        self._lost: set[str] = set()  # images that could be used at first, and cannot any more

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Tensor) -> "StreamedSplit":
        """The images at `indices`, as a split of their own."""
        labels = None if self.labels is None else self.labels[indices]
        names = [self.names[i] for i in indices.tolist()]
        return StreamedSplit(self.store, names, labels, self.image_size, self.resize, self.workers)

    def clean(self, image: Image.Image) -> Tensor:
        """Resize to `resize`, centre-crop to `image_size`: uint8 `(3, H, W)`."""
        tvf = decode.torchvision_functional()
        image = tvf.resize(image, self.resize, antialias=True)
        return tvf.pil_to_tensor(tvf.center_crop(image, [self.image_size, self.image_size]))

    def crops(self, index: int, draws: Sequence[Tensor], scale, ratio) -> tuple[Tensor, ...]:
        """The clean image and a crop for each of `draws`, uint8 `(3, H, W)`; without draws, twice the clean one."""
        image = self.store.open(self.names[index])
        clean = self.clean(image)
        if not len(draws):
            return clean, clean
        tvf, size = decode.torchvision_functional(), [self.image_size, self.image_size]
        boxes = [[int(t) for t in crop_boxes(draw[None], image.height, image.width, scale, ratio)] for draw in draws]
        return clean, *(tvf.pil_to_tensor(tvf.resized_crop(image, *box, size, antialias=True)) for box in boxes)

    def __getitem__(self, request) -> Tensor | tuple[Tensor, ...] | Instead | UserError:
        try:
            if isinstance(request, int):
                return self.clean(self.store.open(self.names[request]))
            return self.crops(*request)
        except BadImage as error:  # as a value: raised, it would arrive wrapped in a worker's traceback
            # To measure, an image is needed itself: another would not fit its label.
            if self.store.skip and not isinstance(request, int) and (other := self._next_to(*request)):
                return Instead(other, error)
            return UserError(f"{error.fact}; put an undamaged copy there; the same command then continues")

    def _next_to(self, index: int, *how) -> tuple[Tensor, ...] | None:
        """What a request for the next image that can be used gives; None if none of a hundred can."""
        for i in range(index + 1, index + min(100, len(self))):
            with contextlib.suppress(BadImage):
                return self.crops(i % len(self), *how)
        return None

    def _say(self, bad: list[BadImage]) -> None:
        """Name the images that others have replaced, each once, and how many there are."""
        for error in bad:
            if error.name not in self._lost:
                self._lost.add(error.name)
                n = count(len(self._lost), "image")
                reporter().say(f"left out    {error.name} {error.reason}; another is taken in its place ({n} so far)")

    def stream(self, requests) -> Iterator:
        """Batches answering an iterable of lists of requests, each by `__getitem__`, in worker processes."""
        images: Any = self  # which is no torch Dataset, only looks like one
        loader: DataLoader = DataLoader(
            images,
            batch_sampler=requests,
            num_workers=min(self.workers, len(cores())),
            collate_fn=_collate,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # for the workers' seeds, which nobody uses; else torch's own would move
        )
        before, workers, iterator = set(multiprocessing.active_children()), set(), iter(())
        try:
            with blocked():
                try:
                    iterator = iter(loader)
                finally:  # some may be there where not all could be started
                    workers |= set(multiprocessing.active_children()) - before
                    _workers.update(workers)
            if threading.current_thread() is threading.main_thread():
                # Torch raises the death of a worker wherever it finds the main process, as in the middle of a step.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            while (batch := _next(iterator, workers)) is not None:
                if isinstance(batch, UserError):
                    raise batch
                images, bad = batch
                self._say(bad)
                yield images
        finally:
            del iterator  # ends them, as far as they listen
            for worker in workers:
                worker.kill()

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """The clean images, or those at `order`, uint8, on the CPU."""
        order = torch.arange(len(self)) if order is None else order
        yield from self.stream(i.tolist() for i in order.split(batch_size))

    def fingerprint(self) -> str:
        """A short hash of names, sizes and labels, and of all bytes where they are known (see `Store.fingerprint`)."""
        return self.store.fingerprint(self.names, self.labels)
