"""Generators whose numbers are a function of keys such as (seed, purpose, step)."""

import hashlib

import torch

from aavae.runtime.device import send


def seed_for(*keys) -> int:
    """A 63-bit seed that depends on every key (run seed, what is drawn, epoch or step) and on nothing else.

    Torch's generator of the CPU keeps the lower 32 bits of it (mt19937), so that of n generators n²/2³³ pairs are
    expected to draw the same numbers: 330 of the 1.7 million of 3,200 epochs on CIFAR-10, at unrelated steps.
    """
    return int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=8).digest(), "little") >> 1


def generator_for(*keys) -> torch.Generator:
    """A fresh CPU generator for `keys`: the draws of one purpose at one step, the same on every device and rank."""
    return torch.Generator().manual_seed(seed_for(*keys))


def generators_for(views: int, *keys) -> list[torch.Generator]:
    """A CPU generator for each of several views; the first view's numbers are those of one view alone."""
    return [generator_for(*keys, *([v] if v else [])) for v in range(views)]


def uniform(shape: torch.Size, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1) on `device`, drawn there where it has a generator, else by `generator`, of the CPU.

    Those of a GPU depend on the seed of `generator` alone, not on what it has drawn.
    """
    if device.type in ("cuda", "mps"):
        own = torch.Generator(device).manual_seed(generator.initial_seed())
        return torch.rand(shape, generator=own, device=device)
    return send(torch.rand(shape, generator=generator), device)


def seed_default(device: torch.device, seed: int) -> None:
    """Seed torch's own generator of `device`, which dropout draws from; `torch.manual_seed` would seed all devices."""
    seeders = {"cuda": torch.cuda.manual_seed, "mps": torch.mps.manual_seed}
    seeders.get(device.type, torch.default_generator.manual_seed)(seed)
