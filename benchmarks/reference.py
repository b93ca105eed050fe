"""The released code's way to make batches: PIL images augmented one by one in worker processes."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from aavae import build
from aavae.augmentations.pipeline import Pipeline
from aavae.datasets.loader import Batch
from aavae.training.trainer import Trainer
from benchmarks import rivals
from benchmarks.machine import cores

MOST_WORKERS = 16
ENDLESS = 10**12


class Pairs(Dataset):
    """A PIL image in memory → the clean image and its view, both normalised tensors."""

    def __init__(self, images: Tensor, augmentation, mean: rivals.Numbers, std: rivals.Numbers):
        self.pictures = rivals.pictures(images)
        self.clean = rivals.clean(mean, std)
        self.view = rivals.pil(augmentation, images.shape[-1], mean, std)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.clean(self.pictures[index]), self.view(self.pictures[index])


class Workers:
    """Batches without end from a DataLoader's workers, which can be stopped while something else is measured."""

    def __init__(self, pairs: Pairs, batch_size: int, device: torch.device, workers: int):
        self.device = device
        loader = DataLoader(
            pairs,
            batch_size,
            sampler=RandomSampler(pairs, replacement=True, num_samples=ENDLESS),
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        before = set(multiprocessing.active_children())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit: Ctrl-C is for this process
        try:
            self.batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.processes = set(multiprocessing.active_children()) - before
        self._send(signal.SIGSTOP)

    def __next__(self) -> Batch:
        clean, view = (images.to(self.device, non_blocking=True) for images in next(self.batches))
        return Batch(clean, view, cropped=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let them work for a while; a queue that was full then is full again the next time."""
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self._send(signal.SIGSTOP)

    def close(self) -> None:
        """End them."""
        self._send(signal.SIGCONT)
        del self.batches

    def _send(self, signum: int) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signum)


def reference(cfg, device: torch.device, workers: int | None = None) -> tuple[Trainer, Workers]:
    """A trainer that is handed views, and the workers that make them."""
    data = build.dataset(cfg)
    mean, std = data.mean, data.std
    data.mean, data.std = (0.0,) * 3, (1.0,) * 3  # the workers normalise: the trainer's (x − 0) / 1 is x
    trainer = build.trainer(cfg, data=data)
    pairs = Pairs(data["pretrain"].images, trainer.augmentation, mean, std)
    trainer.augmentation = Pipeline()  # views are handed through
    return trainer, Workers(pairs, cfg.batch_size, device, workers or min(cores(), MOST_WORKERS))
