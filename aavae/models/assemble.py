"""A model from its plain description."""

from aavae.errors import UserError
from aavae.models.autoencoder import AutoEncoder
from aavae.runtime.targets import ARCHITECTURES, component


def assemble(architecture: dict, allowed: tuple[str, ...] = ARCHITECTURES) -> AutoEncoder:
    """The model that an `architecture` (plain dict: encoder, decoder, and the arguments of AutoEncoder) describes; it
    keeps the description as its `architecture`. Raises UserError for a description from which nothing can be built."""
    arguments = dict(architecture)
    if (latent_dim := arguments.get("latent_dim", 1)) < 1:
        raise UserError(f"latent_dim must be 1 or more, not {latent_dim}")
    try:
        encoder = component(arguments.pop("encoder"), allowed)
        facts = {"latent_dim": arguments["latent_dim"], "hidden_dim": encoder.output_dim}
        model = AutoEncoder(encoder, component(arguments.pop("decoder"), allowed, **facts), **arguments)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"no model can be built from this description: {type(error).__name__} {error}") from error
    model.architecture = architecture
    return model
