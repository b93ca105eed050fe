"""Which run is which: the part of a config that decides the trained weights, and its hash."""

import hashlib
import json

from aavae.runtime import secrets

# What does not change the trained weights is no part of a run's identity.
NOT_IDENTITY = (
    "data_dir", "dataset.check", "dataset.data_dir", "dataset.on_error", "dataset.path", "dataset.workers", "device",
    "dry_run", "epochs", "features", "logger", "model.takes", "probe", "resume", "sweep", "trainer.checkpoint_epochs",
    "trainer.cuda_graphs", "trainer.knn_images", "trainer.log_every", "trainer.max_steps", "trainer.probe_every",
    "trainer.recalibration_images", "trainer.save_minutes", "trainer.val_samples", "trainer.validate_every",
    "trainer.validate_train",
)  # fmt: skip


# Keys that were added later, with the value they had before they were: it does not make another run.
IMPLIED = {
    "model.together": True, "augmentation.jitter": None, "augmentation.solarize_p": 0.0, "encoder.weights": None,
    "encoder.pretrained": False, "encoder.output_dim": None, "encoder.pool": 1,
    "trainer.sync_batchnorm": None, "trainer.virtual_batch": None, "trainer.grad_checkpointing": False,
}  # fmt: skip


def identity_config(config: dict) -> dict[str, object]:
    """The part of a plain config that decides the trained weights, as `{dotted key: value}`."""
    flat: dict[str, object] = {}

    def walk(node: dict, prefix: str) -> None:
        for key, value in node.items():
            if (name := prefix + key) in NOT_IDENTITY:
                continue
            if isinstance(value, dict) and value:
                walk(value, f"{name}.")
            elif secrets.is_named(key) and value is not None:  # a new password does not make another run
                flat[name] = secrets.HIDDEN
            elif name not in IMPLIED or value != IMPLIED[name]:
                flat[name] = value

    walk(config, "")
    return flat


def identity(config: dict) -> str:
    """A short hash of what decides the trained weights; the name of a run's folder."""
    decides = identity_config(config)
    decides = {k: float(v) if type(v) is int else v for k, v in decides.items()}  # 1 and 1.0 are one learning rate
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
