"""Config → objects, in one place: `compose` a config from overrides, then build from it.

Imports torch only when something is built, so that a config is composed and checked in a fraction of a second.
"""

import contextlib
import inspect
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aavae.config import compose, folder, for_hydra, hydra_node, parse, plain, to_yaml
from aavae.config.arguments import arguments, for_completion
from aavae.config.hints import quoted
from aavae.config.sources import groups, options, own_folders, unchanged
from aavae.errors import UserError

__all__ = (
    "architecture", "arguments", "asked", "augmentation", "compose", "continues", "dataset", "folder", "for_completion",
    "for_hydra", "groups", "has_latent", "hydra_node", "images", "loggers", "loss", "model", "options", "own_features",
    "own_folders", "parse", "plain", "probes", "quoted", "start", "to_yaml", "trainer", "unchanged",
)  # fmt: skip

MODEL_ARGUMENTS = ("log_scale", "learn_scale", "sample")  # of the loss group, but owned by the model
# Of the trainer group, but for looking at the model, not for moving it.
INSPECTOR_ARGUMENTS = ("validate_train", "val_samples", "recalibration_images", "knn_images")
AUTOENCODER = "aavae.models.autoencoder.AutoEncoder"
FOREIGN = ("",)  # a config, unlike a checkpoint, may name any module


def _component(node, facts: object = None):
    from aavae.runtime.targets import component

    node = node if isinstance(node, dict) else plain(node)
    return component(_ask(node, facts), FOREIGN)


def _ask(node: dict, facts: object) -> dict:
    """`auto` is a question to the dataset: the fact of the same name."""
    return {k: getattr(facts, k) if v == "auto" and hasattr(facts, k) else v for k, v in node.items()}


def dataset(cfg: DictConfig):
    """The dataset, not yet loaded. Raises UserError for arguments out of range or a path without images."""
    return _component(cfg.dataset)


def images(data, device, rehearse: bool = False):
    """`data`, loaded to `device`. Raises UserError for images that are missing or damaged, and for what a dataset of
    somebody's own must not return."""
    from aavae.datasets import sound

    return sound.check(data.load(device, rehearse))


def augmentation(cfg: DictConfig, data=None):
    """The augmentation pipeline; `auto` strengths are the dataset's."""
    return _component(cfg.augmentation, data or dataset(cfg))


def loss(cfg: DictConfig):
    """The objective. Raises UserError where the model has its own."""
    node = plain(cfg.loss)
    if not node.get("_target_"):
        raise UserError(f"{cfg.method} has no loss of its own kind to build: the model computes it")
    if node.get("kl") == "mc" and node.get("sample") == "mean":
        # It would score a noise that z never saw, and could be made as small as one likes by σ → ∞.
        raise UserError("loss.kl=mc needs loss.sample=reparam; with loss.sample=mean use loss.kl=analytic")
    made = _component({k: v for k, v in node.items() if k not in MODEL_ARGUMENTS})
    if not isinstance(getattr(made, "variational", None), bool):
        raise UserError(f"{node['_target_']} must say whether z is drawn: variational = True or False")
    return made


def architecture(cfg: DictConfig, data=None) -> dict:
    """What `models.assemble` makes the model from: plain data, every `auto` answered."""
    data = data or dataset(cfg)
    settings = _ask(plain(cfg.model), data)
    settings.pop("takes", None)
    kind, takes = _model_class(cfg)
    encoder, _ = _encoder(cfg, data)
    described: dict[str, Any] = {"encoder": encoder}
    for part in takes & {"decoder", "loss"}:
        if not cfg[part].get("_target_"):
            raise UserError(f"{kind.__name__} needs a {part}; {part}=none is for models without one")
    if "decoder" in takes:
        described["decoder"] = _decoder(plain(cfg.decoder), encoder, data)
    offered: dict[str, Any] = {"latent_dim": cfg.latent_dim}
    if "loss" in takes:
        objective = plain(cfg.loss)
        offered |= {"variational": loss(cfg).variational}
        offered |= {k: objective[k] for k in MODEL_ARGUMENTS if k in objective}
    described |= {k: v for k, v in offered.items() if k in takes}
    return ({} if settings["_target_"] == AUTOENCODER else {"_target_": settings["_target_"]}) | {
        **described,
        **{k: v for k, v in settings.items() if k != "_target_"},
    }


def _encoder(cfg: DictConfig, data) -> tuple[dict, tuple[object, object]]:
    """The encoder's description, and what it is to start from (weights, pretrained), which is no part of it: a file of
    it, or its checkpoint, is loaded without."""
    from aavae.runtime.targets import builder
    from aavae.weights.start import TIMM

    encoder = _ask(plain(cfg.encoder), data)
    target = str(encoder.get("_target_"))
    # A class of the user's may have an argument of that name.
    own = () if target.startswith("aavae.") else inspect.signature(builder(encoder, FOREIGN)).parameters
    weights = None if "weights" in own else encoder.pop("weights", None)
    return encoder, (weights, encoder.pop("pretrained", False) if target == TIMM else False)


def start(cfg: DictConfig, data=None):
    """What the encoder starts from, None for random weights; in a dry run not what would have to be downloaded.

    Raises UserError where that cannot be had.
    """
    from aavae.weights import start as starts

    encoder, (weights, pretrained) = _encoder(cfg, data or dataset(cfg))
    return starts.start(encoder, weights, pretrained and not (cfg.dry_run and not weights))


def continues(cfg: DictConfig, folder: Path) -> bool:
    """Whether a run in `folder` takes its weights from a checkpoint; what it once started from may be gone then."""
    from aavae.weights.checkpoint import begun

    return begun(folder) if cfg.resume == "auto" else cfg.resume != "never"


def _model_class(cfg: DictConfig) -> tuple[type, set[str]]:
    """The class of the model, and the arguments that it takes."""
    from aavae.models.assemble import model_class

    kind = model_class(cfg.model.get("_target_"), FOREIGN)
    signature = inspect.signature(kind).parameters
    takes = set(signature)
    if any(p.kind is p.VAR_KEYWORD for p in signature.values()):  # which a subclass hands on
        takes |= {name for base in kind.__bases__ for name in inspect.signature(base).parameters}
    return kind, takes


def has_latent(cfg: DictConfig) -> bool:
    """Whether `latent_dim` decides anything: the model has a latent, or a part of it refers to the setting."""
    parts = [OmegaConf.to_yaml(cfg[part], resolve=False) for part in ("model", "encoder")]
    return "latent_dim" in _model_class(cfg)[1] or any("latent_dim" in text for text in parts)


def _decoder(decoder: dict, encoder: dict, data) -> dict:
    if decoder.get("stem") == "auto":  # the decoder mirrors the encoder it stands behind
        decoder["stem"] = encoder.get("stem", data.stem)
    decoder = _ask(decoder, data)
    if decoder.get("image_size", data.image_size) != data.image_size:
        raise UserError(
            f"decoder.image_size={decoder['image_size']} is not the {data.image_size} of the dataset; leave it at auto"
        )
    return decoder


def model(cfg: DictConfig, data=None, fresh: bool = True):
    """The model, initialised from the run's seed, its encoder with the weights it is to start from.

    Those are left out on the meta device, and where it is not `fresh`: its weights come from a checkpoint. Raises
    UserError for sizes that do not fit together, and for weights that do not fit.
    """
    import torch

    from aavae.models.assemble import assemble
    from aavae.runtime.randomness import seed_for

    data = data or dataset(cfg)
    described = architecture(cfg, data)
    begins = start(cfg, data) if fresh and torch.get_default_device().type != "meta" else None
    torch.manual_seed(seed_for(cfg.seed, "init"))
    parts = {"loss": loss(cfg)} if "loss" in _model_class(cfg)[1] else {}
    net = assemble(described, FOREIGN, begins, **parts)
    net.start = begins.origin if begins else None
    return net


def asked(overrides: Sequence[str]) -> frozenset[str] | None:
    """The probes that overrides name, by a setting of theirs; None where they choose the group, and so all of them."""
    keys = [override.key_or_group for override in parse(overrides)]
    return None if "probe" in keys else frozenset(k.split(".")[1] for k in keys if k.startswith("probe."))


def probes(cfg: DictConfig, data=None, asked: Container[str] | None = None, own: Sequence[str] = ()) -> list:
    """The probes of the final evaluation, on the features that all models share and its `own`; with `data`, refusing
    now what those `asked` for (None: all) could not do on it then. The others are left out then, and say why."""
    from aavae.probes.guests import Guest
    from aavae.probes.representations import NAMES

    guests = []
    for name, node in cfg.probe.items():
        node = plain(node)
        features = node.pop("features", None) or list(cfg.features)
        if unknown := [f for f in features if f not in (*NAMES, *own)]:
            raise UserError(f"features knows {', '.join((*NAMES, *own))}, not {unknown[0]!r}")
        probe = _component(node)
        if not callable(getattr(probe, "run", None)):
            raise UserError(f"{node['_target_']} is no probe: it must have a method run(encode, dataset)")
        guest = Guest(name, probe, tuple(features))
        guests.append(guest if data is None else guest.checked(data, asked is None or name in asked))
    return guests


def own_features(net) -> tuple[str, ...]:
    """The features that only this model has; an encoder alone has none."""
    from aavae.models import Model
    from aavae.probes.representations import NAMES

    return tuple(name for name in net.features() if name not in NAMES) if isinstance(net, Model) else ()


def loggers(cfg: DictConfig, metrics: bool = True):
    """What the logger group asks for, and `metrics.jsonl`, not yet started."""
    from aavae.loggers import Loggers
    from aavae.loggers.metrics_file import MetricsFile

    asked = {name: _component(node) for name, node in cfg.logger.items()}
    # Last: where another cannot start, the file is what it was.
    return Loggers({**asked, "metrics": MetricsFile()} if metrics else asked)


def _scaled(cfg: DictConfig, data) -> tuple[dict, float]:
    """Settings of the optimizer, and the factor by which learning rate and warm-up follow the batch size."""
    from aavae.training.optimizers import batch_size_scale

    settings = plain(cfg.optimizer)
    scales, reference = settings.pop("scale_with_batch_size"), settings.pop("reference_batch")
    reference = data.reference_batch if reference == "auto" else reference
    factor = batch_size_scale(cfg.batch_size, reference) if scales else 1.0
    return settings | {"lr": settings["lr"] * factor}, factor


def trainer(
    cfg: DictConfig, processes=None, *, data=None, net=None, meta: bool = False, asked: Container[str] | None = None,
    fresh: bool = True,
):  # fmt: skip
    """The trainer with everything it needs, data loaded; `Loop` trains. Raises UserError for what cannot work.

    `data` is the dataset and `net` the model, if they are there already; `asked` are the probes that must be possible
    (None: all). With `meta` the networks are on the meta device: all is checked but the weights to start from, and
    nothing can be computed. One that is not `fresh` takes its weights from a checkpoint.
    """
    import torch

    from aavae.models import sound
    from aavae.runtime.device import make_deterministic, pick_device, pick_precision
    from aavae.training import optimizers, schedules
    from aavae.training.settings import Settings
    from aavae.training.trainer import Trainer

    if cfg.seed < 0:
        raise UserError(f"seed must be 0 or more, not {cfg.seed}")
    device = pick_device(cfg.device)
    precision = pick_precision(cfg.precision, device)
    if cfg.deterministic:
        make_deterministic()
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every step has the same shapes, which are worth a search for kernels
    device = torch.device("meta") if meta else device
    data = data or dataset(cfg)
    augment = augmentation(cfg, data)
    with device if meta else contextlib.nullcontext():
        net = net or model(cfg, data, fresh)
    sound.check(net, data.image_size)  # first: images may take minutes to be read
    settings, factor = _scaled(cfg, data)
    loop = {name: value for name, value in plain(cfg.trainer).items() if name not in INSPECTOR_ARGUMENTS}
    return Trainer(
        net,
        augment,
        data,
        _inspector(cfg, net, augment, data, device, precision),
        probes(cfg, images(data, device, cfg.dry_run), asked, own_features(net)),
        lambda m: optimizers.optimizer(m, **settings),
        lambda steps: schedules.schedule(cfg.schedule.shape, cfg.schedule.warmup_epochs * factor, steps, cfg.epochs),
        Settings(epochs=cfg.epochs, batch_size=cfg.batch_size, seed=cfg.seed, **loop),
        device=device,
        precision=precision,
        processes=processes,
        # The floor that probes compare with is an encoder that nobody has trained.
        untrained=model(cfg, data, fresh=False).encoder if net.start else None,
    )


def _inspector(cfg: DictConfig, net, augment, data, device, precision):
    from aavae.training.validation import Inspector

    settings = plain(cfg.trainer)
    return Inspector(
        net,
        augment,
        data,
        seed=cfg.seed,
        device=device,
        precision=precision,
        recalibrates=settings["clean_pass"] == "off",
        **{name: settings[name] for name in INSPECTOR_ARGUMENTS},
    )
