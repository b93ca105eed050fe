"""What was meant: the nearest key or option, and how an override is quoted."""

import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Sequence

# What others call it: the names of timm, Lightning, Hugging Face and papers, without `-` and `_`.
ALIASES = {
    "optimizer.lr": "lr learningrate baselr",
    "optimizer.weight_decay": "wd weightdecay l2",
    "batch_size": "bs batch batchsize trainbatchsize minibatch",
    "epochs": "epoch maxepochs numepochs nepochs trainepochs numtrainepochs",
    "latent_dim": "zdim latent latents latentsize dimz nz zsize embeddingdim",
    "dataset.workers": "numworkers nworkers workers dataloadernumworkers",
    "dataset.path": "datapath dataroot root imagefolder",
    "dataset.image_size": "imagesize imgsize resolution",
    "dataset": "data datasets",
    "encoder": "model backbone arch architecture network",
    "optimizer": "opt optim",
    "schedule": "scheduler lrscheduler sched",
    "schedule.warmup_epochs": "warmup warmupepochs",
    "augmentation": "aug augment augmentations transform transforms",
    "loss.beta": "beta klweight klcoeff kldweight",
    "model.temperature": "temperature temp tau",
    "probe.knn.temperature": "knntemperature",
    "model.hidden_dim": "projectiondim projdim hiddendim",
    "probe.knn.k": "k neighbours neighbors nneighbors",
    "device": "gpu gpus cuda accelerator",
    "precision": "amp fp16 bf16 mixedprecision dtype",
    "seed": "randomseed manualseed",
    "trainer.clip": "gradclip clipgrad maxgradnorm gradientclipval",
    "trainer.accumulate": "accumulategradbatches gradaccum gradientaccumulationsteps",
    "trainer.max_steps": "maxsteps steps numsteps",
    "trainer.log_every": "logevery logeverynsteps logfreq",
    "resume": "ckpt ckptpath resumefrom",
    "hydra.run.dir": "outputdir outdir savedir logdir out output",
}
_TARGETS = {alias: key for key, aliases in ALIASES.items() for alias in aliases.split()}
MEANINGFUL = " \t()[]{},=:'\"\\$#@+~*;|&<>!?%^`"  # what Hydra's grammar may give a meaning of its own


def letters(name: str) -> str:
    """A name without what people write differently: `ResNet-50` is `resnet50`."""
    return re.sub(r"[-_ ]", "", name).lower()


def alias(key: str) -> str | None:
    """The key that others call by the last part of `key`."""
    return _TARGETS.get(letters(key.rpartition(".")[2]))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known key or option that `name` most probably stands for: other letters or an alias, misplaced, misspelt."""
    known = list(known)
    spelt = {letters(k): k for k in reversed(known)}
    if letters(name) in spelt:
        return spelt[letters(name)]
    parent, _, last = name.rpartition(".")
    if target := alias(name):
        inside = f"{parent}.{target.rpartition('.')[2]}"
        if found := [k for k in (inside, target) if k in known or k.startswith("hydra.")]:
            return found[0]
    misplaced = [k for k in known if letters(k).endswith(f".{letters(last)}")]
    siblings = [k for k in known if parent and k.startswith(f"{parent}.")]
    # Of a key whose group there is, the group's name says nothing about what was meant in it.
    misspelt = [] if siblings else difflib.get_close_matches(letters(name), spelt, 1)
    lasts = {letters(k.rpartition(".")[2]): k for k in reversed(siblings or known)}
    alike = difflib.get_close_matches(letters(last), lasts, 1, 0.6 if siblings else 0.75)
    found = misplaced or [spelt[m] for m in misspelt] or [lasts[m] for m in alike]
    return found[0] if found else None


def quoted(text: str) -> str:
    """Text as a value that Hydra reads back as it is."""
    text = re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + "\\${", text)  # no interpolation of OmegaConf's
    # To Hydra a backslash is one, but for those before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def requoted(override: str, reads: Callable[[Sequence[str]], object]) -> str | None:
    """A sentence on the characters for which `override` cannot be read, and how it is typed; None if quotes do not
    help. `reads` returns None for overrides that cannot be read."""
    key, equals, value = override.partition("=")
    simple = '"' not in value and "${" not in value and not value.endswith("\\")
    typed = f'{key}="{value}"' if simple else f"{key}={quoted(value)}"
    if not equals or not value or reads([typed]) is None:
        return None
    there = [c for c in dict.fromkeys(value) if c in MEANINGFUL]
    alone = [c for c in there if reads([f"{key}=" + "".join(c if v == c else "x" for v in value)]) is None]
    names = ["a space" if c == " " else "a tab" if c == "\t" else f"a {c}" for c in alone or there]
    which = f"{' or '.join(names)} in a value wants" if names else "the value wants"
    return f"cannot read {override}: {which} quotes of its own, {shlex.quote(typed)}"
