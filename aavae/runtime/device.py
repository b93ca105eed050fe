"""Which device to compute on and in which precision, and how tensors get there."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from aavae.errors import UserError
from aavae.runtime.words import count

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")


def pick_device(name: str) -> torch.device:
    """The device `name` (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`); auto takes CUDA, then MPS, then the CPU.

    Raises UserError where the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, not {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device={name} was asked for, but torch sees {count} CUDA devices here; try device=cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % count)
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps was asked for, but torch sees no MPS device here; try device=cpu")
    elif device.type not in ("cpu", "mps"):
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, not {name!r}")
    return device


def device_name(device: torch.device) -> str:
    """What a person calls it: the GPU's name, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {count(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else device.type


def has_bf16_units(device: torch.device) -> bool | None:
    """Whether `device` is an x86 CPU that computes bf16 in hardware; None: another device, or nothing is known of it.

    With the units precision=bf16 is faster than float32. Without them it is slower, 15 times on a CPU with AVX2.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10 does not say
        return None
    found = torch.cpu.get_capabilities()
    units = [found[unit] for unit in ("avx512_bf16", "amx_bf16") if unit in found]  # only x86 has these names
    return any(units) if units else None


@dataclass(frozen=True)
class Precision:
    """What the forward pass computes in: `name`, and the autocast dtype (None: float32 throughout)."""

    name: str
    device_type: str
    dtype: torch.dtype | None

    @classmethod
    def float32(cls, device: torch.device) -> "Precision":
        """Float32 throughout, without touching torch's settings as `pick_precision` does."""
        return cls("fp32", device.type, None)

    @property
    def computes(self) -> str:
        """What a record says of it, where float32 is full float32."""
        return "float32" if self.dtype is None else f"{self.name} autocast"

    def autocast(self):
        """The autocast context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler, switched off unless the precision is fp16, so that there is one code path."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision `name`; auto is bf16 on CUDA that has it, else fp16 there, and float32 elsewhere.

    Process-wide, fp32 switches TensorFloat-32 off in float32 matrix products and convolutions, the others on.
    Raises UserError for an unknown name, and for tf32 or fp16 without CUDA.
    """
    if name not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {name!r}")
    if name == "auto":
        # Autocast on a CPU without bf16 units was measured 10 to 20 times slower than float32.
        name = "fp32" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
    if name in ("fp16", "tf32") and device.type != "cuda":
        raise UserError(f"precision={name} needs a CUDA device; on {device.type} use fp32 or bf16")
    torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = name != "fp32"
    return Precision(name, device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name))


def without_autocast(device: torch.device):
    """A context in which what `device` computes keeps the types of its inputs, such as a decoder's first layer."""
    if device.type == "meta":  # which knows no autocast
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def full_float32():
    """Float32 products and convolutions without TensorFloat-32, whatever the run computes in; then as before."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextlib.contextmanager
def without_search():
    """cuDNN takes its usual kernels: a search for the fastest begins again at each shape, as of an odd last batch."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def compiler(device: torch.device, compile: bool, cuda_graphs: bool) -> Callable[[Callable], Callable]:
    """What makes the functions of a training step fast: torch.compile, its kernels replayed as CUDA graphs, or nothing.

    Raises UserError for CUDA graphs without CUDA or without compile.
    """
    if cuda_graphs and not compile:
        raise UserError("trainer.cuda_graphs=true needs trainer.compile=true, whose kernels it replays")
    if cuda_graphs and device.type not in ("cuda", "meta"):
        raise UserError(f"trainer.cuda_graphs=true needs a CUDA device; this run is on {device.type}")
    if not compile or device.type == "meta":  # where nothing is computed, there is nothing to make faster
        return lambda function: function
    # Every step has the same shapes: kernels for any shape would only be slower.
    return partial(torch.compile, dynamic=False, mode="reduce-overhead" if cuda_graphs else None)


def make_deterministic() -> None:
    """Ask torch for deterministic kernels, so that the same run on the same machine gives the same bits."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def send(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`t` on `device`, without waiting for the device: to CUDA from pinned memory, asynchronously."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not t.is_cuda else t.to(device)
