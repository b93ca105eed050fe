"""Probes: a frozen representation → numbers and pictures. One file and one YAML add another.

A probe has a constructor and `run(encode, dataset)`, which returns records
`{probe, feature, split, metric, value, n, protocol}` (accuracies as fractions; the caller adds the epoch) and, where
there is something to look at, `Picture`s. One that needs something of the dataset may have `check(dataset)`, which
raises UserError before anything is trained; one that needs no labels says `needs_labels = False`; one that needs
something of a representation may have `missing(encode)`, which says what is missing, or None. Which representations it
is given is said by `features` in its YAML.

A probe that learns while the model is trained has, besides, `begin(output_dim, dataset, device, precision)`,
`learn(encoder, step)`, which returns scalars to log, `accuracy(encode, split)`, `state()` and `restore(state,
device)`.
"""

from aavae.probes.guests import Picture
from aavae.runs.results import record

__all__ = ("Picture", "record")
