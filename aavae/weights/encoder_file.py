"""`encoder.safetensors`: an encoder's tensors, its facts as JSON metadata, and a digest of all of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from aavae.errors import Damaged
from aavae.runtime import files, targets
from aavae.weights import checkpoint, schema

ENCODER = "encoder.safetensors"
METADATA = "__metadata__"  # its key in the header of the format
DIGEST = "digest"


def save(path: Path, encoder: nn.Module, facts: dict) -> None:
    """Write the encoder's tensors with `facts` (architecture, mean, std, …) and their digest as metadata.

    Equal encoders with equal facts give equal bytes. Raises UserError where it cannot be written.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    header, content = _parts(safetensors.torch.save(tensors, {"format": "pt"}))
    # As it is, unless it would be read as something else: a fingerprint may look like a number.
    texts = {k: v if isinstance(v, str) and _plain(v) == v else json.dumps(v) for k, v in facts.items()}
    header[METADATA] = {k: v for k, v in texts.items() if k != DIGEST}
    header[METADATA][DIGEST] = digest(header, content)
    text = _canonical(header)  # safetensors has its keys in another order each time
    text += b" " * (-len(text) % 8)
    files.write(path, b"".join((len(text).to_bytes(8, "little"), text, content)))


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of an encoder file and its facts, once they are seen to be those it was written with.

    Raises Damaged for a file that is damaged or malformed, and for one that aavae did not write.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a file" if path.exists() else "there is none")
        data = path.read_bytes()
        header, content = _parts(data)
        metadata = header.get(METADATA, {})
        if "architecture" not in metadata:
            raise ValueError("it does not say its architecture")
        if DIGEST not in metadata:
            raise Damaged(path, "has no digest that shows whether it is damaged; write it again with aavae-convert")
        if metadata[DIGEST] != digest(header, content):
            raise Damaged(path, "is damaged: its content is not what its digest says")
        tensors = safetensors.torch.load(data)
        facts = {name: _plain(text) for name, text in metadata.items() if name != DIGEST}
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(path, f"is not an {ENCODER} written by aavae ({error})") from error
    schema.check(facts | {"tensors": tensors}, schema.FACTS, path, schema.ENCODER)
    return tensors, facts | {name: tuple(facts[name]) for name in ("mean", "std")}


def digest(header: dict, content: bytes | memoryview) -> str:
    """SHA-256 of a safetensors file: its header (names, dtypes, shapes, facts) without the digest, and its tensors."""
    facts = {k: v for k, v in header.get(METADATA, {}).items() if k != DIGEST}
    sha = hashlib.sha256(_canonical(header | {METADATA: facts}))
    sha.update(content)
    return f"sha256:{sha.hexdigest()}"


def encoder_of(path: Path, allowed: tuple[str, ...] = targets.ARCHITECTURES) -> tuple[nn.Module, dict]:
    """The encoder of an encoder file, and its facts. Raises UserError where it cannot be had."""
    tensors, facts = read(path)
    targets.builder(facts["architecture"], allowed)
    encoder = checkpoint.fitted(lambda: targets.component(facts["architecture"], allowed), tensors, path)
    has, says = getattr(encoder, "output_dim", None), facts.get("output_dim")
    if None not in (has, says) and has != says:
        raise Damaged(path, f"is malformed: its output_dim is {says}, that of its encoder {has}")
    return encoder, facts


def _parts(data: bytes) -> tuple[dict, memoryview]:
    """The header of a safetensors file, parsed, and the bytes of its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    if not 8 < end <= len(data):
        raise ValueError("it is truncated")
    header = json.loads(data[8:end])
    return header, memoryview(data)[end:]


def _canonical(header: dict) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
