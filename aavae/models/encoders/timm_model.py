"""Any timm model by name, as an encoder."""

import difflib
from typing import Any

import timm
import torch
from torch import nn

from aavae.errors import UserError
from aavae.models.encoders import measure_output_dim


def timm_model(name: str, image_size: int, kwargs: dict | None = None) -> nn.Module:
    """timm's model `name` without its classifier and without pretrained weights, `(B, 3, H, W)` → `(B, output_dim)`.

    `kwargs` go to `timm.create_model`. Raises UserError for a name timm does not know (with the nearest ones), for
    arguments it refuses, and for a model that cannot take images of `image_size`.
    """
    if str(name).split(".")[0] not in timm.list_models():
        near = difflib.get_close_matches(str(name).split(".")[0], timm.list_models(), 5)
        raise UserError(f"timm has no model {name!r}" + (f"; it has {', '.join(near)}" if near else ""))
    arguments = dict(kwargs or {})
    if refused := [k for k in arguments if k.startswith(("pretrained", "checkpoint", "cache"))]:
        ways = "encoder.pretrained=true starts from timm's weights, encoder.weights=PATH from those of a file"
        raise UserError(f"encoder.kwargs.{refused[0]} is not for weights: {ways}")
    try:
        with torch.device("cpu"):  # some of timm's cannot be built on the meta device
            net: Any = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
        net = net.to(torch.get_default_device())
        net.output_dim = measure_output_dim(net, image_size)
    except Exception as error:  # timm's models raise what they like
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"timm model {name} cannot be built for {image_size}×{image_size} images ({reason}); "
            f"some take +encoder.kwargs.img_size={image_size}"
        ) from error
    return net
