"""A model from its plain description."""

from collections.abc import Callable

from torch import nn

from aavae.errors import UserError
from aavae.models import Model
from aavae.models.autoencoder import AutoEncoder
from aavae.runtime.targets import ARCHITECTURES, builder, component


def assemble(
    architecture: dict,
    allowed: tuple[str, ...] = ARCHITECTURES,
    start: Callable[[nn.Module], None] | None = None,
    **parts,
) -> Model:
    """The model that an `architecture` describes: a plain dict with the class as `_target_` (by default AutoEncoder),
    the encoder, a decoder where there is one, and the other arguments of the class, to which `parts` are added. It
    keeps the description as its `architecture`. `start` gives the encoder its first weights.

    Raises UserError for a description from which nothing can be built.
    """
    arguments = dict(architecture)
    kind = model_class(arguments.pop("_target_", None), allowed)
    if (latent_dim := arguments.get("latent_dim", 1)) < 1:
        raise UserError(f"latent_dim must be 1 or more, not {latent_dim}")
    try:
        encoder = component(arguments.pop("encoder"), allowed)
        _refuse_without_width(encoder)
        if start:
            start(encoder)  # now: a teacher is a copy of it
        if "decoder" in arguments or kind is AutoEncoder:
            facts = {"latent_dim": arguments["latent_dim"], "hidden_dim": encoder.output_dim}
            arguments["decoder"] = component(arguments["decoder"], allowed, **facts)
        model = kind(encoder, **arguments, **parts)
        if start and getattr(model, "encoder", None) is encoder:
            start(encoder)  # again: a masked autoencoder draws its weights anew
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"no model can be built from this description: {type(error).__name__} {error}") from error
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        raise UserError(f"{kind.__name__} must keep its encoder as self.encoder")
    model.architecture = architecture
    return model


def _refuse_without_width(encoder: object) -> None:
    name, width = type(encoder).__name__, getattr(encoder, "output_dim", None)
    if not isinstance(encoder, nn.Module):
        raise UserError(f"the encoder {name} must be a torch.nn.Module")
    if type(width) is not int or width < 1:
        raise UserError(
            f"the encoder {name} must have output_dim, the number of its features, as a whole number, not {width!r}; "
            "encoder=timm builds the models of timm"
        )


def model_class(target: str | None, allowed: tuple[str, ...] = ARCHITECTURES) -> type[Model]:
    """The subclass of `Model` that `target` names; without one, AutoEncoder. Raises UserError for anything else."""
    if target is None:
        return AutoEncoder
    kind = builder({"_target_": target}, (*allowed, "aavae.models."))
    if not isinstance(kind, type) or not issubclass(kind, Model):
        raise UserError(f"{target} is not a model: a subclass of aavae.models.Model is needed")
    return kind
