"""One encoder under the protocols by which others report accuracies, and what each of their choices is worth.

The choices are those of solo-learn (online classifier, kNN), lightly's benchmarks (kNN, linear), the authors and ours;
docs/probes.md has the sources. A row changes one thing of the row that it is held against.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from aavae.augmentations.pipeline import Pipeline
from aavae.augmentations.simclr import ResizedCrops
from aavae.datasets import Dataset, to_float
from aavae.errors import UserError
from aavae.probes.classifier import SGD, Plan, cosine, cropped_batches, linear_head, plan
from aavae.probes.knn import knn_predict
from aavae.probes.linear_cached import fit_softmax, scale_of
from aavae.probes.representations import Representation
from aavae.runs.results import record
from aavae.runtime.device import full_float32
from aavae.runtime.randomness import generator_for
from aavae.runtime.words import count

OURS, LIGHTLY = (20, 0.07), (200, 0.1)  # k and temperature of kNN
CENTRE = 7 / 8  # of the side: Resize(256) and CenterCrop(224)
SHORT = 9  # times fewer epochs, to see what they are worth


class Row(NamedTuple):
    """Which test images are `right` under a protocol, and the one `change` from the row it is held `against`."""

    name: str
    right: Tensor  # (N,) bool
    protocol: str
    against: str | None = None
    change: str = ""


class Learner:
    """A linear layer that learns by SGD under a cosine, a batch at a time, until the steps of its plan are over."""

    def __init__(self, head: nn.Linear, sgd: SGD, how: Plan, nesterov: bool):
        self.head, self.how, self._peak, self._step = head, how, sgd.peak(how.size), 0
        self._optimizer = torch.optim.SGD(
            head.parameters(), self._peak, sgd.momentum, weight_decay=sgd.weight_decay, nesterov=nesterov
        )

    def learn(self, features: Tensor, labels: Tensor) -> None:
        """One step, if there is one left."""
        if self._step >= self.how.steps:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * cosine(self._step, self.how.cosine_steps)
        loss = F.cross_entropy(self.head(features), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._step += 1

    @torch.no_grad()
    def right(self, features: Tensor, truth: Tensor) -> Tensor:
        """Which images it names rightly. Raises UserError where it has diverged."""
        logits = self.head(features)
        if not logits.isfinite().all():
            raise UserError("probe.protocols: a classifier has diverged; a smaller probe.protocols.lr helps")
        return logits.argmax(1) == truth


class Protocols:
    """Test accuracies by protocol, and the points (of 100) that each choice is worth, with their paired standard error.

    The encoder is frozen, so solo-learn's online classifier is its frozen version; the true one is the probe `online`,
    which learns while the encoder does. Each view passes the encoder once, for all classifiers that learn
    from it. Raises UserError for arguments out of range.
    """

    def __init__(
        self,
        epochs: int = 90,
        batch_size: int = 256,
        lr: float = 0.1,
        weight_decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1),
        steps: int = 100,
        seed: int = 0,
    ):
        if epochs < 1 or steps < 1 or not weight_decays or min(weight_decays) < 0:
            raise UserError("probe.protocols: epochs and steps must be 1 or more, and weight_decays 0 or more")
        self.sgd = SGD("protocols", batch_size, lr, momentum=0.9, weight_decay=0.0)
        self.epochs, self.weight_decays, self.steps, self.seed = epochs, tuple(weight_decays), steps, seed

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """For each row `accuracy_<row>`, and of those held against another `points_<row>` and `points_se_<row>`."""
        rows = {row.name: row for row in (*self._neighbours(encode), *self._fitted(encode), *self._learned(encode))}
        records = []
        for row in rows.values():

            def add(metric: str, value: float, protocol: str, row: Row = row) -> None:
                n = len(row.right)
                records.append(record("protocols", encode.name, "test", value, n, protocol, f"{metric}_{row.name}"))

            add("accuracy", row.right.float().mean().item(), row.protocol)
            if row.against is not None:
                apart = 100 * (row.right.float() - rows[row.against].right.float())
                told = f"against {row.against}: {row.change}"
                add("points", apart.mean().item(), told)
                add("points_se", apart.std(correction=0).item() / math.sqrt(len(apart)), told)
        return records

    # ---- Neighbours -----------------------------------------------------------------------------------------------

    def _neighbours(self, encode: Representation) -> Iterator[Row]:
        (train, labels), (val, val_labels), (test, truth) = (encode(split) for split in ("train", "val", "test"))
        classes, n = encode.dataset.num_classes, len(train)

        def cosines(k: int, t: float, bank: Tensor = train, named: Tensor = labels) -> tuple[Tensor, str]:
            right = knn_predict(bank, named, test, k, t, classes) == truth
            k = min(k, len(bank))
            return right, f"kNN, k={k}, cosine, weights exp(s/{t:g}), {len(bank)} training images, float32"

        yield Row("knn_ours", *cosines(*OURS))
        distances, index = torch.cdist(test, train).topk(min(OURS[0], n), largest=False)
        votes = test.new_zeros(len(test), classes).scatter_add_(1, labels[index], 1 / distances.clamp(min=1e-8))
        how = f"kNN, k={min(OURS[0], n)}, Euclidean, weights 1/d, {n} training images, float32"
        change = "Euclidean distance of features as they are, not cosine (solo-learn's default)"
        yield Row("knn_euclidean", votes.argmax(1) == truth, how, "knn_ours", change)
        yield Row("knn_k200", *cosines(LIGHTLY[0], OURS[1]), "knn_ours", f"k {OURS[0]} → {LIGHTLY[0]}")
        change = f"temperature {OURS[1]:g} → {LIGHTLY[1]:g}: lightly's kNN"
        yield Row("knn_lightly", *cosines(*LIGHTLY), "knn_k200", change)
        right, how = cosines(*LIGHTLY, torch.cat([train, val]), torch.cat([labels, val_labels]))
        change = "validation images among the neighbours too"
        yield Row("knn_with_val", right, f"{how}, validation images among them", "knn_lightly", change)

    # ---- Fitted classifiers, on clean features --------------------------------------------------------------------

    def _fitted(self, encode: Representation) -> Iterator[Row]:
        sets = {split: encode(split) for split in ("train", "val", "test")}
        mean, std = scale_of(sets["train"][0])
        scaled = {split: ((features - mean) / std, labels) for split, (features, labels) in sets.items()}
        n = len(sets["train"][0])

        def fit(some: dict, weight_decay: float) -> nn.Linear:
            features, labels = some["train"]
            return fit_softmax(features, labels, encode.dataset.num_classes, weight_decay, self.steps)

        def right(head: nn.Linear, some: dict, split: str) -> Tensor:
            features, truth = some[split]
            return head(features).argmax(1) == truth

        def chosen(some: dict) -> tuple[nn.Linear, float]:
            heads = {w: fit(some, w) for w in self.weight_decays}
            best = max(heads, key=lambda w: right(heads[w], some, "val").float().mean().item())
            return heads[best], best

        def protocol(standardised: bool, weight_decay: float, images: str) -> str:
            tried = ", ".join(f"{w:g}" for w in self.weight_decays)
            return (
                f"{'standardised' if standardised else 'raw'} features, softmax regression, up to "
                f"{count(self.steps, 'step', 'd')} of L-BFGS, no augmentation, weight decay {weight_decay:g} chosen on "
                f"val among {tried}, {images}, float32"
            )

        head, weight_decay = chosen(scaled)
        yield Row("fit_ours", right(head, scaled, "test"), protocol(True, weight_decay, f"{n} training images"))
        both = tuple(torch.cat(parts) for parts in zip(scaled["train"], scaled["val"], strict=True))
        head = fit(scaled | {"train": both}, weight_decay)
        images = f"{len(both[0])} training images, validation images among them"
        change = "validation images in the training set too, after the choice"
        yield Row("fit_with_val", right(head, scaled, "test"), protocol(True, weight_decay, images), "fit_ours", change)
        head, weight_decay = chosen(sets)
        how = protocol(False, weight_decay, f"{n} training images")
        yield Row("fit_raw", right(head, sets, "test"), how, "fit_ours", "features as they are, not standardised")

    # ---- Classifiers that learn from views ------------------------------------------------------------------------

    def _learned(self, encode: Representation) -> Iterator[Row]:
        n, size, crops, views = len(encode.dataset["train"]), self.sgd.batch_size, encode.dataset.crops(), encode.views
        how, short = plan(n, self.epochs, size), plan(n, max(1, self.epochs // SHORT), size)
        resized = ResizedCrops(flip_p=getattr(crops, "flip_p", 0.5))  # a mirrored digit is another one, or none
        right, best = self._taught(encode, how, short, resized)
        few, many = (count(plan.epochs, "epoch", "d") for plan in (short, how))

        def row(name: str, against: str, change: str, images: object, more: str = "last epoch", **kind) -> Row:
            said = self.sgd.protocol(kind.get("plan", how))
            said = said if kind.get("nesterov", True) else said.replace("Nesterov momentum", "momentum")
            protocol = f"linear classifier on frozen features, {n} training images, {images}, shuffled, {said}, {more}"
            return Row(name, right[name], f"{protocol}, seed {self.seed}, float32", against, change)

        change = f"{many} of SGD, weight decay 0, not L-BFGS with a weight decay chosen on val"
        yield row("sgd_clean", "fit_raw", change, "clean images")
        change = f"learns from {crops}: the authors' evaluation (probe linear)"
        yield row("sgd_authors", "sgd_clean", change, crops)
        yield row("sgd_short", "sgd_authors", f"{many} → {few}", crops, plan=short)
        told = f"last epoch, one view of each test image ({views})"
        yield row("sgd_test_views", "sgd_authors", "test images augmented too, as for the encoder", crops, told)
        yield row("sgd_resized", "sgd_authors", f"learns from {resized}", resized)
        change = "plain momentum, not Nesterov's: lightly's linear, last epoch"
        yield row("sgd_lightly", "sgd_resized", change, resized, nesterov=False)
        change, told = f"centre of test images, {CENTRE:g} of the side, as 224 of 256", f"last epoch, centre {CENTRE:g}"
        yield row("sgd_centre", "sgd_lightly", change, resized, told, nesterov=False)
        change = "best epoch on the test images, not the last: an error, selected on test (lightly's script prints it)"
        told = f"best epoch on these test images, {best}, which is an error"
        yield row("sgd_best_on_test", "sgd_lightly", change, resized, told, nesterov=False)
        change = "learns from the views that the encoder was trained on"
        yield row("sgd_views", "sgd_lightly", change, views, nesterov=False)
        if "sgd_solo_frozen" in right:
            change = "BatchNorm by batches while it learns: solo-learn's online classifier, frozen"
            told = "last epoch, BatchNorm by batches while it learns; the encoder is frozen, unlike the probe online's"
            yield row("sgd_solo_frozen", "sgd_views", change, views, told, nesterov=False)

    def _taught(
        self, encode: Representation, how: Plan, short: Plan, resized: Pipeline
    ) -> tuple[dict[str, Tensor], int]:
        """Which test images each row of SGD names rightly, and the epoch at which lightly's names most."""
        test, truth = encode("test")
        batchwise = _with_batch_statistics(encode)

        def learner(plan: Plan = how, nesterov: bool = True) -> Learner:
            # The same first weights, images, order and draws for all: rows differ by what they say.
            generator = generator_for(self.seed, "linear", "head")
            head = linear_head(test.shape[1], encode.dataset.num_classes, encode.device, generator)
            return Learner(head, self.sgd, plan, nesterov)

        clean, authors, brief, like = learner(), learner(), learner(short), learner()
        lightly, viewed, solo = (learner(nesterov=False) for _ in range(3))
        epochs: list[Tensor] = []
        self._teach(encode, how, "clean images", None, [([clean], encode.encode)])
        self._teach(encode, how, "crops", encode.dataset.crops(), [([authors, brief], encode.encode)])
        self._teach(
            encode,
            how,
            "resized crops",
            resized,
            [([like, lightly], encode.encode)],
            lambda: epochs.append(lightly.right(test, truth)),
        )
        pupils = [([viewed], encode.encode), *([([solo], batchwise)] if batchwise else [])]
        self._teach(encode, how, "views", encode.views, pupils)

        draws = generator_for(self.seed, "protocols", "test views")
        shown = self._of_test(encode, lambda images: encode.views(to_float(images.to(encode.device)), draws))
        centres = self._of_test(encode, lambda images: _centre(encode.clean(images)))
        best = max(range(len(epochs)), key=lambda i: epochs[i].sum().item())
        right = {
            "sgd_clean": clean.right(test, truth),
            "sgd_authors": authors.right(test, truth),
            "sgd_short": brief.right(test, truth),
            "sgd_test_views": authors.right(shown, truth),
            "sgd_resized": like.right(test, truth),
            "sgd_lightly": lightly.right(test, truth),
            "sgd_centre": lightly.right(centres, truth),
            "sgd_best_on_test": epochs[best],
            "sgd_views": viewed.right(test, truth),
        }
        return right | ({"sgd_solo_frozen": solo.right(test, truth)} if batchwise else {}), best + 1

    def _teach(
        self,
        encode: Representation,
        how: Plan,
        what: str,
        views: Pipeline | None,
        pupils: list[tuple[list[Learner], Callable]],
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Teach learners by views of training images; `pupils` are those that share features, and what makes these."""
        batches = self._clean(encode, how) if views is None else self._views(encode, how, views)
        for step, (x, labels) in enumerate(encode.track(batches, how.steps, f"protocols on {encode.name}: {what}")):
            for learners, features_of in pupils:
                generator = generator_for(self.seed, "linear", "latent", step)
                features = x if views is None else features_of(x, generator)
                for learner in learners:
                    learner.learn(features, labels)
            if (step + 1) % how.per_epoch == 0:
                after_epoch()

    def _clean(self, encode: Representation, how: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        features, labels = encode("train")
        for epoch in range(how.epochs):
            order = torch.randperm(len(labels), generator=generator_for(self.seed, "linear", "order", epoch))
            for some in order[: how.per_epoch * how.size].to(labels.device).split(how.size):
                yield features[some], labels[some]

    def _views(self, encode: Representation, how: Plan, views: Pipeline) -> Iterable[tuple[Tensor, Tensor]]:
        dataset = encode.dataset
        return cropped_batches(encode, dataset, dataset["train"], how, (self.seed, "linear"), views)

    def _of_test(self, encode: Representation, shown: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of the test images, uint8, as they are `shown`."""
        generator = generator_for("features", f"{encode.name} of test images")
        batches = encode.dataset["test"].batches(encode.batch_size)
        views = (encode.dataset.normalize(shown(images)) for images in batches)
        return torch.cat([encode.encode(view, generator) for view in views])


def _centre(images: Tensor) -> Tensor:
    """The centre of images `(B, 3, H, W)`, at their size again."""
    size = images.shape[-1]
    edge = (size - round(CENTRE * size)) // 2
    inner = images[..., edge : size - edge, edge : size - edge]
    return F.interpolate(inner, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _with_batch_statistics(encode: Representation) -> Callable | None:
    """A copy of the encoder that normalises by the statistics of batches; None if there is nothing to normalise."""
    if encode.encoder is None:
        return None
    own = copy.deepcopy(encode.encoder)
    norms = [module for module in own.modules() if isinstance(module, _BatchNorm)]
    for module in norms:
        module.train()

    @torch.no_grad()
    @full_float32()
    def features(x: Tensor, generator: torch.Generator) -> Tensor:
        return own(x).flatten(1).float()

    return features if norms else None
