"""SimCLR's operations on a whole batch, in few passes over memory; `simclr.SimCLRViews` draws their parameters.

Images are worked on in the order of their hue's turn (`colors.jitter_`), on a CPU in parts that its caches hold.
Whatever does not depend on pixels is known on the CPU beforehand, so that nothing waits for the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aavae.augmentations.colors import HUE, blend_shares, hue_turns, jitter_, luma_, luma_shares
from aavae.augmentations.resampling import Lines, bilinear, gaussian, neighbours, planes_of, separable
from aavae.runtime.device import send

PART = 131072  # pixels a thread works on at a time: with fewer, calls take longer than what they do


class Work(NamedTuple):
    """What is to be done, with a row for each image; the last four are on the CPU, the others on the device."""

    # In the order of the hue's turn:
    rows: Lines  # of the crop
    columns: Lines
    blends: Tensor  # of the jitter
    hue: Tensor
    luma: Tensor  # shares of the channels in what becomes the red one
    # In each part those that stay sharp, then those that are blurred:
    planes: Tensor  # `(B, 3)`, which of the part become red, green and blue
    kernel: Tensor
    place: Tensor  # in the batch
    blurred: Tensor
    # In the order of the hue's turn:
    turn: Tensor
    gray: Tensor


def views(images: Tensor, draws: dict[str, Tensor], boxes: tuple[Tensor, ...], shape: tuple[int, int]) -> Tensor:
    """Views `(B, 3, *shape)` of images `(B, 3, H, W)`; crop `boxes` are those of `augmentations.crop_boxes`."""
    part = max(1, len(images))
    if images.device.type == "cpu":
        part = max(1, PART // (shape[0] * shape[1])) * torch.get_num_threads()
    kernel_size = int(0.1 * shape[1]) // 2 * 2 + 1
    around: tuple[Tensor, ...] = ()
    if draws["blur"].any():
        around = tuple(send(neighbours(kernel_size, extent), images.device) for extent in shape)
    images, result = images.contiguous(), images.new_empty(len(images), 3, *shape)
    plan = _plan(images, draws, boxes, shape, kernel_size, part)
    for first in range(0, len(images), part):
        some = slice(first, first + part)
        _work(images, Work._make(numbers[some] for numbers in plan), around, result)
    return result


def _plan(
    images: Tensor, draws: dict[str, Tensor], boxes: tuple[Tensor, ...], shape: tuple[int, int], kernel: int, part: int
) -> Work:
    device, number, rgb = images.device, torch.arange(len(images)), torch.arange(3, dtype=torch.int32)
    turn, order = hue_turns(draws["order"], draws["jitter"]).sort(stable=True)
    draws = {name: values[order] for name, values in draws.items()}
    last = (2 * (number // part) + draws["blur"]).argsort(stable=True)
    first_plane = 3 * (number % part).int()[:, None]
    top, left, height, width = send(torch.stack(boxes)[:, order], device)
    sources, crops = send(torch.stack([3 * order.int()[:, None] + rgb, first_plane + rgb]), device)
    return Work(
        rows=bilinear(top, height, shape[0]).of(sources, images.shape[-2]),
        columns=bilinear(left, width, shape[1], send(draws["flip"], device)).of(crops, images.shape[-1]),
        blends=send(blend_shares(draws["factors"], draws["order"]), device),
        hue=send(draws["factors"][:, HUE, None, None], device),
        luma=send(luma_shares(draws["gray"]), device),
        planes=send((first_plane + rgb * ~draws["gray"][:, None])[last], device),  # the first three times where gray
        kernel=send(gaussian(draws["sigma"][last], kernel), device),
        place=order[last],
        blurred=draws["blur"][last],
        turn=turn,
        gray=draws["gray"],
    )


def _work(images: Tensor, work: Work, around: tuple[Tensor, ...], result: Tensor) -> None:
    part = separable(images, work.rows, work.columns)
    jitter_(part, work.turn, work.blends, work.hue)
    if work.gray.any():
        luma_(part, work.luma)
    part = part.mT  # column by column, as it lies in memory
    sharp = len(part) - int(work.blurred.sum())
    if sharp:
        _put(result, work.place[:sharp], _gather(part, work.planes[:sharp]).mT)
    if sharp < len(part):
        rows, columns = (Lines(index, work.kernel[sharp:]) for index in around)
        planes = work.planes[sharp:]
        columns, rows = columns.of(planes, part.shape[-2]), rows.of(planes_of(planes), part.shape[-1])
        _put(result, work.place[sharp:], separable(part, columns, rows).mT)


def _gather(images: Tensor, planes: Tensor) -> Tensor:
    return images.flatten(0, 1).index_select(0, planes.flatten()).unflatten(0, planes.shape)


def _put(result: Tensor, places: Tensor, images: Tensor) -> None:
    if result.device.type == "cpu":  # where index_copy_ goes number by number
        for place, image in zip(places.tolist(), images.unbind(), strict=True):
            result[place] = image
    else:
        result.index_copy_(0, send(places, result.device), images)
