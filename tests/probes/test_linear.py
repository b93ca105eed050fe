"""The linear evaluation against a plain loop of torch's own SGD and CosineAnnealingLR, and what it promises about
splits, schedules, draws and the encoder."""

import contextlib
import copy
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from aavae import build
from aavae.augmentations.crops import Crops
from aavae.augmentations.simclr import ResizedCrops
from aavae.datasets.folder import ImageFolder
from aavae.datasets.synthetic import Synthetic
from aavae.errors import UserError
from aavae.probes.classifier import cosine, linear_head, plan
from aavae.probes.guests import checksum
from aavae.probes.linear import Linear
from aavae.probes.representations import Representation
from aavae.runtime.randomness import generator_for

CPU = torch.device("cpu")


class Labelled(Synthetic):
    """Gratings under another name, shown as the decoder's target would be, with crops of one's choice."""

    def __init__(self, size=200, name="synthetic", crops=None):
        super().__init__(size, image_size=8)
        self.name, self._crops = name, crops or Crops(1)
        self.load()

    def target(self, images):
        return (0.2 + 0.5 * images).flip(2)

    def crops(self):
        return self._crops


def encoder(seed=0):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.3, g)
    net(torch.randn(64, 3, 8, 8, generator=g))  # running statistics that are not 0 and 1
    return net.eval()


def features_of(data, net, name="h", **kwargs):
    return Representation(name, lambda x, _: net(x), data, CPU, **kwargs)


@contextlib.contextmanager
def watched():
    """Learning rate and parameters of every optimizer step, before it is taken."""
    seen = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append(
            (optimizer.param_groups[0]["lr"], [p.detach().clone() for p in optimizer.param_groups[0]["params"]])
        )
    )
    yield seen
    hook.remove()


def run(probe, encode, data):
    """Records, learning rates, and the classifier before each step."""
    with watched() as seen:
        records = probe.run(encode, data)
    return records, [lr for lr, _ in seen], [p for _, p in seen]


def values(records):
    return {(r["split"], r["metric"]): (r["value"], r["n"]) for r in records}


# ---- The protocol -------------------------------------------------------------------------------------------------


def plain_loop(data, net, batches, lr, steps, seed=0):
    """The head after each step of the released protocol, written out: SGD, Nesterov 0.9, cosine, frozen eval encoder.

    `batches` gives images in [0, 1] and labels; the learning rate would reach 0 after `steps`.
    """
    torch.manual_seed(0)
    head = nn.Linear(net(torch.zeros(1, 3, 8, 8)).shape[1], 4)
    with torch.no_grad():
        for p, q in zip(
            head.parameters(), linear_head(head.in_features, 4, CPU, seed_of(seed)).parameters(), strict=True
        ):
            p.copy_(q)
    sgd = torch.optim.SGD(head.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=0)
    scheduler, heads = CosineAnnealingLR(sgd, steps), []
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (data.mean, data.std))
    for x, y in batches:
        heads.append([p.detach().clone() for p in head.parameters()])
        with torch.no_grad():
            h = net((x - mean) / std)
        sgd.zero_grad()
        F.cross_entropy(head(h), y).backward()
        sgd.step()
        scheduler.step()
    return head, heads


def seed_of(seed):
    return generator_for(seed, "linear", "head")


def augmented(data, epochs, size, seed=0):
    train = data["train"]
    for epoch in range(epochs):
        order = torch.randperm(len(train), generator=generator_for(seed, "linear", "order", epoch))
        for i in range(max(1, len(train) // size)):
            chosen = order[i * size : (i + 1) * size]
            whole = train.images[chosen].float() / 255  # crops are of the image, not of what the decoder is to make
            yield data.crops()(whole, generator_for(seed, "linear", "crop", epoch, i)), train.labels[chosen]


def right(head, net, data, split):
    """Which clean images of `split` are classified rightly."""
    with torch.no_grad():
        x = data.normalize(data.target(data[split].images.float() / 255))
        return (head(net(x)).argmax(1) == data[split].labels).float()


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("crops", [Crops(1), ResizedCrops()], ids=["crops", "resized"])
@pytest.mark.parametrize("size", [48, 256, 200])  # batches that drop images, that want more than there are, that fit
def test_linear_is_torchs_sgd_and_cosine_annealing_on_crops_of_the_training_images(size, crops):
    data, net = Labelled(crops=crops), encoder()
    per_epoch, images = max(1, 200 // size), min(200, size)
    expected, heads = plain_loop(data, net, augmented(data, 3, images), 0.1 * images / 256, 3 * per_epoch)
    records, _, found = run(Linear(epochs=3, batch_size=size), features_of(data, net), data)
    same(found, heads)
    for split in ("val", "test"):
        accuracy = right(expected, net, data, split).mean().item()
        assert values(records)[split, "accuracy"] == (pytest.approx(accuracy), 100)
        assert 0.3 < accuracy < 0.99


def test_the_learning_rate_is_a_float_whatever_the_batch_size():
    data, net = Labelled(), encoder()
    for size, first in ((48, 0.01875), (100, 0.0390625), (500, 0.078125)):  # 500: one batch of all 200
        _, lrs, _ = run(Linear(epochs=1, batch_size=size), features_of(data, net), data)
        assert lrs[0] == pytest.approx(first)


def test_ninety_epochs_of_175_steps_from_a_tenth_to_almost_nothing():
    how = plan(45_000, 90, 256)
    assert (how.per_epoch, how.steps, how.cosine_steps) == (175, 15_750, 15_750)
    assert cosine(0, 15_750) == 1 and 0 < cosine(15_749, 15_750) < 1e-7


def test_the_head_starts_as_pytorch_starts_it():
    torch.manual_seed(5)
    theirs = nn.Linear(37, 11)
    ours = linear_head(37, 11, CPU, torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-7, rtol=0)
    torch.testing.assert_close(ours.bias, theirs.bias, atol=1e-7, rtol=0)


# ---- Every image counts -------------------------------------------------------------------------------------------


def test_every_test_image_counts_and_the_released_count_stands_beside_it():
    data, net = Labelled(), encoder()
    records = Linear(epochs=3, batch_size=48).run(features_of(data, net), data)
    hits = right(plain_loop(data, net, augmented(data, 3, 48), 0.1 * 48 / 256, 12)[0], net, data, "test")
    found = values(records)
    assert found["test", "accuracy"] == (pytest.approx(hits.mean().item()), 100)
    assert found["test", "accuracy_drop_last"] == (pytest.approx(hits[:96].mean().item()), 96)
    assert hits[:96].mean() != hits.mean()
    assert [(r["split"], r["metric"]) for r in records] == [
        ("val", "accuracy"), ("test", "accuracy"), ("test", "accuracy_drop_last"),
    ]  # fmt: skip


def test_there_is_no_released_count_where_no_batch_is_full():
    data = Labelled()
    records = Linear(epochs=1, batch_size=101).run(features_of(data, encoder()), data)
    assert ("test", "accuracy_drop_last") not in values(records) and len(records) == 2


def test_the_labels_of_validation_and_test_images_only_judge():
    data, other, net = Labelled(), Labelled(), encoder()
    for split in ("val", "test"):
        other.splits[split].labels = (other[split].labels + 1) % 4
    kept = {split: other[split].labels.clone() for split in ("train", "val", "test")}
    ours, _, heads = run(Linear(epochs=2, batch_size=64), features_of(data, net), data)
    theirs, _, others = run(Linear(epochs=2, batch_size=64), features_of(other, net), other)
    assert all(torch.equal(p, q) for p, q in zip(itertools.chain(*heads), itertools.chain(*others), strict=True))
    assert values(ours) != values(theirs)
    assert all(torch.equal(other[split].labels, labels) for split, labels in kept.items())


# ---- STL-10 -------------------------------------------------------------------------------------------------------


def test_official_stl_takes_18_steps_an_epoch_under_a_cosine_of_17():
    parameter = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([parameter], 0.1)
    scheduler, expected = CosineAnnealingLR(sgd, 90 * 17), []
    for _ in range(90 * 18):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    how = Linear().plan(4500, as_released=True)
    lrs = [0.1 * cosine(step, how.cosine_steps) for step in range(how.steps)]
    np.testing.assert_allclose(lrs, expected, atol=1e-12)
    assert how.per_epoch == 18 and lrs[-1] == pytest.approx(8.3e-4, abs=5e-6)  # spec §1.8
    fixed = Linear().plan(4500, as_released=False)
    assert (fixed.per_epoch, fixed.steps, fixed.cosine_steps) == (17, 1530, 1530)


def test_official_stl_learns_from_clean_images_in_order_and_keeps_the_last_batch():
    data, net = Labelled(name="stl10", crops=ResizedCrops()), encoder()
    clean = data.target(data["train"].images.float() / 255)
    batches = list(zip(clean.split(48), data["train"].labels.split(48), strict=True))
    expected, heads = plain_loop(data, net, batches * 4, 0.1 * 48 / 256, 4 * 4)
    records, lrs, found = run(Linear(epochs=4, batch_size=48), features_of(data, net), data)
    same(found, heads)
    assert len(found) == 4 * 5 and lrs[-1] > lrs[16] == 0
    assert values(records)["test", "accuracy"][0] == pytest.approx(right(expected, net, data, "test").mean().item())
    assert "stl_eval=official" in records[0]["protocol"] and "clean" in records[0]["protocol"]


def test_fixed_stl_is_what_other_datasets_get():
    net, crops = encoder(), ResizedCrops()
    stl, other = Labelled(name="stl10", crops=crops), Labelled(crops=crops)
    fixed, lrs, heads = run(Linear(2, 48, stl_eval="fixed"), features_of(stl, net), stl)
    assert len(lrs) == 2 * 4 and "stl_eval=fixed" in fixed[0]["protocol"]
    for variant in ("official", "fixed"):
        plain, _, found = run(Linear(2, 48, stl_eval=variant), features_of(other, net), other)
        same(found, heads)
        assert values(plain) == values(fixed) and "stl_eval" not in plain[0]["protocol"]


def test_official_stl_with_fewer_images_than_a_batch_takes_them_all_at_once():
    data = Labelled(size=20, name="stl10")
    _, lrs, _ = run(Linear(epochs=2), features_of(data, encoder()), data)
    assert lrs == pytest.approx([0.1 * 20 / 256, 0.05 * 20 / 256])


# ---- Draws --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_head_and_another_seed_another():
    data, net = Labelled(), encoder()
    heads = [run(Linear(epochs=2, batch_size=64, seed=s), features_of(data, net), data)[2] for s in (0, 0, 1)]
    assert all(torch.equal(p, q) for p, q in zip(itertools.chain(*heads[0]), itertools.chain(*heads[1]), strict=True))
    assert not any(
        torch.equal(p, q) for p, q in zip(itertools.chain(*heads[0]), itertools.chain(*heads[2]), strict=True)
    )


def test_every_epoch_has_an_order_and_crops_of_its_own():
    data, seen = Labelled(size=40, crops=Crops(1, flip_p=0.0)), []

    def see(x, _):
        seen.append(x.clone())
        return x

    encode = Representation("pixels", see, data, CPU)
    encode("val"), encode("test")
    seen.clear()
    Linear(epochs=3, batch_size=40).run(encode, data)
    assert len(seen) == 3
    for one, other in itertools.combinations(seen, 2):
        assert not torch.equal(one, other) and not torch.equal(
            one.sum((1, 2, 3)).sort()[0], other.sum((1, 2, 3)).sort()[0]
        )


def test_every_representation_sees_the_same_crops():
    data, seen = Labelled(), {}
    for name in ("pixels", "mu"):
        encode = Representation(name, lambda x, _, name=name: seen.setdefault(name, []).append(x) or x, data, CPU)
        Linear(epochs=2, batch_size=64).run(encode, data)
    assert all(torch.equal(x, y) for x, y in zip(seen["pixels"], seen["mu"], strict=True))


def test_a_representation_that_draws_draws_anew_in_each_step():
    data, drawn = Labelled(), []

    def noisy(x, generator):
        drawn.append(torch.randn(4, generator=generator))
        return x.flatten(1)

    Linear(epochs=2, batch_size=64).run(Representation("z", noisy, data, CPU), data)
    assert len({tuple(d.tolist()) for d in drawn[-6:]}) == 6


# ---- What it leaves alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["synthetic", "stl10"])
def test_linear_leaves_encoder_and_random_numbers_as_they_were(name):
    data, net = Labelled(name=name), encoder()
    before, state = checksum(net), torch.get_rng_state()
    Linear(epochs=2, batch_size=64).run(features_of(data, net), data)
    assert checksum(net) == before and not net.training
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_told_once_for_all_steps():
    told = []

    def track(items, total, what):
        items = list(items)
        told.append((what, total, len(items)))
        return iter(items)

    data = Labelled()
    Linear(epochs=3, batch_size=48).run(features_of(data, encoder(), track=track), data)
    assert told[-1] == ("linear on h", 12, 12)


# ---- Streamed images ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two classes, told apart by brightness, in files of the right size."""
    for i in range(60):
        file = tmp_path / ("dark" if i % 2 else "light") / f"{i:02d}.png"
        file.parent.mkdir(exist_ok=True)
        g = np.random.default_rng(i)
        Image.fromarray(g.integers(40 * (1 - i % 2), 200 + 55 * (1 - i % 2), (8, 8, 3), np.uint8)).save(file)
    return tmp_path


def test_streamed_images_give_what_images_in_memory_give(folder):
    net, found = encoder(), []
    for in_memory in (True, False):
        data = ImageFolder(str(folder), image_size=8, in_memory=in_memory, workers=0).load()
        found.append(run(Linear(epochs=3, batch_size=16), features_of(data, net), data))
    assert found[0][0] == found[1][0]
    same(found[0][2], found[1][2])
    assert len(found[0][2]) == 3 * 3


# ---- Arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"momentum": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"stl_eval": "oficial"},
    ],
)
def test_linear_refuses_what_makes_no_sense(arguments):
    (name, value) = next(iter(arguments.items()))
    with pytest.raises(UserError, match=f"^probe.linear: {name} must .*, not '?{value}"):
        Linear(**arguments)


def test_a_loss_that_is_not_finite_says_that_a_smaller_learning_rate_helps():
    data = Labelled()
    with pytest.raises(UserError, match=r"probe.linear: the loss is nan .* probe.linear.lr below 1e\+38 helps"):
        Linear(epochs=10, batch_size=200, lr=1e38).run(features_of(data, encoder()), data)


def test_the_config_holds_every_argument_with_its_default():
    cfg = build.compose(["probe=[linear]", "dataset=synthetic"])
    (guest,) = build.probes(cfg)
    assert guest.features == tuple(cfg.features)
    ours, default = vars(copy.copy(guest.probe)), vars(Linear())
    assert vars(ours.pop("sgd")) == vars(default.pop("sgd")) and ours == default
    assert set(cfg.probe.linear) - {"_target_", "features"} == {
        "epochs", "batch_size", "lr", "momentum", "weight_decay", "stl_eval", "seed",
    }  # fmt: skip


def test_the_protocol_says_what_the_number_means():
    data = Labelled()
    protocol = Linear(epochs=3, batch_size=48).run(features_of(data, encoder()), data)[0]["protocol"]
    for words in (
        "frozen", "200 training images", "padded by 1 reflected", "flips p=0.5", "shuffled",
        "3 epochs, 12 steps of 48 images", "Nesterov momentum 0.9", "weight decay 0", "lr 0.01875", "cosine over 12",
        "last epoch", "seed 0",
    ):  # fmt: skip
        assert words in protocol


def test_the_protocol_names_the_crops_of_the_dataset():
    data = Labelled(crops=ResizedCrops(scale=(0.2, 0.9), flip_p=0.25))
    protocol = Linear(epochs=1).run(features_of(data, encoder()), data)[0]["protocol"]
    assert "random resized crops (0.2–0.9 of the area), flips p=0.25, shuffled" in protocol
