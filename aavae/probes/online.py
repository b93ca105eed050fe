"""A linear classifier that learns while the encoder does, without the encoder learning anything from it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aavae.datasets import Dataset, Split, labels_of, to_float
from aavae.errors import Damaged, UserError, first_line
from aavae.probes.classifier import linear_head
from aavae.probes.representations import Representation
from aavae.runs.results import record
from aavae.runtime.device import Precision, full_float32, send
from aavae.runtime.randomness import generator_for
from aavae.runtime.words import count
from aavae.weights.optimizer_state import restore as restore_optimizer

SETTINGS = ("lr", "batch_size", "every", "seed")


class Online:
    """A linear classifier on detached features of labelled training images, one step of Adam per training step.

    The encoder is in eval mode while it is asked, so that its BatchNorm never sees the labelled images (the released
    code's did, docs/reproduction.md). Raises UserError for arguments out of range.
    """

    def __init__(self, lr: float = 1e-4, batch_size: int = 256, every: int = 1, seed: int = 0):
        if not lr > 0 or batch_size < 1 or every < 1:
            raise UserError(
                f"probe.online: lr must be positive, batch_size and every 1 or more, not {lr}, {batch_size}, {every}"
            )
        self.lr, self.batch_size, self.every, self.seed = lr, batch_size, every, seed
        self.head: nn.Linear | None = None
        self.steps = 0
        self.learned_in: str | None = None  # the features' precision; it is judged on float32 features
        self._order: tuple[int, Tensor] | None = None  # epoch, and the images' order in it

    # ---- While the encoder is trained -----------------------------------------------------------------------------

    def begin(self, output_dim: int, dataset: Dataset, device: torch.device, precision: Precision) -> None:
        """A fresh classifier on features `(B, output_dim)`. Raises UserError for streamed images."""
        if not (
            isinstance(dataset["train"], Split) and dataset.in_memory
        ):  # a batch of them would need new worker processes each time
            raise UserError(
                "probe.online learns from images in memory; set dataset.in_memory=true, or leave online out of probe="
            )
        self._dataset, self._precision, self._crops = dataset, precision, dataset.crops()
        self.learned_in, self._order = precision.name, None
        self._images = dataset["train"]
        generator = generator_for(self.seed, "online", "head")
        self._attach(linear_head(output_dim, dataset.num_classes, device, generator))

    def _attach(self, head: nn.Linear) -> None:
        self.head = head
        self._optimizer = torch.optim.Adam(head.parameters(), self.lr)

    def learn(self, encoder: nn.Module, step: int) -> dict[str, Tensor]:
        """One step on the labelled batch of this `step`; its loss and accuracy, and nothing of steps in between."""
        if step % self.every:
            return {}
        assert self.head is not None  # it has begun
        x, labels = self._batch(step // self.every)
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad(), self._precision.autocast():
            h = encoder(x).flatten(1).float()
        encoder.train(was_training)
        with full_float32():
            logits = self.head(h)
            loss = F.cross_entropy(logits, labels)
            self._optimizer.zero_grad()
            loss.backward()
        self._optimizer.step()
        self.steps += 1
        return {"online_loss": loss.detach(), "online_accuracy": (logits.argmax(1) == labels).float().mean()}

    def _batch(self, index: int) -> tuple[Tensor, Tensor]:
        n = len(self._images)
        size = min(self.batch_size, n)
        epoch, position = divmod(index, n // size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(n, generator=generator_for(self.seed, "online", epoch))
        some = self._images.take(self._order[1][position * size : (position + 1) * size])
        assert self.head is not None
        device = self.head.weight.device
        views = self._crops(to_float(some.images.to(device)), generator_for(self.seed, "online crops", index))
        return self._dataset.normalize(views), send(labels_of(some), device)

    def state(self) -> dict:
        """Classifier, optimizer, and the settings it learns by, as data."""
        assert self.head is not None
        return {
            "head": self.head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "learned_in": self.learned_in,
            "settings": {name: getattr(self, name) for name in SETTINGS},
        }

    def restore(self, state: dict, device: torch.device) -> None:
        """Continue, or be judged, as it was when it was saved: by the settings it has learned by so far.

        Raises Damaged for a state that is not one of its own.
        """
        try:
            Online(**state["settings"])  # which refuses what is out of range
            for name in SETTINGS:
                setattr(self, name, state["settings"][name])
            num_classes, output_dim = state["head"]["weight"].shape
            if type(state["steps"]) is not int or state["steps"] < 0:
                raise ValueError(f"steps={state['steps']!r}")
            if self.head is not None and self.head.weight.shape != (num_classes, output_dim):
                raise ValueError(f"{num_classes} classes of {output_dim} features")
            head = nn.utils.skip_init(nn.Linear, output_dim, num_classes, device=device)
            self._attach(head)
            head.load_state_dict(state["head"])
            restore_optimizer(self._optimizer, state["optimizer"])
            self.steps = state["steps"]
            # The order of the images depends on seed and batch size, which are those restored.
            self.learned_in, self._order = state.get("learned_in"), None
        except (UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise Damaged("the checkpoint", f"is malformed: what probe.online has learned ({what})") from error

    # ---- Afterwards -----------------------------------------------------------------------------------------------

    def missing(self, encode: Representation) -> str | None:
        """It has only learned from the features it was trained along with."""
        if not self.steps:
            return "it has to learn while the encoder does, on the same images (aavae-train … 'probe=[knn,online]')"
        return None if encode.name == "h" else "it has only learned to read h"

    @torch.no_grad()
    def accuracy(self, encode: Representation, split: str) -> float:
        """The accuracy on a split, as a fraction."""
        assert self.head is not None  # else it is `missing`
        features, truth = encode(split)
        return (self.head(features).argmax(1) == truth).float().mean().item()

    def run(self, encode: Representation, dataset: Dataset) -> list[dict]:
        """Its accuracy on validation and test images as it stands."""
        n = len(dataset["train"])
        protocol = (
            f"linear classifier learned beside the encoder, {n} training images, {dataset.crops()}, "
            f"Adam, lr {self.lr:g}, {count(self.steps, 'step', 'd')} of {min(self.batch_size, n)} images, "
            f"every={self.every}, last step, seed {self.seed}, "
            f"learned from features in {self.learned_in or 'unknown'} precision, judged on float32 ones"
            + (" with recalibrated BatchNorm statistics" if encode.recalibrated else "")
        )
        return [
            record("online", encode.name, s, self.accuracy(encode, s), len(dataset[s]), protocol)
            for s in ("val", "test")
        ]
