"""Figure 5: how alike the representations of an image's views are, raw and centred, with the views."""

from pathlib import Path

import numpy as np

from experiments import plots
from experiments.artefact import Artefact, main
from experiments.paper import NAMES
from experiments.runs import Runs, Sweep
from experiments.table1 import own_recipe
from experiments.writing import Sheet

METHODS = ("vae", "aavae")
METRICS = {
    "cos_within": "within images, raw",
    "cos_between": "between images, raw",
    "cos_within_centred": "within images, centred",
    "cos_between_centred": "between images, centred",
}
FEATURES = ("h", "mu")


class Figure5(Artefact):
    """VAE and AAVAE."""

    name, title = "figure5", "Figure 5: cosine similarity of views"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """Both methods on the dataset of the figure."""
        return [Sweep(runs.scale.similar, "method", METHODS, own_recipe(runs, runs.scale.similar, "aavae"))]

    def draw(self, runs: Runs, against: str) -> Sheet:
        """The matrices and views of the first seed, one method below the other; mean cosines in the table."""
        (sweep,) = self.sweeps(runs)
        groups = {method: runs.of(sweep.dataset, *sweep.fixed, f"method={method}") for method in METHODS}
        rows = []
        for method, group in groups.items():
            for feature in FEATURES:
                found = [group.record("similarity", feature, metric) for metric in METRICS]
                if any(found):
                    cells = ["–" if s is None else f"{s.mean:.3f}" + (f" ± {s.sd:.3f}" if s.sd else "") for s in found]
                    rows.append([group.called(f"{NAMES[method]}, {feature}"), *cells])
        pictures: dict[str, Path] = {}
        for method, group in groups.items():
            paths = [job.folder / "similarity_h.png" for job in group.done]
            if paths and paths[0].exists():
                pictures[NAMES[method]] = paths[0]
        figure, axes = plots.panels(1, width=plots.PAGE, height=6.4, rows=max(1, len(pictures)))
        for axis in axes[:, 0]:
            axis.axis("off")
        for axis, (name, path) in zip(axes[:, 0], pictures.items(), strict=False):
            axis.imshow(_image(path), interpolation="nearest")
            axis.set_title(name)
        caption = [
            "Mean cosines of validation images' views. Centred: the mean of all features is subtracted first; features "
            "behind a ReLU point into one orthant, so that raw cosines are high in any network.",
            "The paper shows the matrices of an unnamed representation of STL-10 and prints no numbers.",
        ]
        head = [f"{runs.scale.similar}: method, representation", *METRICS.values()]
        return Sheet(head, rows, caption, figure, list(groups.values()))


def _image(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


if __name__ == "__main__":
    main(Figure5())
