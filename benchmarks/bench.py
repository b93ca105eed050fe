"""What every part is given: where to measure, how much, and the book for it."""

from dataclasses import dataclass

import torch

from benchmarks.book import Book, Measured


@dataclass(frozen=True)
class Bench:
    """`batches` and `models` are empty where each part takes its own; `quick` asks for seconds instead of minutes."""

    device: torch.device
    book: Book
    repeats: int = 5
    quick: bool = False
    compile: bool = False
    models: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU is what is measured."""
        return self.device.type == "cpu"

    def row(self, *arguments, **named) -> Measured:
        """A new row of the book."""
        return self.book.add(Measured(*arguments, **named))
