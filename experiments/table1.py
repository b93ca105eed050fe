"""Table 1: methods against each other, by linear evaluation, beside what the paper prints."""

from aavae import build
from aavae.loggers.screen import PROBES
from aavae.reports.means import Spread
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.paper import NAMES, PUBLISHED, QUOTED, Scale
from experiments.runs import Group, Runs, Sweep
from experiments.significance import differences
from experiments.writing import Sheet

CONTRASTIVE = "simclr"
CONTROLS = {  # of what the paper claims: is it the augmentation, the clean target, or the missing KL term?
    "VAE, augmented, view target": ("loss.beta=1", ("method=aavae", "loss.target=view")),
    "VAE, β = 0": ("loss.beta=0", ("method=vae",)),
}
FLOORS = {"pixels": "raw pixels", "h_untrained": "untrained encoder"}


class Table1(Artefact):
    """Every method of `conf/method/`, the VAE with its β chosen on validation images."""

    name, title = "table1", "Table 1: methods compared"

    def sweeps(self, scale: Scale) -> list[Sweep]:
        """All methods on all datasets, and the grid of β for the VAE."""
        plain = tuple(m for m in methods() if m != "vae" and m not in scale.recipes)
        found = []
        for dataset in scale.datasets:
            found.append(Sweep(dataset, "method", plain))
            found.append(Sweep(dataset, "loss.beta", scale.vae_betas, ("method=vae",)))
            found += [
                Sweep(dataset, "method", (m,), own_recipe(scale, dataset, m)) for m in methods() if m in scale.recipes
            ]
            for last, fixed in CONTROLS.values():
                key, _, value = last.partition("=")
                found.append(Sweep(dataset, key, (value,), fixed))
        return found

    def draw(self, runs: Runs, against: str) -> Sheet:
        """A row per method, and below those each β, floors, and what the paper quotes from elsewhere."""
        scale, datasets = runs.scale, list(runs.scale.datasets)
        groups = {dataset: self._groups(runs, dataset) for dataset in datasets}
        chosen = {dataset: self._chosen(runs, dataset) for dataset in datasets}
        papers = [d for d in PUBLISHED if d in datasets] or ["CIFAR-10"]
        measured = f"{PROBES[scale.probe]}, measured"
        head = ["method", *(f"{d}: {measured}" for d in datasets), *(f"{d}: printed in the paper" for d in papers)]
        head += ["PFLOP", "device-hours"]
        rows = [
            [self._name(m, chosen), *(percent(groups[d][m].accuracy(scale.probe)) for d in datasets)]
            + [_printed(PUBLISHED[p].get(m)) for p in papers]
            + [_mean(groups[datasets[0]][m].number("flop"), 1e15), _mean(groups[datasets[0]][m].hours())]
            for m in groups[datasets[0]]
        ]
        empty = [""] * (len(papers) + 2)
        controls = {name: [runs.of(d, *fixed, last) for d in datasets] for name, (last, fixed) in CONTROLS.items()}
        for name, several in controls.items():
            rows.append([name, *(percent(g.accuracy(scale.probe)) for g in several), *empty])
        shown = [g for d in datasets for g in groups[d].values()] + [g for own in controls.values() for g in own]
        for beta in scale.vae_betas:
            own = [runs.of(d, "method=vae", f"loss.beta={beta}") for d in datasets]
            shown += own
            rows.append([f"VAE, β = {beta}", *(percent(g.accuracy(scale.probe)) for g in own), *empty])
        for feature, name in FLOORS.items():
            floor = [groups[d]["aavae"].accuracy(scale.probe, feature) for d in datasets]
            rows.append([name, *map(percent, floor), *empty])
        for name, printed in QUOTED.items():
            rows.append(
                [f"{name}, quoted by the paper", *[""] * len(datasets)] + [_printed(printed.get(p)) for p in papers]
            )
            rows[-1] += ["", ""]
        first = {name: several[0] for name, several in controls.items()}
        caption = [
            f"β of the VAE was chosen by the mean score on validation images: {_betas(chosen)}.",
            "PFLOP and device-hours are of one run on the first dataset; device-hours include evaluation.",
            f"{datasets[0]}. " + differences("AAVAE", _named(groups[datasets[0]]) | first, scale.probe),
        ]
        if datasets != list(PUBLISHED):
            caption.append("The printed numbers are of ResNet-50 after 3200 epochs, with other data than these runs'.")
        return Sheet(head, rows, caption, self._figure(runs, groups[datasets[0]], against), shown)

    def _groups(self, runs: Runs, dataset: str) -> dict[str, Group]:
        found = {}
        for method in methods():
            fixed = own_recipe(runs.scale, dataset, method)
            extra = (f"loss.beta={self._chosen(runs, dataset)}",) if method == "vae" else ()
            found[method] = runs.of(dataset, *fixed, f"method={method}", *extra)
        return found

    def _chosen(self, runs: Runs, dataset: str) -> str:
        """The β with the best score on validation images."""

        def score(beta: str) -> float:
            found = runs.of(dataset, "method=vae", f"loss.beta={beta}").number("score")
            return found.mean if found else float("-inf")

        return max(runs.scale.vae_betas, key=score)

    def _name(self, method: str, chosen: dict[str, str]) -> str:
        return f"VAE, β = {_betas(chosen)} (chosen on validation)" if method == "vae" else NAMES.get(method, method)

    def _figure(self, runs: Runs, groups: dict[str, Group], against: str):
        figure, ((axis,),) = plots.panels(1, width=plots.PAGE, height=2.8)
        probe = runs.scale.probe
        for n, (method, group) in enumerate(groups.items()):
            colour, marker, line = plots.style(n, method)
            if against == "epochs":
                plots.spread(axis, n, list(group.by_seed(probe).values()), colour, marker)
                continue
            plots.lines(axis, group.measured(probe, against), colour, line, NAMES.get(method, method))
        dataset = next(iter(runs.scale.datasets))
        if against == "epochs":
            plots.categories(axis, [NAMES.get(m, m) for m in groups], "", rotated=True)
            printed = PUBLISHED.get(dataset, {})
            points = [(n, printed[m]) for n, m in enumerate(groups) if m in printed]
            if points:
                axis.plot(*zip(*points, strict=True), "k_", markersize=12, label="printed in the paper")
        else:
            plots.progress_axis(axis, against)
        plots.floors(axis, floor_values(groups["aavae"], probe))
        axis.set_ylabel(f"{dataset}, {PROBES[probe]} (%)")
        axis.legend(frameon=False, ncols=2)
        return figure


def methods() -> list[str]:
    """All methods there are, the paper's first."""
    known = [m for m in NAMES if m in build.options("method")]
    return [*known, *(m for m in build.options("method") if m not in known)]


def own_recipe(scale: Scale, dataset: str, method: str) -> tuple[str, ...]:
    """What a method of others needs besides: at the paper's scale its own optimizer, schedule and epochs."""
    recipe = scale.recipes.get(method, ())
    named = ("dataset=stl10",) if dataset == "STL-10" and any(word.startswith("experiment=") for word in recipe) else ()
    return (*recipe, *named)


def floor_values(group: Group, probe: str) -> dict[str, float]:
    """Accuracies in % of what owes nothing to training."""
    found = {name: group.accuracy(probe, feature) for feature, name in FLOORS.items()}
    return {name: 100 * spread.mean for name, spread in found.items() if spread}


def floor_rows(group: Group, probe: str, width: int) -> list[list[str]]:
    """Rows of a table for what owes nothing to training, as wide as the others."""
    return [
        [name, percent(group.accuracy(probe, feature)), *[""] * (width - 2)]
        for feature, name in FLOORS.items()
        if group.accuracy(probe, feature)
    ]


def _named(groups: dict[str, Group]) -> dict[str, Group]:
    return {NAMES.get(m, m): group for m, group in groups.items()}


def percent(spread: Spread | None) -> str:
    """Mean ± sd in percent."""
    if spread is None:
        return "–"
    return f"{100 * spread.mean:.1f}" + ("" if spread.sd is None else f" ± {100 * spread.sd:.1f}")


def _printed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mean(spread: Spread | None, unit: float = 1.0) -> str:
    return "" if spread is None else f"{spread.mean / unit:.3g}"


def _betas(chosen: dict[str, str]) -> str:
    return "/".join(dict.fromkeys(chosen.values()))


if __name__ == "__main__":
    main(Table1())
