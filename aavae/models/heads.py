"""Heads that only training needs: maps from h to the space of a loss."""

from torch import nn

from aavae.errors import UserError


def mlp(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """Linear–BatchNorm–ReLU–Linear, the last layer without bias. Raises UserError for a size that is no whole number
    above 0."""
    for name, size in (("hidden_dim", hidden_dim), ("output_dim (by default latent_dim)", output_dim)):
        if not isinstance(size, int) or size < 1:
            raise UserError(f"model.{name} must be a whole number of 1 or more, not {size}")
    return nn.Sequential(
        nn.Linear(input_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, output_dim, bias=False),
    )
