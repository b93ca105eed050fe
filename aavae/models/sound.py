"""Parts that are not aavae's own, tried on shapes before anything is trained: is each what the others rely on?"""

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from aavae.errors import UserError
from aavae.models import Model
from aavae.models.autoencoder import AutoEncoder
from aavae.runtime.processes import Processes
from aavae.runtime.words import described

OURS = ("aavae.", "timm.")
IMAGES = 4  # BatchNorm wants two, and a model may halve them
NOT_TRIED = (NotImplementedError, RuntimeError)  # what torch raises where it needs numbers; training says more


def on_meta(model: Model) -> Model:
    """A copy without numbers, and without the other processes."""
    numbers = [*model.parameters(), *model.buffers()]
    memo: dict[int, object] = {
        id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in numbers
    }
    twin = copy.deepcopy(model, memo)
    twin.processes = Processes()
    return twin


def check(model: Model, image_size: int) -> None:
    """Raise UserError where an encoder, a decoder, a loss or `learn` that is not aavae's returns what nothing can be
    done with. What torch cannot follow on shapes alone is not tried."""
    parts = model, model.encoder, getattr(model, "decoder", None), getattr(model, "loss", None)
    if all(part is None or type(part).__module__.startswith(OURS) for part in parts):
        return
    twin = on_meta(model)
    with torch.device("meta"):
        for training in (False, True):
            _check_encoder(twin.train(training), image_size)
        if isinstance(twin, AutoEncoder):
            _check_decoder(twin, image_size)
        _check_step(twin, image_size)


def _check_encoder(model: Model, size: int) -> None:
    encoder: Any = model.encoder
    name, width = type(encoder).__name__, encoder.output_dim
    with contextlib.suppress(*NOT_TRIED), torch.no_grad():
        h = encoder(torch.empty(IMAGES, 3, size, size))
        mode = "training" if model.training else "eval"
        if not isinstance(h, Tensor) or h.shape != (IMAGES, width) or h.dtype != torch.float32:
            raise UserError(
                f"the encoder {name} must make float32 features of shape (B, {width}) of B images, because its "
                f"output_dim is {width}; in {mode} mode it makes {described(h)}"
            )


def _check_decoder(model: AutoEncoder, size: int) -> None:
    with contextlib.suppress(*NOT_TRIED), torch.no_grad():
        x_hat = model.decoder(torch.empty(IMAGES, model.latent_dim))
        if not isinstance(x_hat, Tensor) or x_hat.shape != (IMAGES, 3, size, size):
            raise UserError(
                f"the decoder {type(model.decoder).__name__} must make images of shape (B, 3, {size}, {size}) of "
                f"latents (B, {model.latent_dim}); it makes {described(x_hat)}"
            )


def _check_step(model: Model, size: int) -> None:
    own_loss = isinstance(model, AutoEncoder) and model.loss is not None
    whose = f"the loss {type(model.loss).__name__}" if own_loss else f"{type(model).__name__}.learn"
    if own_loss and model.stochastic and not hasattr(model.loss, "log_px_given_z"):
        raise UserError(f"{whose} is variational, and so it needs a method log_px_given_z(output, x)")
    x = torch.empty(IMAGES, 3, size, size)
    noise = torch.empty(IMAGES, model.noise_dim) if model.noise_dim else None
    with contextlib.suppress(*NOT_TRIED):
        learned = model.learn(x.expand(model.n_views, *x.shape), x, noise)
        if not isinstance(learned, tuple) or len(learned) != 2:
            raise UserError(f"{whose} must return its output and a dict of scalars, not {described(learned)}")
        terms = learned[1]
        if not isinstance(terms, dict) or "loss" not in terms:
            found = f"one of {', '.join(map(str, terms))}" if isinstance(terms, dict) else described(terms)
            raise UserError(f"{whose} must return a dict of scalars, loss among them, not {found}")
        for name, value in terms.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                found = f"its {name} is {described(value)}"
                raise UserError(f"{whose} must return scalar tensors, such as means over the batch; {found}")
        if not terms["loss"].requires_grad:
            raise UserError(f"{whose} returns a loss without a gradient; do not detach it from the model's output")
