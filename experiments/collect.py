"""One Markdown table from the runs of a sweep: `python -m experiments.collect multirun/NAME`.

Rows are methods and the two baselines of every run, columns the probes; test accuracies in percent, mean ± sd (ddof 1)
over the runs of a row. Where a run's probe has a spread of its own (few-label draws) its mean enters.
"""

import json
import statistics
import sys
from pathlib import Path

from omegaconf import OmegaConf

from aavae.console import FEATURES, PROBES, in_order

BASELINES = {"pixels": "raw pixels", "h_untrained": "untrained encoder"}


def collect(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Test accuracies as `{row: {probe: [one per run]}}`; unfinished runs are left out."""
    rows: dict[str, dict[str, list[float]]] = {}
    for path in sorted(folder.rglob("results.json")):
        if not path.with_name("config.yaml").exists():  # of a checkpoint, not of a run
            continue
        method = str(OmegaConf.load(path.with_name("config.yaml")).method)
        for r in json.loads(path.read_text()):
            if r["split"] == "test" and r["metric"] == "accuracy":
                own = method if r["feature"] == "h" else f"{method}, {FEATURES.get(r['feature'], r['feature'])}"
                row = BASELINES.get(r["feature"], own)
                rows.setdefault(row, {}).setdefault(r["probe"], []).append(r["value"])
    return rows


def markdown(rows: dict[str, dict[str, list[float]]]) -> str:
    """The table; baselines last."""
    probes = in_order((p for row in rows.values() for p in row), PROBES)
    heads = " | ".join(["features", "runs", *(PROBES.get(p, p) for p in probes)])
    lines = [f"| {heads} |", "|---" * (len(probes) + 2) + "|"]
    for name in sorted(rows, key=lambda n: (n in BASELINES.values(), n)):
        cells = []
        for probe in probes:
            values = [100 * v for v in rows[name].get(probe, [])]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}" if values else "–")
        runs = max(len(v) for v in rows[name].values())
        lines.append(f"| {name} | {runs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("python -m experiments.collect FOLDER: the folder of a sweep, such as multirun/NAME")
    print(markdown(collect(Path(sys.argv[1]))))
