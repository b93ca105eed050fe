"""Files of features with the names and labels of their images: Parquet, npz, safetensors."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aavae.errors import UserError
from aavae.runtime import files

Rows = Iterable[tuple[list[str], list[str], Tensor]]  # file names, labels, features (B, …)


def write(path: Path, rows: Rows, about: dict[str, str]) -> tuple[int, tuple[int, ...]]:
    """Write rows as the file's ending says, whole or not at all; their number, and the shape of a feature.

    Parquet is written as rows come; the others hold all features in memory first. Raises UserError where it cannot be
    written, and for features that are not finite.
    """
    return WRITERS[path.suffix](path, _checked(rows), about)


def _checked(rows: Rows) -> Iterator[tuple[list[str], list[str], Tensor]]:
    for names, labels, features in rows:
        if not features.isfinite().all():
            bad = next(name for name, f in zip(names, features, strict=True) if not f.isfinite().all())
            raise UserError(f"the features of {bad} are not finite: the model has diverged")
        yield names, labels, features


def _parquet(path: Path, rows: Rows, about: dict[str, str]) -> tuple[int, tuple[int, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, shape = 0, tuple[int, ...]()
    with files.whole(path) as handle, contextlib.ExitStack() as stack:
        writer = None
        for names, labels, features in rows:
            shape = tuple(features.shape[1:])
            flat = features.flatten(1)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.numpy().reshape(-1)), flat.shape[1])
            columns = {"file": pa.array(names), "label": pa.array(labels), "features": vectors}
            if writer is None:
                schema = pa.table(columns).schema.with_metadata(about | {"shape": json.dumps(shape)})
                writer = stack.enter_context(pq.ParquetWriter(handle, schema))
            writer.write_table(pa.table(columns).cast(schema))
            n += len(names)
    return n, shape


def _all(rows: Rows) -> tuple[list[str], list[str], Tensor]:
    names, labels, parts = [], [], []
    for some, own, features in rows:
        names += some
        labels += own
        parts.append(features)
    return names, labels, torch.cat(parts)


def _npz(path: Path, rows: Rows, about: dict[str, str]) -> tuple[int, tuple[int, ...]]:
    names, labels, features = _all(rows)
    arrays: dict[str, Any] = {"features": features.numpy(), "files": np.array(names), "labels": np.array(labels)}
    with files.whole(path) as handle:
        np.savez(handle, **arrays, about=np.array(json.dumps(about)))
    return len(names), tuple(features.shape[1:])


def _safetensors(path: Path, rows: Rows, about: dict[str, str]) -> tuple[int, tuple[int, ...]]:
    from safetensors.torch import save

    names, labels, features = _all(rows)
    said = about | {"files": json.dumps(names), "labels": json.dumps(labels)}
    files.write(path, save({"features": features.contiguous()}, said))
    return len(names), tuple(features.shape[1:])


WRITERS = {".parquet": _parquet, ".npz": _npz, ".safetensors": _safetensors}
