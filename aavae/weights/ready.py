"""An encoder that takes pictures: what turns one into a tensor, and the features of many."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from aavae.datasets import decode, to_float
from aavae.datasets.store import BadImage, Store
from aavae.datasets.streaming import StreamedSplit
from aavae.errors import UserError
from aavae.runtime.device import full_float32

BATCH = 256
STL_RESIZE = 105  # pixels, before the middle 96 are cut out, as the released code has it


class Transform:
    """A PIL image → a tensor `(3, image_size, image_size)`, as probes feed it to an encoder.

    The shorter side is resized to `resize` (bilinear), the centre cut out, [0, 1] normalised by `mean` and `std`.
    """

    def __init__(self, image_size: int, resize: int | None, mean: Iterable[float], std: Iterable[float]):
        self.image_size, self.resize = image_size, resize or image_size
        self.mean, self.std = (torch.tensor(list(numbers)).view(3, 1, 1) for numbers in (mean, std))

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = decode.square(image.convert("RGB"), self.image_size, self.resize)
        return (to_float(pixels) - self.mean) / self.std

    def __repr__(self) -> str:
        return f"Transform(image_size={self.image_size}, resize={self.resize})"


class Pictures(StreamedSplit):
    """The images of a folder or zip, each by `transform`, decoded by worker processes; `advice` is for bad ones."""

    def __init__(
        self,
        store: Store,
        names: list[str],
        transform: Callable[[Image.Image], Tensor],
        workers: int,
        advice: str = "repair or remove it",
    ):
        super().__init__(store, names, None, 0, 0, workers)
        self.transform, self.advice = transform, advice

    def __getitem__(self, request: int) -> Tensor | UserError:
        try:
            return self.clean(self.store.open(self.names[request]))
        except BadImage as error:  # as a value: raised, it would arrive wrapped in a worker's traceback
            return UserError(f"{error.fact}; {self.advice}")

    def clean(self, image: Image.Image) -> Tensor:
        """The image as the encoder takes it."""
        return self.transform(image)


def make_ready(
    encoder: Any, mean: tuple[float, ...], std: tuple[float, ...], image_size: int | None, resize: int | None
) -> nn.Module:
    """The encoder in eval mode, with `mean`, `std`, `image_size`, `transform` and `embed`.

    Without an `image_size`, the last two are not there.
    """
    encoder.mean, encoder.std = mean, std
    if image_size is not None:
        encoder.image_size = image_size
        encoder.transform = Transform(image_size, resize, mean, std)
        encoder.embed = _Embed(encoder)
    return encoder.eval()


class _Embed:
    """Features `(N, F)`, float32 and on the CPU, of images: a folder or zip, or PIL images, paths, and uint8 arrays
    `(H, W, 3)` in any number; in batches of `batch_size`, on the device where the encoder is.

    Raises UserError for a path that holds no images, and for an image that cannot be used.
    """

    def __init__(self, encoder: nn.Module):
        self._encoder = [encoder]  # in a list: it is no part of itself

    def __call__(
        self, images: str | Path | Iterable[Image.Image | str | Path | Any], batch_size: int = BATCH
    ) -> Tensor:
        encoder: Any = self._encoder[0]
        found = list(map(self._features, _batches(images, encoder.transform, batch_size)))
        return torch.cat(found) if found else torch.empty(0, encoder.output_dim)

    @torch.no_grad()
    @full_float32()
    def _features(self, x: Tensor) -> Tensor:
        encoder = self._encoder[0]
        device = next(encoder.parameters()).device
        return encoder(x.to(device)).flatten(1).float().cpu()


def _batches(images: Any, transform: Callable, batch_size: int) -> Iterable[Tensor]:
    if batch_size < 1:
        raise UserError(f"batch_size must be 1 or more, not {batch_size}")
    if isinstance(images, str | Path):
        store = Store(Path(images).expanduser())
        yield from Pictures(store, store.names, transform, workers=0).batches(batch_size)
        return
    batch: list[Tensor] = []
    for image in images:
        batch.append(transform(opened(image)))
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def opened(image: Any) -> Image.Image:
    """A PIL image, of one, of a path, or of an array. Raises UserError for a file that cannot be used."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | Path):
        try:
            return decode.rgb(Path(image).expanduser().read_bytes())
        except OSError as error:
            raise UserError(f"the image {image} cannot be read ({error.strerror or error})") from error
        except decode.Unreadable as error:
            raise UserError(f"the image {image} {error}") from error
    return Image.fromarray(image)


def resize_of(dataset: dict) -> int | None:
    """To which size a dataset resizes the shorter side before it cuts out the centre, by its config; None: to the size
    of its images."""
    if dataset.get("target_transform") == "official":
        return STL_RESIZE
    resize = dataset.get("resize")
    return resize if isinstance(resize, int) else None


def resize_said(facts: dict) -> int | None:
    """The same of an encoder file; one of STL-10 that does not say it is taken to be as the released code has it."""
    return facts.get("resize", STL_RESIZE if facts.get("dataset") == "stl10" else None)
