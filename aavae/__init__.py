"""AAVAE: augmentation-augmented variational autoencoders and their relatives, in plain PyTorch.

`load_model` and `load_encoder` give back what a run has learned; `aavae.build` gives a run's parts to a notebook.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # torch takes seconds to import, which `aavae-train --help` need not wait for.
    if name in ("load_model", "load_encoder"):
        from aavae.weights import load

        return getattr(load, name)
    raise AttributeError(f"module 'aavae' has no attribute {name!r}")
