"""The modules that copy tensors to the device, all imported before a test replaces `send` in them.

One that is imported while it is replaced would keep the replacement for the tests that follow.
"""

import importlib
import pkgutil
import sys
from types import ModuleType

import aavae
from aavae.runtime import device

ROOMS = ("augmentations", "datasets", "models.diagnostics", "probes", "runtime", "training")


def senders() -> list[ModuleType]:
    """Every module of these rooms that has `send`."""
    for found in pkgutil.walk_packages(aavae.__path__, "aavae."):
        if found.name.startswith(tuple(f"aavae.{room}" for room in ROOMS)):
            importlib.import_module(found.name)
    return [m for m in list(sys.modules.values()) if getattr(m, "send", None) is device.send]
