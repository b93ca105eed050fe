"""What it was measured on."""

import os
import platform
from datetime import datetime
from pathlib import Path

import torch

import aavae
from aavae.runs.provenance import checkout, hardware, versions


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device) -> dict:
    """The machine as plain data; its name and its user's are left out."""
    git = checkout(Path(aavae.__file__).parent, "__init__.py")
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": git and {"commit": git.commit, "dirty": git.dirty},
        "device": hardware(device),
        "device_type": device.type,
        "cpu": hardware(torch.device("cpu")),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "versions": versions(device),
    }
