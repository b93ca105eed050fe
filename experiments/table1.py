"""Table 1: methods against each other, by linear evaluation, beside what the paper prints."""

from collections.abc import Sequence

from aavae.loggers.screen import PROBES, in_order
from aavae.reports.means import Spread, accuracies
from experiments import plots
from experiments.artefact import Artefact, main
from experiments.paper import NAMES, ON_STL, PUBLISHED, QUOTED
from experiments.runs import Group, Runs, Sweep
from experiments.significance import differences
from experiments.work import epochs_of_equal_work
from experiments.writing import Sheet

CONTRASTIVE = "simclr"
CONTROLS = {  # of what the paper claims: is it the augmentation, the clean target, or the missing KL term?
    "VAE, augmented, view target": ("loss.beta=1", ("method=aavae", "loss.target=view")),
    "VAE, β = 0": ("loss.beta=0", ("method=vae",)),
}
COSTS = ("PFLOP", "device-hours of training", "device-hours")
FLOORS = {"pixels": "raw pixels", "h_untrained": "untrained encoder"}


class Table1(Artefact):
    """Every method of `conf/method/`, the VAE with its β chosen on validation images."""

    name, title = "table1", "Table 1: methods compared"

    def sweeps(self, runs: Runs) -> list[Sweep]:
        """All methods on all datasets, and the grid of β for the VAE."""
        scale, found = runs.scale, []
        for dataset in scale.datasets:
            # Methods with the same recipe are one sweep, unless it has settings that only their models know.
            alike: dict[tuple[str, ...], list[str]] = {}
            for method in methods(runs):
                recipe = own_recipe(runs, dataset, method)
                if method == "vae":
                    found.append(Sweep(dataset, "loss.beta", scale.vae_betas, (*recipe, "method=vae")))
                elif any(word.startswith("model.") for word in recipe):
                    found.append(Sweep(dataset, "method", (method,), recipe))
                else:
                    alike.setdefault(recipe, []).append(method)
            found += [Sweep(dataset, "method", tuple(several), recipe) for recipe, several in alike.items()]
            for last, fixed in self._controls(runs).values():
                key, _, value = last.partition("=")
                found.append(Sweep(dataset, key, (value,), _control(runs, dataset, fixed)))
        return found

    def draw(self, runs: Runs, against: str) -> Sheet:
        """A row per method, and below those each β, floors, and what the paper quotes from elsewhere."""
        scale, datasets = runs.scale, list(runs.scale.datasets)
        chosen = {dataset: self._chosen(runs, dataset) for dataset in datasets}
        by_method = {m: [self._group(runs, d, m, chosen[d]) for d in datasets] for m in methods(runs)}
        tried = scale.vae_betas if "vae" in runs.methods else ()
        betas = {f"VAE, β = {b}": [self._group(runs, d, "vae", b) for d in datasets] for b in tried}
        ready = all(len(g.done) == len(g.jobs) for groups in betas.values() for g in groups)
        papers = [d for d in PUBLISHED if d in datasets] or ["CIFAR-10"]
        others = _other_probes(by_method, scale.probe)
        head = ["method", *(f"{d}: {PROBES[scale.probe]}, measured" for d in datasets)]
        head += [f"{d}: printed in the paper" for d in papers]
        head += [*(f"{datasets[0]}: {PROBES.get(p, p)}, measured" for p in others), *COSTS]

        def row(name: str, groups: Sequence[Group], printed: dict[str, float], feature: str = "h") -> list[str]:
            own = [g.accuracy(scale.probe, feature) for g in groups] or [None] * len(datasets)
            beside = [groups[0].accuracy(p, feature) if groups else None for p in others]
            cost = [""] * len(COSTS)
            if groups and feature == "h":
                first = groups[0]
                cost = [_mean(first.number("flop"), 1e15), _mean(first.training_hours()), _mean(first.hours())]
            shown = percent if groups else lambda spread: ""
            name = groups[0].called(name) if groups and feature == "h" else name
            return [name, *map(shown, own), *(_printed(printed.get(p)) for p in papers), *map(shown, beside), *cost]

        rows = [
            row(self._name(m, chosen, ready), groups, {p: PUBLISHED[p][m] for p in papers if m in PUBLISHED[p]})
            for m, groups in by_method.items()
        ]
        controls = {
            name: [runs.of(d, *_control(runs, d, fixed), last) for d in datasets]
            for name, (last, fixed) in self._controls(runs).items()
        }
        rows += [row(name, groups, {}) for name, groups in (controls | betas).items()]
        floors = floor_values(by_method["aavae"][0], scale.probe)
        rows += [row(name, by_method["aavae"], {}, feature) for feature, name in FLOORS.items() if name in floors]
        rows += [row(f"{name}, quoted by the paper", [], printed) for name, printed in QUOTED.items()]
        first = {NAMES.get(m, m): groups[0] for m, groups in by_method.items()}
        first |= {name: groups[0] for name, groups in controls.items()}
        caption = []
        if tried:
            by = f"was chosen by the mean score on validation images: {_betas(chosen)}."
            caption.append(f"β of the VAE {by if ready else 'is not chosen yet: runs are missing.'}")
        if scale.equal_work:
            caption.append("Each method computes what AAVAE computes in its epochs, to the nearest epoch.")
        untrained = " The untrained encoder is that of AAVAE." if FLOORS["h_untrained"] in floors else ""
        caption += [
            scale.tuned,
            "PFLOP and device-hours are of one run on the first dataset; those of training are without evaluation. "
            f"Hours depend on the machine and on what else it did.{untrained}",
            f"{datasets[0]}. " + differences("AAVAE", first, scale.probe),
        ]
        if datasets != list(PUBLISHED):
            caption.append("The printed numbers are of ResNet-50 after 3200 epochs, with other data than these runs'.")
        every = [group for groups in (*by_method.values(), *controls.values(), *betas.values()) for group in groups]
        figure = self._figure(runs, {m: groups[0] for m, groups in by_method.items()}, against)
        return Sheet(head, rows, caption, figure, every)

    def _controls(self, runs: Runs) -> dict[str, tuple[str, tuple[str, ...]]]:
        """They are of the VAE, and left out with it."""
        return CONTROLS if "vae" in runs.methods else {}

    def _group(self, runs: Runs, dataset: str, method: str, beta: str) -> Group:
        extra = (f"loss.beta={beta}",) if method == "vae" else ()
        return runs.of(dataset, *setting(runs, dataset, method), *extra)

    def _chosen(self, runs: Runs, dataset: str) -> str:
        """The β with the best score on validation images."""

        def score(beta: str) -> float:
            found = self._group(runs, dataset, "vae", beta).number("score")
            return found.mean if found else float("-inf")

        return max(runs.scale.vae_betas, key=score)

    def _name(self, method: str, chosen: dict[str, str], ready: bool) -> str:
        how = "chosen on validation" if ready else "not chosen yet"
        return f"VAE, β = {_betas(chosen)} ({how})" if method == "vae" else NAMES.get(method, method)

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
        if against == "epochs":
            axis.legend(frameon=False, ncols=2)
        else:  # beside the curves, which leave no room for so many names
            beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
            axis.legend(frameon=False, ncols=1 if len(groups) <= 12 else 2, **beside)
        return figure


def methods(runs: Runs) -> list[str]:
    """The methods that are compared, the paper's first."""
    known = [m for m in NAMES if m in runs.methods]
    return [*known, *(m for m in runs.methods if m not in known)]


def own_recipe(runs: Runs, dataset: str, method: str) -> tuple[str, ...]:
    """What a method needs beside its name: at the paper's scale the optimizer, schedule and epochs of its source, at
    others the epochs in which it computes as much as AAVAE."""
    recipe = runs.scale.recipes.get(method, ())
    if dataset == "STL-10":
        named = ("dataset=stl10",) if any(word.startswith("experiment=") for word in recipe) else ()
        recipe = (*recipe, *named, *ON_STL.get(method, ()))
    if not runs.scale.equal_work:
        return recipe
    return (*recipe, f"epochs={epochs_of_equal_work(runs, dataset, (*recipe, f'method={method}'))}")


def setting(runs: Runs, dataset: str, method: str) -> tuple[str, ...]:
    """A method with its own recipe."""
    return (*own_recipe(runs, dataset, method), f"method={method}")


def _control(runs: Runs, dataset: str, fixed: tuple[str, ...]) -> tuple[str, ...]:
    """A control has the recipe of the method that it changes."""
    method = next(word.partition("=")[2] for word in fixed if word.startswith("method="))
    return (*own_recipe(runs, dataset, method), *fixed)


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


def _other_probes(groups: dict[str, list[Group]], probe: str) -> list[str]:
    """The probes, beside the one shown first, that have judged runs on the first dataset."""
    jobs = [job for several in groups.values() for job in several[0].jobs]
    return [name for name in in_order(accuracies(jobs, "h"), PROBES) if name != probe]


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
