"""The networks that are trained, and the rungs from the released recipe to the fastest one."""

from typing import NamedTuple

import torch

from aavae.runtime.device import has_bf16_units

DATA = ("dataset=synthetic", "probe=[]", "seed=0")


class Network(NamedTuple):
    """Overrides that choose networks and images, and the batch that a CPU can take."""

    overrides: tuple[str, ...]
    batch_on_cpu: int

    @property
    def skips(self) -> bool:
        """Whether the decoder has skip connections, in one order or the other."""
        return "decoder=shuffle" not in self.overrides


MODELS = {
    "resnet18": Network(("encoder=resnet18", "decoder=resnet18", "dataset.image_size=32"), 64),
    "resnet50": Network(("encoder=resnet50", "decoder=resnet50", "dataset.image_size=32"), 32),
    "resnet50-96": Network(
        (
            "encoder=resnet50",
            "decoder=resnet50",
            "encoder.stem=stl",
            "dataset.image_size=96",
            "augmentation.strength=1.0",
            "augmentation.blur_p=0.5",
        ),
        16,
    ),
    "cpu": Network(("encoder=resnet_cpu", "decoder=shuffle", "dataset.image_size=32"), 256),
    "tiny": Network(("encoder=resnet_tiny", "decoder=resnet_tiny", "dataset.image_size=16", "latent_dim=8"), 8),
}
PAPER = ("resnet18", "resnet50", "resnet50-96")
ON_GPU = (256, 512)


class Rung(NamedTuple):
    """One thing added to the rung before: overrides (a later one of the same key wins), and what they need."""

    name: str
    overrides: tuple[str, ...] = ()
    needs: str = ""


REFERENCE = "reference: PIL in worker processes"
RUNGS = (
    Rung(
        REFERENCE,
        (
            "precision=fp32",
            "trainer.channels_last=false",
            "trainer.clean_pass=every_step",
            "decoder.skip_order=official",
            "+optimizer.kwargs.foreach=false",
            "+optimizer.kwargs.fused=false",
        ),
    ),
    Rung("+ images on the device, augmented in batches"),
    Rung("+ clean pass off", ("trainer.clean_pass=off",)),
    Rung("+ commuted skip", ("decoder.skip_order=commuted",), "skips"),
    Rung("+ channels_last", ("trainer.channels_last=true",)),
    Rung("+ TF32", ("precision=tf32",), "cuda"),
    Rung("+ bf16", ("precision=bf16",), "bf16"),
    Rung("+ fused optimizer", ("+optimizer.kwargs.fused=true",)),
    Rung("+ compile", ("trainer.compile=true",), "compile"),
    Rung("+ CUDA graphs", ("trainer.cuda_graphs=true",), "cuda"),
)


class Step(NamedTuple):
    """A rung with everything below it, or the reason why this device has to leave it out."""

    name: str
    overrides: tuple[str, ...]
    left_out: str = ""


def ladder(device_type: str, bf16: bool, compile: bool, skips: bool = True) -> list[Step]:
    """All rungs, of which a device does those that it can: `bf16` in hardware, torch.compile if it is asked for; the
    order of `skips` where the decoder has any."""
    lacks = {
        "skips": "" if skips else "left out: the decoder has no skip connections",
        "cuda": "" if device_type == "cuda" else "left out: it needs CUDA",
        "bf16": "" if bf16 else "left out: no bf16 units are known here",
        "compile": "" if compile else "left out on a CPU; --compile measures it",
    }
    steps, together = [], {}
    for rung in RUNGS:
        left_out = lacks.get(rung.needs, "")
        if not left_out:
            together |= {o.partition("=")[0]: o for o in rung.overrides if skips or "skip" not in o}
        steps.append(Step(rung.name, tuple(together.values()), left_out))
    return steps


def ladder_for(device: torch.device, compile: bool = False, skips: bool = True) -> list[Step]:
    """The ladder of a device; on a CPU with torch.compile only if it is asked for."""
    on_cuda = device.type == "cuda"
    bf16 = torch.cuda.is_bf16_supported(False) if on_cuda else bool(has_bf16_units(device))
    return ladder(device.type, bf16, compile or on_cuda, skips)
