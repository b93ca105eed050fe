"""What training computes, in floating-point operations: counted on shapes, without computing anything."""

import torch

from aavae.models import Model
from aavae.models.sound import on_meta


def training_flop(model: Model, image_size: int, clean_pass: bool, batch_size: int) -> float | None:
    """FLOP of one training image: all views forward and backward, and with `clean_pass` the clean image forward.

    It is that of an image in a batch of `batch_size`, on which it depends where images are compared.

    A multiplication with its addition is two. Products of matrices, convolutions and attention are counted, as by
    `torch.utils.flop_counter`; the optimizer and what works on single numbers is not. None if `model` computes
    something that has no shape-only version in torch.
    """
    return _count(on_meta(model).train(), image_size, clean_pass, max(2, batch_size))  # BatchNorm wants two


def _count(twin: Model, image_size: int, clean_pass: bool, n: int) -> float | None:
    """As `training_flop`, for a copy that is without numbers and in training mode."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            x = torch.empty(n, 3, image_size, image_size)
            noise = torch.empty(n, twin.noise_dim) if twin.noise_dim else None
            twin.learn(x.expand(twin.n_views, *x.shape), x, noise)[1]["loss"].backward()
            if clean_pass:
                with torch.no_grad():
                    twin.clean(x)
    except (NotImplementedError, RuntimeError):  # of a model of somebody's own
        return None
    return counter.get_total_flops() / n
