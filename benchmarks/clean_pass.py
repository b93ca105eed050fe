"""What the clean pass is worth: accuracy by epoch with it and without it, in runs that are continued call by call.

    python -m benchmarks.clean_pass dataset=cifar10 dataset.path=cifar10.zip --epochs 400 --every 20 --minutes 9.5

gives both runs an equal part of the minutes, the one that is behind first; typed again, it goes on where they stopped.
Whatever `aavae-train` takes can be added.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from aavae import build
from aavae.errors import UserError
from aavae.runs import status
from aavae.runs.results import read_results
from aavae.runtime import files
from aavae.runtime.words import markdown_table

SETTINGS = ("every_step", "off")
PROBES = ("knn", "linear_cached")
SAVING = 120.0  # seconds a stopped run has to save what it has


def command(folder: Path, setting: str, epochs: int, every: int, overrides: list[str]) -> list[str]:
    """What trains and judges one of the two runs."""
    return [
        *(sys.executable, "-m", "aavae.train", f"trainer.clean_pass={setting}", f"epochs={epochs}"),
        *(f"trainer.probe_every={every}", f"trainer.validate_every={every}", "trainer.val_samples=1"),
        *(f"probe=[{','.join(PROBES)}]", "features=[h]", *overrides, f"hydra.run.dir={folder}"),
    ]


def state(folder: Path) -> dict:
    """What the run in `folder` last said; of one that has not begun, epoch 0."""
    return status.read(folder) or {"state": "pending", "epoch": 0.0, "images_per_second": None}


def train(typed: list[str], seconds: float) -> None:
    """Run for so many seconds, then have it save and stop. Raises UserError if it fails."""
    # In a group of its own: Ctrl-C reaches this process, which asks it once; asked twice, it would not stop to save.
    process = subprocess.Popen(typed, process_group=0)
    try:
        process.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        process.send_signal(signal.SIGTERM)
        process.wait(SAVING)
        if isinstance(error, KeyboardInterrupt):
            raise
    if process.returncode not in (0, 128 + signal.SIGTERM):
        raise UserError(f"a run ended with exit code {process.returncode}; what it said stands above")


def accuracies(folder: Path) -> dict[float, dict[str, float]]:
    """Test accuracy by epoch and probe: what was logged on the way, and the results of the end."""
    found: dict[float, dict[str, float]] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        logged = json.loads(line)
        for probe in PROBES:
            if (value := logged.get(f"probe/{probe}/h/test/accuracy")) is not None:
                found.setdefault(logged["epoch"], {})[probe] = value
    for r in read_results(folder):
        if r["probe"] in PROBES and (r["feature"], r["split"]) == ("h", "test"):
            found.setdefault(r["epoch"], {})[r["probe"]] = r["value"]
    return found


def table(folders: dict[str, Path]) -> str:
    """Both runs side by side, as Markdown: accuracy in percent, and the speed of each."""
    found = {setting: accuracies(folder) for setting, folder in folders.items()}
    columns = [(probe, setting) for probe in PROBES for setting in SETTINGS]
    rows = []
    for epoch in sorted({epoch for by_epoch in found.values() for epoch in by_epoch}):
        values = [found[setting].get(epoch, {}).get(probe) for probe, setting in columns]
        rows.append([f"{epoch:g}", *("" if v is None else f"{100 * v:.1f}" for v in values)])
    head = ["epoch", *(f"{p}, clean_pass={s}" for p, s in columns)]
    speeds = [(s, state(folder)["images_per_second"]) for s, folder in folders.items()]
    said = [f"{s}: {speed:,.0f} images/s" for s, speed in speeds if speed]
    return "\n".join([markdown_table(head, rows, range(5)), "", "Test accuracy in percent, of h. " + "; ".join(said)])


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.clean_pass", description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="as for aavae-train")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="epochs between probes")
    parser.add_argument("--minutes", type=float, default=9.5, help="of training, in this call")
    parser.add_argument("--out", type=Path, default=Path("outputs/clean_pass"))
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train both as long as there is time, print and write the table; 2 for bad input, 130 after Ctrl-C."""
    options = _options(argv)
    folders = {setting: options.out / setting for setting in SETTINGS}
    ends, code = time.monotonic() + 60 * options.minutes, 0
    try:
        build.compose(options.overrides)
        behind = sorted(SETTINGS, key=lambda s: state(folders[s])["epoch"])
        for left, setting in zip((2, 1), behind, strict=True):
            typed = command(folders[setting], setting, options.epochs, options.every, options.overrides)
            train(typed, max(1.0, (ends - time.monotonic()) / left))
    except UserError as error:
        print(f"benchmarks.clean_pass: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    text = table(folders)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    files.write(options.out / "table.md", text + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
