"""Training in float64 against a loop of its own, and two processes against one that accumulates."""

import copy
import itertools
import math

import forked
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from aavae import build
from aavae.loggers import Loggers
from aavae.loggers.screen import Reporter
from aavae.runtime.processes import Processes
from aavae.runtime.randomness import generator_for
from aavae.runtime.signals import Signals
from aavae.training.loop import Loop
from aavae.training.trainer import Trainer

BATCH, SIZE, STEPS, LATENT, SEED = 8, 8, 5, 4, 3
TINY = (
    "dataset=synthetic",
    "dataset.size=32",
    f"dataset.image_size={SIZE}",
    "encoder=resnet_tiny",
    "encoder.channels=4",
)
TINY += ("decoder=resnet_tiny", "decoder.channels=4", "decoder.head_channels=4")
TINY += (f"latent_dim={LATENT}", f"batch_size={BATCH}", f"seed={SEED}", "epochs=3", "optimizer.lr=2e-3")
TINY += ("schedule.warmup_epochs=0.5", "trainer.validate_every=0", "trainer.log_every=2", f"trainer.max_steps={STEPS}")


def in_float64(*overrides: str, processes: Processes | None = None) -> Trainer:
    """The trainer of a config with weights, images and latent noise, drawn as ever, in float64."""
    trainer = build.trainer(build.compose([*TINY, *overrides]), processes)
    trainer.model.double()
    normalize = trainer.dataset.normalize
    trainer.dataset.normalize = lambda images: normalize(images.double())
    draw = trainer._draw

    def draw_in_float64(size: int):
        draws, noise = draw(size)
        return draws, None if noise is None else noise.double()

    trainer._draw = draw_in_float64
    return trainer


# ---- One process --------------------------------------------------------------------------------------------------


def fitted(trainer: Trainer, folder) -> dict[str, list[float]]:
    """Losses, and norms of clipped gradients, of the steps of a `Loop`."""
    seen: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    step = trainer.train_step

    def spy(*args, **kwargs) -> dict[str, Tensor]:
        terms = step(*args, **kwargs)
        for name in seen.keys() & terms.keys():
            seen[name].append(terms[name].item())
        return terms

    trainer.train_step = spy
    Loop(trainer, folder, Loggers({}), Reporter(quiet=True), Signals(), {}).run()
    return seen


def objective(method: str, mu: Tensor, log_var: Tensor | None, noise: Tensor, decode, x, view, options) -> Tensor:
    if log_var is None:
        return F.mse_loss(decode(mu), view if method == "aaae" else x)
    sigma = (0.5 * log_var).exp() + 1e-6
    posterior, prior = (Independent(Normal(*both), 1) for both in ((mu, sigma), (0 * mu, torch.ones_like(mu))))
    z = mu if method == "aavae_mean" else mu + sigma * noise
    width = (options["log_scale"] / 2).exp() + 1e-6
    nll = -Independent(Normal(decode(z), width), 3).log_prob(x).mean()
    if not options["beta"]:
        return nll
    if options["kl"] == "mc":
        return nll + options["beta"] * (posterior.log_prob(z) - prior.log_prob(z)).mean()
    return nll + options["beta"] * kl_divergence(posterior, prior).mean()


class Adam:
    """Kingma & Ba (2015), algorithm 1, with L2 regularisation in the gradient."""

    def __init__(self, parameters: list[Tensor], weight_decay: float):
        self.parameters, self.weight_decay, self.steps = parameters, weight_decay, 0
        self.first, self.second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: list[Tensor | None], lr: float) -> None:
        self.steps += 1
        for p, gradient, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            if gradient is None:  # of what the loss does not depend on
                continue
            g = gradient + self.weight_decay * p
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= lr * m / (1 - 0.9**self.steps) / ((v / (1 - 0.999**self.steps)).sqrt() + 1e-8)


def factor(step: int, per_epoch: int, cosine: bool) -> float:
    warmup, total = per_epoch // 2, 3 * per_epoch
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2 if cosine else 1.0


def by_hand(model, data, augmentation, method, *, accumulate=1, clip=None, clean_pass=True, weight_decay=0.0,
            cosine=False, beta=0.0, kl="analytic") -> dict[str, list[float]]:  # fmt: skip
    """The same, of a loop that takes from the code under test layers, images, views and the seeds of what is drawn."""
    encoder, projection, decoder = model.encoder.train(), model.projection.train(), model.decoder.train()
    adam = Adam([p for p in model.parameters() if p.requires_grad], weight_decay)
    images = data["pretrain"].images.float() / 255
    per_epoch, seen = len(images) // BATCH, {"loss": [], "grad_norm": []}
    for step in range(STEPS):
        epoch, batch = divmod(step, per_epoch)
        order = torch.randperm(len(images), generator=generator_for(SEED, "order", epoch))
        chosen = images[order[batch * BATCH : (batch + 1) * BATCH]]
        draws = augmentation.draw(BATCH, SIZE, generator_for(SEED, "augmentation", step))
        noise = torch.randn(BATCH, LATENT, generator=generator_for(SEED, "noise", step)).double()
        loss, gradients = 0.0, [None] * len(adam.parameters)
        for rows in torch.arange(BATCH).chunk(accumulate):
            view = augmentation.apply(chosen[rows], {name: values[rows] for name, values in draws.items()})
            x, view = ((some.double() - 0.5) / 0.25 for some in (chosen[rows], view))
            if clean_pass:
                with torch.no_grad():
                    projection(encoder(x))
            options = {"log_scale": model.log_scale, "beta": beta, "kl": kl}
            part = objective(method, *projection(encoder(view)), noise[rows], decoder, x, view, options) / accumulate
            loss += part.item()
            found = torch.autograd.grad(part, adam.parameters, allow_unused=True)
            gradients = [g if sum_ is None else sum_ + g for sum_, g in zip(gradients, found, strict=True)]
        if clip is not None:
            norm = math.sqrt(sum((g**2).sum().item() for g in gradients if g is not None))
            gradients = [None if g is None else g * min(1.0, clip / (norm + 1e-6)) for g in gradients]
            seen["grad_norm"].append(norm)
        seen["loss"].append(loss)
        adam.step(gradients, 2e-3 * factor(step, per_epoch, cosine))
    return seen


CASES = [
    ("ae", (), {}),
    ("aaae", (), {}),
    ("aaae_denoise", (), {}),
    ("vae", (), {"beta": 1.0}),
    ("aavae", (), {}),
    ("aavae_mean", (), {}),
    (
        "ae",
        ("trainer.accumulate=2", "trainer.clip=1.15", "optimizer.weight_decay=0.01"),
        {"accumulate": 2, "clip": 1.15, "weight_decay": 0.01},
    ),
    (
        "aavae",
        ("trainer.clean_pass=off", "trainer.clip=112", "schedule=cosine", "loss.beta=0.1", "loss.kl=mc"),
        {"clean_pass": False, "clip": 112.0, "cosine": True, "beta": 0.1, "kl": "mc"},
    ),
    (
        "aavae_mean",
        ("trainer.accumulate=4", "schedule=cosine", "loss.learn_scale=true"),
        {"accumulate": 4, "cosine": True},
    ),
]


@pytest.mark.parametrize(("method", "overrides", "dials"), CASES)
def test_training_is_that_of_a_loop_written_apart(method, overrides, dials, tmp_path):
    trainer = in_float64(f"method={method}", *overrides)
    model = copy.deepcopy(trainer.model).to(memory_format=torch.contiguous_format)
    found = fitted(trainer, tmp_path)
    expected = by_hand(model, trainer.dataset, trainer.augmentation, method, **dials)
    assert len(found["loss"]) == STEPS and found["loss"][0] != found["loss"][-1]
    assert found == {name: pytest.approx(values, rel=1e-12) for name, values in expected.items()}
    if "clip" in dials:
        assert min(found["grad_norm"]) < dials["clip"] < max(found["grad_norm"])
    for name, value in model.state_dict().items():  # the last step, and the statistics that only the clean pass moves
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)


# ---- Two processes ------------------------------------------------------------------------------------------------


def three_steps(*overrides: str, processes: Processes | None = None) -> tuple[list[float], list[float], Tensor]:
    """Losses, gradient norms, and then all weights."""
    trainer = in_float64("method=aavae", "loss.beta=0.1", "trainer.clip=100", *overrides, processes=processes)
    trainer.model.train()
    terms = [trainer.train_step(batch) for batch in itertools.islice(trainer.loader.epoch(0), 3)]
    losses, norms = ([t[name].item() for t in terms] for name in ("loss", "grad_norm"))
    return losses, norms, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def _three_steps_of_one(rank: int, port: int, answers) -> None:
    torch.set_num_threads(1)
    with forked.joined(rank, port) as both:
        losses, norms, weights = three_steps(processes=both)
        answers.put((losses, norms, weights.numpy()))


@pytest.mark.slow
def test_two_processes_are_one_that_accumulates_two_halves():
    losses, norms, weights = three_steps("trainer.accumulate=2")
    first, second = forked.pair(_three_steps_of_one)
    assert first[0] != second[0]  # each sees its own half of the batch
    mean = [(a + b) / 2 for a, b in zip(first[0], second[0], strict=True)]
    assert mean == pytest.approx(losses, rel=1e-12)
    for _, theirs, their_weights in (first, second):
        assert theirs == pytest.approx(norms, rel=1e-12)
        torch.testing.assert_close(torch.from_numpy(their_weights), weights, rtol=1e-9, atol=1e-12)
