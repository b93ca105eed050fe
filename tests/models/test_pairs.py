"""Methods that compare two views: losses against lightly, pytorch-metric-learning and worked numbers; their state."""

import copy
import json
import math
from pathlib import Path

import forked
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as tvf

from aavae import build
from aavae.augmentations import solarize
from aavae.augmentations.amdim import AMDIMCrops, AMDIMViews
from aavae.augmentations.corruption import Corruption
from aavae.augmentations.simclr import SimCLRViews
from aavae.errors import UserError
from aavae.models import batchnorm
from aavae.models.amdim import AMDIM, MapHead, info_nce
from aavae.models.barlow import BarlowTwins, cross_correlation_loss
from aavae.models.byol import BYOL, prediction_error
from aavae.models.dino import DINO
from aavae.models.dino import cross_entropy as dino_loss
from aavae.models.lejepa import LeJEPA, sigreg
from aavae.models.moco import MoCo, queue_loss
from aavae.models.simclr import SimCLR
from aavae.models.simsiam import SimSiam, negative_cosine
from aavae.models.swav import SwAV, assignments, swapped_loss
from aavae.models.teacher import Teacher
from aavae.models.vicreg import VICReg, vicreg_terms
from aavae.runtime.processes import Processes
from aavae.weights import checkpoint

METHODS = ("simclr", "byol", "simsiam", "barlow", "vicreg", "moco", "amdim", "yadim", "lejepa", "dino", "swav")
SMALL = {
    "byol": ["model.hidden_dim=32", "model.output_dim=16"],
    "simsiam": ["model.hidden_dim=32", "model.output_dim=32", "model.predictor_dim=8"],
    "barlow": ["model.hidden_dim=32", "model.output_dim=32"],
    "vicreg": ["model.hidden_dim=32", "model.output_dim=32"],
    "moco": ["model.hidden_dim=32", "model.output_dim=16", "model.queue_size=64"],
    "amdim": ["model.output_dim=32"],
    "yadim": ["model.output_dim=32"],
    "lejepa": ["model.hidden_dim=32", "model.output_dim=16"],
    "dino": ["model.hidden_dim=32", "model.output_dim=16", "model.prototypes=24", "model.frozen=0"],
    "swav": ["model.hidden_dim=32", "model.output_dim=16", "model.prototypes=24", "model.queue_size=64"],
}


def settings(method: str) -> list[str]:
    return ["trainer=debug", f"method={method}", *SMALL.get(method, [])]


def grid(f, rows: int = 6, columns: int = 8) -> Tensor:
    return torch.tensor([[f(i, j) for j in range(columns)] for i in range(rows)], dtype=torch.float64)


A = grid(lambda i, j: math.sin(1 + 0.7 * i + 1.3 * j + 0.11 * i * j))
B = grid(lambda i, j: math.cos(0.5 + 0.9 * i + 0.4 * j + 0.07 * i * j))
QUEUE = F.normalize(grid(lambda k, j: math.sin(0.3 + 1.1 * k + 0.6 * j), 5), dim=-1)
MAPS = torch.tensor(
    [
        [
            [2 * math.sin(0.4 + 0.7 * i + 1.3 * j + 0.5 * y + 0.9 * x) for y in range(2) for x in range(2)]
            for j in range(8)
        ]
        for i in range(6)
    ],
    dtype=torch.float64,
)
TEACHERS = torch.stack([grid(lambda i, j: 0.5 * math.cos(i + 0.5 * j)), grid(lambda i, j: 0.5 * math.sin(0.8 * i + j))])
CENTRE = 0.1 * torch.arange(8, dtype=torch.float64).cos()
PROTOTYPES = F.normalize(grid(lambda k, j: math.cos(0.2 + 1.7 * k + 0.9 * j), 4), dim=-1)


def swav(a: Tensor, b: Tensor) -> Tensor:
    scores = torch.stack([F.normalize(z, dim=-1) @ PROTOTYPES[:, : z.shape[1]].T for z in (a, b)])
    return swapped_loss(scores, torch.stack([assignments(view) for view in scores]), 0.1)


LOSSES = {
    "simsiam": (lambda a, b: negative_cosine(a, b), -0.0734944689),
    "byol": (lambda a, b: prediction_error(a, b), 1.8530110622),
    "barlow": (lambda a, b: cross_correlation_loss(a, b, 0.005), 10.2038410742),
    "moco": (lambda a, b: queue_loss(F.normalize(a, dim=-1), F.normalize(b, dim=-1), QUEUE, 0.2), 1.6625717103),
    "swav": (swav, 6.0793684693),
    "lejepa, regulariser": (lambda a, b: sigreg(a[None], torch.eye(a.shape[1], dtype=a.dtype)), 0.3682502096),
    "amdim, 20": (lambda a, b: info_nce(3 * a, MAPS, 20.0)[0], 3.7353670663),
    "amdim, 10": (lambda a, b: info_nce(3 * a, MAPS, 10.0)[0], 3.5681491259),
    "amdim, 4": (lambda a, b: info_nce(3 * a, MAPS, 4.0)[0], 3.1460659691),
    "amdim, regulariser": (lambda a, b: info_nce(3 * a, MAPS, 4.0)[1], 1.1928338104),
}


# ---- Losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_the_worked_values(name):
    loss, value = LOSSES[name]
    assert loss(A, B).item() == pytest.approx(value, abs=1e-9)


def test_vicreg_s_terms_have_the_worked_values():
    terms = {name: value.item() for name, value in vicreg_terms(A, B).items()}
    worked = {"invariance": 0.9278984842, "variance": 0.4812639742, "covariance": 1.8159421024}
    assert terms == pytest.approx(worked, abs=1e-9)
    total = {
        half: 25 * terms["invariance"] + 25 * half * terms["variance"] + terms["covariance"] for half in (0.5, 1.0)
    }
    assert total == pytest.approx({0.5: 31.0292038864, 1.0: 37.0450035642}, abs=1e-8)


def test_losses_are_those_of_lightly_and_pytorch_metric_learning():
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, VICRegLoss
    from pytorch_metric_learning.losses import VICRegLoss as OtherVICReg

    a, b = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert negative_cosine(a, b).item() == pytest.approx(NegativeCosineSimilarity()(a, b).item(), abs=1e-12)
    assert cross_correlation_loss(a, b, 0.005).item() == pytest.approx(BarlowTwinsLoss(0.005)(a, b).item(), abs=1e-9)
    terms = vicreg_terms(a, b)
    ours = 25 * terms["invariance"] + 12.5 * terms["variance"] + terms["covariance"]
    assert ours.item() == pytest.approx(VICRegLoss()(a, b).item(), abs=1e-9)
    assert ours.item() == pytest.approx(OtherVICReg()(a, ref_emb=b).item(), abs=1e-9)


def test_dino_s_loss_has_the_worked_value():
    students = torch.stack([A, B])
    assert dino_loss(students, TEACHERS, CENTRE, 0.1, 0.04).item() == pytest.approx(8.2716799535, abs=1e-9)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = dino_loss(students[:, order], TEACHERS[:, order], CENTRE, 0.1, 0.04)
    assert shuffled.item() == pytest.approx(8.2716799535, abs=1e-9)
    given = students[:, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dino_loss(s, TEACHERS[:, :3], CENTRE, 0.1, 0.04), (given,))


def test_losses_with_prototypes_and_directions_are_lightly_s():
    from lightly.loss import DINOLoss, LeJEPALoss, SwaVLoss

    generator = torch.Generator().manual_seed(0)
    students, teachers = torch.randn(2, 2, 20, 12, generator=generator, dtype=torch.float64)
    theirs = DINOLoss(output_dim=12, teacher_temp=0.04).double()
    value = theirs(list(teachers), list(students), teacher_temp=0.04)
    assert dino_loss(students, teachers, torch.zeros(12), 0.1, 0.04).item() == pytest.approx(value.item(), abs=1e-8)
    torch.testing.assert_close(0.1 * teachers.mean((0, 1)), theirs.center.flatten().double(), atol=1e-9, rtol=0)
    scores = torch.rand(2, 20, 12, generator=generator, dtype=torch.float64) * 2 - 1
    queued = torch.rand(2, 40, 12, generator=generator, dtype=torch.float64) * 2 - 1
    ours = swapped_loss(scores, torch.stack([assignments(view) for view in scores]), 0.1)
    assert ours.item() == pytest.approx(SwaVLoss()(list(scores), []).item(), abs=1e-9)
    codes = torch.stack([assignments(torch.cat([s, q]))[:20] for s, q in zip(scores, queued, strict=True)])
    assert swapped_loss(scores, codes, 0.1).item() == pytest.approx(
        SwaVLoss()(list(scores), [], list(queued)).item(), abs=1e-9
    )
    without = [
        assignments(torch.cat([s, q]), torch.cat([torch.ones(20), torch.zeros(40)]))
        for s, q in zip(scores, queued, strict=True)
    ]
    assert torch.allclose(torch.stack(without)[:, :20], torch.stack([assignments(s) for s in scores]), atol=1e-12)
    theirs = LeJEPALoss()
    z, directions = (
        torch.stack([A, B]),
        F.normalize(torch.randn(1024, 8, generator=generator, dtype=torch.float64), dim=-1),
    )
    theirs.sigreg._generate_unit_vectors = lambda *_: directions.T
    value = theirs(local_proj=z[:1], global_proj=z)  # three views, of which one counts twice
    every = torch.cat([z, z[:1]])
    known = 0.05 * sigreg(every, directions) + 0.95 * (every - z.mean(0)).square().mean()
    assert value.item() == pytest.approx(known.item(), abs=1e-7)  # its knots are float32


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    a, b = A[:4, :5].clone().requires_grad_(), B[:4, :5].clone()
    if name == "moco":
        assert torch.autograd.gradcheck(lambda a: queue_loss(a, b, QUEUE[:, :5], 0.2), (a,))
    elif name == "swav":  # whose assignments have no gradient
        codes = torch.stack([assignments(view @ PROTOTYPES[:, :5].T) for view in (a, b)]).detach()
        scores = torch.stack([a, b]).detach().requires_grad_() @ PROTOTYPES[:, :5].T
        assert torch.autograd.gradcheck(lambda s: swapped_loss(s, codes, 0.1), (scores.detach().requires_grad_(),))
    elif name.startswith("amdim"):
        assert torch.autograd.gradcheck(lambda a: sum(info_nce(a, MAPS[:4, :5], 4.0)), (a,))
    else:
        assert torch.autograd.gradcheck(lambda a: LOSSES[name][0](a, b), (a,))


def test_vicreg_s_gradient_is_that_of_finite_differences():
    a, b = A[:4, :5].clone().requires_grad_(), B[:4, :5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: sum(vicreg_terms(a, b).values()), (a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_images_does_not_matter(name):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    if name.startswith("amdim"):
        ours, shuffled = info_nce(3 * A, MAPS, 4.0), info_nce(3 * A[order], MAPS[order], 4.0)
        assert torch.allclose(torch.stack(ours), torch.stack(shuffled), atol=1e-12)
    else:
        loss = LOSSES[name][0]
        assert loss(A[order], B[order]).item() == pytest.approx(loss(A, B).item(), abs=1e-12)


def test_no_gradient_reaches_what_is_predicted():
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    negative_cosine(a, b).backward()
    assert b.grad is None and a.grad.norm() > 0


# ---- Models -------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """512 features, as of a ResNet-18."""

    output_dim = 512

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 512)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_heads_have_the_published_sizes():
    with torch.device("meta"):
        byol, simsiam, barlow, moco = (kind(Encoder()) for kind in (BYOL, SimSiam, BarlowTwins, MoCo))
        vicreg, head = VICReg(Encoder()), (MapHead(2048, 1024), MapHead(1024, 1024))
    assert (size(byol.projection), size(byol.predictor)) == (3_158_272, 2_109_696)
    assert (size(simsiam.projection), size(simsiam.predictor)) == (9_447_424, 2_100_224)
    assert size(barlow.projection) == size(vicreg.projection) == 9_451_520
    assert size(moco.projection) == 512 * 2048 + 2048 + 2048 * 256 + 256
    assert [size(h) for h in head] == [5_245_952, 3_148_800]


def started(method: str, *more: str):
    trainer = build.trainer(build.compose([*settings(method), "batch_size=64", *more]))
    trainer.model.train()
    return trainer


@pytest.mark.parametrize("method", METHODS)
def test_a_step_learns_and_its_measures_are_logged(method):
    trainer = started(method)
    before = copy.deepcopy(trainer.model.encoder.state_dict())
    batches = [next(trainer.loader.epoch(e)) for e in range(3)]
    trainer.train_step(batches[0])  # at a learning rate of 0
    for batch in batches[1:]:
        terms = trainer.train_step(batch, measure=True)
    assert torch.isfinite(terms["loss"]) and -1 <= terms["cos_sim"] <= 1 + 1e-6 and 0 < terms["spread"] < 1.5
    moved = [k for k, v in trainer.model.encoder.named_parameters() if not torch.equal(v, before[k])]
    assert len(moved) == len(list(trainer.model.encoder.named_parameters()))


AT_CHANCE = {  # of independent projections
    "byol": 4.0, "simsiam": 0.0, "moco": math.log(1 + 64), "simclr": math.log(2 * 64 - 1), "dino": math.log(64),
    "swav": math.log(64),
}  # fmt: skip


@pytest.mark.parametrize("method", AT_CHANCE)
def test_the_loss_starts_at_chance_where_projections_know_nothing(method):
    """The networks are replaced by noise: what is left is the loss."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dim = 4096
        a, b, c, d = F.normalize(torch.randn(4, 64, dim, dtype=torch.float64), dim=-1)
        queue = F.normalize(torch.randn(64, dim, dtype=torch.float64), dim=-1)
    from aavae.models.simclr import nt_xent

    found = {
        "byol": prediction_error(a, b) + prediction_error(c, d),
        "simsiam": negative_cosine(a, b),
        "moco": queue_loss(a, b, queue, 1.0),
        "simclr": nt_xent(torch.stack([a, b]), 1.0),
        "dino": dino_loss(torch.stack([a, b]) @ queue.T, torch.stack([c, d]) @ queue.T, torch.zeros(64), 1.0, 1.0),
        "swav": swapped_loss(scores := torch.stack([a, b]) @ queue.T, torch.stack([*map(assignments, scores)]), 1.0),
    }[method]
    assert found.item() == pytest.approx(AT_CHANCE[method], abs=0.05)


def test_amdim_s_losses_at_chance_are_those_of_its_targets():
    u, maps = torch.zeros(200, 8), torch.zeros(200, 8, 16)
    assert info_nce(u, maps, 20.0)[0].item() == pytest.approx(math.log(1 + 199 * 16), abs=1e-4)  # 8.066
    assert info_nce(u, torch.zeros(200, 8, 64), 20.0)[0].item() == pytest.approx(9.452, abs=1e-3)


def test_a_cell_s_other_cells_are_no_negatives():
    """One image: nothing to tell it from."""
    assert info_nce(torch.randn(1, 8), torch.randn(1, 8, 5), 20.0)[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", ["dino", "swav"])
def test_prototypes_stay_as_they_are_at_first(method):
    trainer = started(method, "model.frozen=0.5", "schedule.warmup_epochs=0")
    model, moved = trainer.model, []
    for epoch in range(trainer.total_steps):
        before = model.prototypes.weight.detach().clone()
        trainer.train_step(next(trainer.loader.epoch(epoch)))
        moved.append(not torch.equal(before, model.prototypes.weight))
    first = round(trainer.total_steps / 2)
    assert first > 1 and moved == [False] * first + [True] * (trainer.total_steps - first)


def test_dino_s_centre_follows_the_teacher_s_scores():
    trainer = started("dino")
    model, seen = trainer.model, []
    model.teacher.register_forward_hook(lambda module, given, scores: seen.append(scores))
    trainer.train_step(next(trainer.loader.epoch(0)))
    torch.testing.assert_close(model.centre, 0.1 * torch.cat(seen).mean(0), atol=1e-6, rtol=1e-5)


def test_swav_s_queue_takes_part_from_its_time_on():
    """Nothing but the queue changes: the assignments do then, and only then."""
    losses = []
    for part in (0.0, 1.0):
        trainer = started("swav", f"model.queue_from={part}")
        losses.append(trainer.train_step(next(trainer.loader.epoch(0)))["loss"].item())
    assert losses[0] != losses[1] and all(map(math.isfinite, losses))


@pytest.mark.parametrize("method", ["byol", "moco", "dino"])
def test_the_teacher_is_the_student_at_first_and_follows(method):
    trainer = started(method)
    model = trainer.model
    student = [*model.encoder.parameters(), *model.projection.parameters()]
    student += model.prototypes.parameters() if method == "dino" else []
    teacher = list(model.teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(teacher, student, strict=True))
    assert not any(p.requires_grad for p in teacher)
    trainer.train_step(next(trainer.loader.epoch(0)))
    old = [p.detach().clone() for p in teacher]
    trainer.train_step(next(trainer.loader.epoch(1)))
    m = model.teacher.momentum_at(2, trainer.total_steps)
    for before, after, learned in zip(old, teacher, student, strict=True):
        torch.testing.assert_close(after, m * before + (1 - m) * learned.detach(), atol=1e-6, rtol=1e-5)


def test_the_momentum_rises_by_half_a_cosine():
    teacher = Teacher(nn.Linear(1, 1), momentum=0.99, final_momentum=1.0)
    assert teacher.momentum_at(0, 100) == 0.99 and teacher.momentum_at(100, 100) == 1.0
    assert teacher.momentum_at(50, 100) == pytest.approx(0.995) and teacher.momentum_at(7, 0) == 1.0


def test_buffers_of_a_teacher_are_its_own():
    student = nn.BatchNorm1d(3)
    teacher = Teacher(student, momentum=0.5, final_momentum=0.5)
    student.running_mean += 1
    student.weight.data += 1
    teacher.follow(student, step=1, total_steps=2)
    assert torch.equal(teacher.network[0].running_mean, torch.zeros(3))
    assert torch.equal(teacher.network[0].weight, torch.full((3,), 1.5))


def test_the_queue_holds_the_newest_keys_of_both_views():
    trainer = started("moco", "batch_size=32")
    model, before = trainer.model, trainer.model.queue.vectors.clone()
    trainer.train_step(next(trainer.loader.epoch(0)))
    assert model.queue.place == 32 and torch.equal(model.queue.vectors[:, 32:], before[:, 32:])
    assert not torch.isclose(model.queue.vectors[:, :32], before[:, :32]).all(-1).any()
    assert torch.allclose(model.queue.vectors.norm(dim=-1), torch.ones(2, 64))
    trainer.train_step(next(trainer.loader.epoch(1)))
    assert model.queue.place == 0
    trainer.model.eval()
    kept = model.queue.vectors.clone()
    trainer.inspector.validate()
    assert torch.equal(model.queue.vectors, kept) and model._keys is None


def test_a_queue_that_the_batch_does_not_divide_is_refused(train):
    ended = train(*settings("moco"), "batch_size=48", "hydra.run.dir=run")
    assert ended.code == 2 and "model.queue_size=64 is no multiple of batch_size=48" in ended.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("method", "word", "said"),
    [
        ("moco", "model.temperature=0", "model.temperature must be positive"),
        ("moco", "model.queue_size=0", "model.queue_size must be a whole number"),
        ("vicreg", "model.variance=both", "model.variance must be mean or sum"),
        ("amdim", "model.tasks=[[pool,layer5]]", "model.tasks must be pairs of pool, layer4, layer3"),
        ("amdim", "encoder=timm encoder.name=resnet10t", "which only our ResNets and encoder=amdim give"),
        ("amdim", "encoder=amdim", "for images of 32 or 64 pixels, not 16"),
        ("amdim", "encoder=amdim encoder.width=8 dataset.image_size=32", "say model.output_dim=1280"),
        ("swav", "model.queue_size=100", "model.queue_size=100 is no multiple of batch_size="),
        ("dino", "model.teacher_temperature=0", "model.temperature and teacher_temperature must be positive"),
        ("dino", "model.prototypes=1", "model.prototypes must be a whole number of 2 or more"),
        ("lejepa", "model.weight=2", "model.weight must lie between 0 and 1"),
        ("byol", "model.hidden_dim=0", "model.hidden_dim must be a whole number"),
        ("simsiam", "augmentation=none", "all views of an image are equal"),
        ("barlow", "trainer.accumulate=2", "compares the images of a batch"),
        ("dino", "trainer.accumulate=2", "compares the images of a batch"),
    ],
)
def test_what_is_out_of_range_gets_one_sentence(train, method, word, said):
    ended = train(*settings(method), *word.split(), "hydra.run.dir=run", "probe=[]")
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1 and not Path("run").exists()


@pytest.mark.parametrize("method", ["simclr", "byol", "simsiam"])
def test_views_apart_give_batchnorm_other_statistics(method):
    together, apart = (started(method, f"model.together={t}") for t in ("true", "false"))
    batch = next(together.loader.epoch(0))
    losses = [t.train_step(batch)["loss"].item() for t in (together, apart)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.2, abs=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_does_not_reach_the_loss(method):
    trainer = started(method, "precision=bf16")
    seen, learn = [], trainer._learn
    trainer._learn = lambda *given: seen.append(learn(*given)) or seen[-1]
    trainer.train_step(next(trainer.loader.epoch(0)))
    z, terms = seen[0]
    assert z.dtype is torch.float32 and terms["loss"].dtype is torch.float32


# ---- Runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [m if m == "moco" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "simclr"]
)
def test_a_stopped_run_ends_with_the_same_bits(train, method):
    small = (*settings(method), "probe=[]", "trainer.validate_every=0", "hydra.run.dir=run")
    assert train(*small, "trainer.max_steps=10").code == 0  # two in the second epoch
    whole = checkpoint.load(Path("run/last.pt"))
    assert train(*small, "trainer.max_steps=5", "hydra.run.dir=two").code == 0
    assert "from step 5" in train(*small, "trainer.max_steps=10", "hydra.run.dir=two").out
    again = checkpoint.load(Path("two/last.pt"))
    assert whole["step"] == again["step"] == 10
    assert whole["model"].keys() == again["model"].keys()
    assert all(torch.equal(whole["model"][k], again["model"][k]) for k in whole["model"])


@pytest.mark.slow
def test_a_collapse_is_said_once(train, monkeypatch):
    """A learner of one vector for all images: SimSiam's bare minimum."""
    small = (*settings("simsiam"), "probe=[]", "trainer.log_every=1", "hydra.run.dir=run")
    assert "collapsed" not in train(*small).out
    monkeypatch.setattr("aavae.models.simsiam.unit", lambda z: torch.ones_like(z) / z.shape[-1] ** 0.5)
    said = train(*small, "hydra.run.dir=two").out
    assert said.count("warning: collapse at step 3 (epoch 0.375): the compared vectors have collapsed (spread 0, ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m != "simclr"])
def test_a_run_is_judged_and_converted(train, evaluate, convert, method):
    ended = train(*settings(method), "epochs=1", "probe=knn", "features=[h,h_untrained]", "hydra.run.dir=run")
    assert ended.code == 0 and f"method      {method}" in ended.out, ended.err
    assert evaluate("run=run", "probe=[knn,similarity]", "features=[h]", "probe.similarity.images=4",
                    "probe.similarity.shown=2", "probe.similarity.features=[h]").code == 0  # fmt: skip
    assert {r["probe"] for r in json.loads(Path("run/results.json").read_text())} == {"knn", "similarity"}
    assert convert("run", "encoder.safetensors").code == 0 and convert("run", "whole.pt").code == 0


# ---- Two processes ------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """Without BatchNorm, which couples images of a process."""

    output_dim = 10

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


PAIRED = {
    "simclr": lambda: SimCLR(Flat(), hidden_dim=12, output_dim=6),
    "barlow": lambda: BarlowTwins(Flat(), hidden_dim=12, output_dim=6),
    "vicreg": lambda: VICReg(Flat(), hidden_dim=12, output_dim=6),
    "moco": lambda: MoCo(Flat(), hidden_dim=12, output_dim=6, queue_size=16),
    "byol": lambda: BYOL(Flat(), hidden_dim=12, output_dim=6),
    "lejepa": lambda: LeJEPA(Flat(), hidden_dim=12, output_dim=6),
    "dino": lambda: DINO(Flat(), hidden_dim=12, output_dim=6, prototypes=7),
    "swav": lambda: SwAV(Flat(), hidden_dim=12, output_dim=6, prototypes=7, queue_size=16),
}


def made(name: str):
    torch.manual_seed(0)
    model = PAIRED[name]().double()
    views = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
    return model, views, torch.randn(8, model.noise_dim, dtype=torch.float64) if model.noise_dim else None


def learned(name: str, processes: Processes):
    """A model after a backward pass on this process's rows, with averaged gradients."""
    model, views, noise = made(name)
    forked.backward(model, processes, views, views[0], noise)
    return model


STATE = {"moco": ("queue.vectors", "queue.place"), "swav": ("queue.vectors", "queue.place"), "dino": ("centre",)}


def state(name: str, processes: Processes) -> list[Tensor]:
    """What a step leaves in the model, beside its weights."""
    model, views, _ = made(name)
    mine = processes.share(8)
    model.processes = processes
    model.begin(10, 8)
    batchnorm.share(model, processes)
    model.learn(views[:, mine], views[0, mine], None)
    model.after_step(1)
    found = model.state_dict()
    return [found[key].double() for key in STATE[name]]


def _gradients(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        models = {name: learned(name, both) for name in PAIRED}
        found = {n: [p.grad.tolist() for p in m.parameters() if p.grad is not None] for n, m in models.items()}
        answers.put((found, {name: [t.tolist() for t in state(name, both)] for name in STATE}))


def test_two_processes_have_the_gradients_and_the_state_of_one():
    alone = {name: [p.grad for p in learned(name, Processes()).parameters() if p.grad is not None] for name in PAIRED}
    states = {name: state(name, Processes()) for name in STATE}
    for found, kept in forked.pair(_gradients):
        for name, gradients in found.items():
            assert len(gradients) == len(alone[name])
            for ours, whole in zip(gradients, alone[name], strict=True):
                torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), whole, atol=1e-10, rtol=1e-8)
        for name, values in kept.items():
            for ours, whole in zip(values, states[name], strict=True):
                torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), whole, atol=1e-9, rtol=0)


# ---- Views --------------------------------------------------------------------------------------------------------


def test_solarising_is_torchvision_s():
    images = torch.rand(6, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    invert = torch.tensor([True, False, True, True, False, False])
    expected = torch.stack([tvf.solarize(x, 0.5) if i else x for x, i in zip(images, invert, strict=True)])
    assert torch.equal(solarize(images, invert), expected)


def test_only_the_second_view_is_solarised():
    pipeline = SimCLRViews(0.5, 0.0, jitter=[0.4, 0.4, 0.2, 0.1], solarize_p=[0.0, 0.2])
    first, second = pipeline.draws(20_000, 32, [torch.Generator().manual_seed(s) for s in (0, 1)])
    assert "solarize" not in first and second["solarize"].float().mean().item() == pytest.approx(0.2, abs=0.01)
    reach = [0.4, 0.4, 0.2]
    for j, r in enumerate(reach):
        column = second["factors"][:, j]
        assert (
            column.min() >= 1 - r
            and column.max() <= 1 + r
            and column.std().item() == pytest.approx(r / 3**0.5, rel=0.03)
        )
    images = torch.rand(8, 3, 16, 16)
    draws = {name: value[:8] for name, value in second.items()} | {"solarize": torch.arange(8) % 2 == 0}
    plain = pipeline.apply(images, {k: v for k, v in draws.items() if k != "solarize"})
    views = pipeline.apply(images, draws)
    assert torch.equal(views[1::2], plain[1::2]) and torch.equal(views[::2], tvf.solarize(plain[::2], 0.5))


@pytest.mark.parametrize("jitter", [[0.4], [0.4, 0.4, 0.4, 0.6], [-0.1, 0, 0, 0]])
def test_a_jitter_that_is_none_is_refused(jitter):
    with pytest.raises(UserError, match=r"augmentation\.jitter must be four numbers"):
        SimCLRViews(0.5, 0.0, jitter=jitter)


def test_amdim_s_views_share_their_flip():
    first, second = AMDIMViews().draws(20_000, 32, [torch.Generator().manual_seed(s) for s in (0, 1)])
    assert torch.equal(first["flip"], second["flip"]) and not torch.equal(first["gray"], second["gray"])
    still = (second["corner"] == 4).all(1).float().mean().item()
    assert still == pytest.approx(0.2 + 0.8 / 81, abs=0.01)
    assert second["gray"].float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_amdim_s_crops_share_their_flip_and_are_those_of_simclr_s_pipeline():
    asked = dict(scale=[0.3, 1.0], ratio=[0.7, 1.4], jitter=[0.4, 0.4, 0.4, 0.2], grayscale_p=0.25)
    generators = lambda: [torch.Generator().manual_seed(s) for s in (0, 1)]  # noqa: E731
    pipelines = AMDIMCrops(), SimCLRViews(0.5, 0.0, **asked)
    ours, plain = (pipeline.draws(500, 96, generators()) for pipeline in pipelines)
    assert torch.equal(ours[0]["flip"], ours[1]["flip"]) and not torch.equal(plain[0]["flip"], plain[1]["flip"])
    assert all(torch.equal(ours[v][k], plain[v][k]) for v in (0, 1) for k in plain[v] if (v, k) != (1, "flip"))


def test_amdim_s_views_are_torchvision_s():
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    draws = AMDIMViews().draw(12, 16, torch.Generator().manual_seed(1))
    views = AMDIMViews().apply(images, draws)
    for n, image in enumerate(images):
        x = tvf.hflip(image) if draws["flip"][n] else image
        top, left = draws["corner"][n].tolist()
        x = tvf.crop(tvf.pad(x, [4] * 4, padding_mode="reflect"), top, left, 16, 16)
        if draws["jitter"][n]:
            adjust = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
            for k in draws["order"][n].tolist():
                x = adjust[k](x, draws["factors"][n, k].item())
        x = tvf.rgb_to_grayscale(x, 3) if draws["gray"][n] else x
        assert torch.allclose(views[n], x, atol=2e-5)


def test_corruption_has_its_noise_and_drops_whole_pixels():
    pipeline = Corruption(0.25, 0.25, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    draws = pipeline.draw(200, 32, torch.Generator().manual_seed(0))
    images = torch.rand(200, 3, 32, 32)
    views = pipeline.apply(images, draws)
    dropped = draws["drop"].expand_as(views)
    assert draws["drop"].float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert torch.equal(views[dropped], pipeline.mean.expand_as(views)[dropped])
    for c, std in enumerate((0.2, 0.3, 0.4)):
        noise = (views - images)[:, c][~dropped[:, c]]
        assert noise.std().item() == pytest.approx(0.25 * std, rel=0.02) and abs(noise.mean().item()) < 1e-3
    assert not Corruption(0.0, 0.0, [0] * 3, [1] * 3).augments


def test_a_denoising_autoencoder_reconstructs_the_clean_image():
    trainer = build.trainer(build.compose(["trainer=debug", "method=dae"]))
    seen = []
    learn = trainer._learn
    trainer._learn = lambda views, x, noise: seen.append((views, x)) or learn(views, x, noise)
    trainer.model.train()
    terms = trainer.train_step(next(trainer.loader.epoch(0)))
    views, x = seen[0]
    assert (views[0] - x).std().item() > 0.2 and terms["loss"] > 0
    mean = trainer.dataset.mean
    assert trainer.augmentation.mean.flatten().tolist() == pytest.approx(list(mean))


def test_amdim_s_own_encoder_has_the_published_size_and_cost():
    from torch.utils.flop_counter import FlopCounterMode

    from aavae.models.encoders.amdim import amdim_encoder

    with torch.device("meta"):
        model = AMDIM(amdim_encoder(32), output_dim=1280)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model._maps(torch.empty(2, 1, 3, 32, 32))
        stl = amdim_encoder(64, 192, 1536, 8)
    assert size(model) == pytest.approx(163.8e6, rel=1e-3)  # with its two heads
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(5.99e9, rel=5e-3)  # multiplications a view
    assert [m.shape[-1] for m in stl.maps(torch.empty(2, 3, 64, 64, device="meta"))] == [7, 5, 1]


def test_amdim_trains_its_own_encoder():
    own = ["encoder=amdim", "encoder.width=8", "encoder.output_dim=32", "encoder.depth=2", "dataset.image_size=32"]
    trainer = started("amdim", *own)
    trainer.model.train()
    for epoch in (0, 1):
        terms = trainer.train_step(next(trainer.loader.epoch(epoch)), measure=True)
    assert torch.isfinite(terms["loss"]) and trainer.model.heads["pool"](torch.ones(2, 32, 1, 1)).shape == (2, 32, 1)
    net, x = trainer.model.encoder, torch.randn(2, 3, 32, 32)
    assert net(x).shape == (2, 32) and [m.shape[1:] for m in net.maps(x)] == [(32, 7, 7), (32, 5, 5), (32, 1, 1)]


def test_the_encoder_s_maps_are_what_it_pools():
    net = build.trainer(build.compose(settings("amdim"))).model.encoder.eval()
    x = torch.randn(2, 3, 16, 16)
    maps = net.maps(x)
    assert [m.shape[1] for m in maps] == [16, 32, 64, 128] and torch.allclose(maps[-1].mean((2, 3)), net(x), atol=1e-6)
    assert isinstance(build.trainer(build.compose(settings("yadim"))).model, AMDIM)
