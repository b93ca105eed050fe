"""Checkpoints as the released code's Lightning writes them: `{"state_dict", "hyper_parameters", "callbacks", …}`."""

import contextlib
import sys
import types
from argparse import Namespace
from pathlib import Path

import torch

CIFAR = {
    "dataset": "cifar10",
    "input_height": 32,
    "encoder": "resnet18",
    "first_conv3x3": True,
    "remove_first_maxpool": True,
    "denoising": True,
    "kl_coeff": 0.0,
    "log_scale": 0.0,
    "learn_scale": 0,
    "seed": 0,
    "batch_size": 256,
}
NO_PARAMETERS = object()


@contextlib.contextmanager
def its_modules():
    """Lightning's classes, importable only while a file is written: whoever reads it has never heard of them."""
    made = {}
    for path, base in (
        ("pytorch_lightning.utilities.parsing.AttributeDict", dict),
        ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", object),
        ("src.callbacks.online_finetuner.OnlineFineTuner", object),
    ):
        module, name = path.rsplit(".", 1)
        for i in range(1, module.count(".") + 2):
            parent = ".".join(module.split(".")[:i])
            if parent not in sys.modules:
                made[parent] = sys.modules[parent] = types.ModuleType(parent)
        cls = type(name, (base,), {"__module__": module})
        setattr(sys.modules[module], name, cls)
        made[name] = cls
    try:
        yield types.SimpleNamespace(**{k: v for k, v in made.items() if isinstance(v, type)})
    finally:
        for name, module in made.items():
            if isinstance(module, types.ModuleType):
                del sys.modules[name]


def write(path: Path, weights: dict, parameters=None, kind: str = "AttributeDict", finetuner: bool = False) -> Path:
    """Write `weights` as Lightning 1.3 would: callbacks keyed by classes, hyper-parameters in an object of its own.

    `kind` is what holds the hyper-parameters: Lightning's AttributeDict, argparse's Namespace, or a dict.
    """
    parameters = CIFAR if parameters is None else parameters
    if finetuner:
        weights = weights | {"online_finetuner.weight": torch.ones(10, 4), "online_finetuner.bias": torch.ones(10)}
    with its_modules() as lightning:
        content = {
            "epoch": 400,
            "global_step": 70_000,
            "pytorch-lightning_version": "1.3.8",
            "state_dict": weights,
            "callbacks": {
                lightning.ModelCheckpoint: {"best_model_score": torch.tensor(0.9), "best_model_path": "a/b.ckpt"},
                lightning.OnlineFineTuner: {},
            },
            "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
            "lr_schedulers": [{"base_lrs": [0.1], "last_epoch": 3}],
            "hparams_name": "kwargs",
        }
        if parameters is not NO_PARAMETERS:
            held = {"AttributeDict": lightning.AttributeDict, "Namespace": lambda p: Namespace(**p), "dict": dict}[kind]
            content["hyper_parameters"] = held(parameters)
        torch.save(content, path)
    return path
