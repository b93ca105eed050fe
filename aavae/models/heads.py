"""Heads that only training needs: maps from h to the space of a loss."""

from torch import nn

from aavae.errors import refuse_below


def mlp(input_dim: int, hidden_dim: int, output_dim: int, name: str = "model") -> nn.Sequential:
    """Linear–BatchNorm–ReLU–Linear, the last layer without bias. Raises UserError, naming the group `name`, for a size
    below 1."""
    refuse_below({f"{name}.hidden_dim": (hidden_dim, 1), f"{name}.output_dim": (output_dim, 1)})
    return nn.Sequential(
        nn.Linear(input_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, output_dim, bias=False),
    )
