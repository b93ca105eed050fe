"""Fine-tuning against a plain loop of torch's own SGD and CosineAnnealingLR, and what it promises about labels, draws
and the encoder it copies."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from aavae import build
from aavae.augmentations.simclr import ResizedCrops
from aavae.datasets import Split
from aavae.datasets.folder import ImageFolder
from aavae.datasets.synthetic import Synthetic
from aavae.errors import UserError
from aavae.probes.classifier import SGD, linear_head, plan
from aavae.probes.few_label import draw_per_class
from aavae.probes.finetune import Finetune, Semi, accuracy, fine_tuned, labels_per_class
from aavae.probes.guests import checksum
from aavae.probes.representations import Representation
from aavae.runtime.device import Precision
from aavae.runtime.randomness import generator_for

CPU = torch.device("cpu")


class Encoder(nn.Sequential):
    """Convolution, BatchNorm, and dropout where asked for."""

    output_dim = 6 * 9

    def __init__(self, seed=0, dropout=0.0, momentum=0.1):
        g = torch.Generator().manual_seed(seed)
        layers = nn.utils.skip_init(nn.Conv2d, 3, 6, 3, stride=2), nn.BatchNorm2d(6, momentum=0.1)
        super().__init__(*layers, nn.ReLU(), nn.Dropout(dropout), nn.Flatten())
        for p in self.parameters():
            nn.init.normal_(p, 0, 0.3, g)
        self(torch.randn(64, 3, 8, 8, generator=g))  # running statistics that are not 0 and 1
        self[1].momentum = momentum
        self.eval()


def gratings(size=200):
    return Synthetic(size, image_size=8).load()


def encoding(data, encoder, name="h", precision=None, **kwargs):
    encode = Representation(name, lambda x, _: encoder(x), data, CPU, precision, **kwargs)
    encode.encoder = encoder
    return encode


def values(records, metric="accuracy"):
    return {(r["probe"], r["split"]): r["value"] for r in records if r["metric"] == metric}


# ---- End to end ---------------------------------------------------------------------------------------------------


def plain_loop(data, encoder, split, epochs, size, lr, keys):
    """Encoder and head after SimCLR's fine-tuning, written out: Nesterov 0.9, cosine, train mode, no weight decay."""
    n = len(split)
    per_epoch, size = max(1, n // size), min(n, size)
    head = linear_head(encoder.output_dim, data.num_classes, CPU, generator_for(*keys, "head"))
    model = nn.Sequential(copy.deepcopy(encoder), nn.Flatten(), head).train()
    sgd = torch.optim.SGD(model.parameters(), lr * size / 256, momentum=0.9, nesterov=True)
    scheduler = CosineAnnealingLR(sgd, epochs * per_epoch)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator_for(*keys, "order", epoch))
        for i in range(per_epoch):
            chosen = order[i * size : (i + 1) * size]
            x = data.crops()(split.images[chosen].float() / 255, generator_for(*keys, "crop", epoch, i))
            sgd.zero_grad()
            F.cross_entropy(model(data.normalize(x)), split.labels[chosen]).backward()
            sgd.step()
            scheduler.step()
    return model.eval()


def plain_accuracy(model, data, split):
    with torch.no_grad():
        logits = model(data.normalize(data[split].images.float() / 255))
    return (logits.argmax(1) == data[split].labels).float().mean().item()


def same(model, other, atol=1e-5):
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("size", [48, 256])  # batches that drop images, one batch of all
def test_fine_tuning_is_torchs_sgd_and_cosine_annealing_on_encoder_and_head(size):
    data, encoder = gratings(), Encoder()
    sgd, how, keys = SGD("finetune", size, 0.05, 0.9, 0.0), plan(200, 3, size), (0, "finetune")
    ours = fine_tuned(encoding(data, encoder), data, data["train"], sgd, how, keys, "")
    theirs = plain_loop(data, encoder, data["train"], 3, size, 0.05, keys)
    same(ours, theirs)  # BatchNorm's statistics among them
    assert not ours.training and not torch.equal(ours[0][0].weight, encoder[0].weight)
    assert not torch.equal(ours[0][1].running_mean, encoder[1].running_mean)


def test_finetune_reports_the_accuracy_of_the_last_epoch_in_eval_mode_on_clean_images():
    data, encoder = gratings(), Encoder()
    encode = encoding(data, encoder, batch_size=30)
    records = Finetune(epochs=6, batch_size=64, lr=0.5).run(encode, data)
    model = plain_loop(data, encoder, data["train"], 6, 64, 0.5, (0, "finetune"))
    for record, split in zip(records, ("val", "test"), strict=True):
        assert (record["split"], record["n"], record["probe"]) == (split, 100, "finetune")
        assert record["value"] == pytest.approx(plain_accuracy(model, data, split))
    assert 0.3 < records[1]["value"] < 1


def test_fine_tuning_learns_what_the_encoder_does_not_know():
    data, encoder = gratings(400), Encoder()
    nn.init.zeros_(encoder[1].weight)  # all images look the same to it
    records = Finetune(epochs=30, batch_size=64).run(encoding(data, encoder), data)
    assert values(records)["finetune", "test"] > 0.9


def test_statistics_follow_the_weights_even_where_they_were_measured_as_an_average():
    # A recalibrated encoder averages over all batches it has seen; its first steps are no concern of the last.
    data, averaging, moving = gratings(), Encoder(momentum=None), Encoder(momentum=0.1)
    sgd, how = SGD("finetune", 50, 0.05, 0.9, 0.0), plan(200, 3, 50)
    one, other = (fine_tuned(encoding(data, e), data, data["train"], sgd, how, (0,), "") for e in (averaging, moving))
    same(one, other, atol=0)
    assert averaging[1].momentum is None


def test_frozen_weights_of_the_encoder_are_trained_in_the_copy():
    data, encoder = gratings(), Encoder().requires_grad_(False)
    model = fine_tuned(encoding(data, encoder), data, data["train"], SGD("finetune", 50, 0.05, 0.9, 0.0),
                       plan(200, 1, 50), (0,), "")  # fmt: skip
    assert not torch.equal(model[0][0].weight, encoder[0].weight)
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_trains_nearly_what_float32_trains(name, dtype):
    data, encoder = gratings(), Encoder()
    sgd, how = SGD("finetune", 50, 0.05, 0.9, 0.0), plan(200, 3, 50)
    half, full = (
        fine_tuned(encoding(data, encoder, precision=p), data, data["train"], sgd, how, (0,), "")
        for p in (Precision(name, "cpu", dtype), None)
    )
    same(half, full, atol=1e-3 if name == "fp16" else 0.02)
    assert not torch.equal(half[0][0].weight, full[0][0].weight)
    assert all(p.dtype == torch.float32 for p in half.parameters())


def test_the_fine_tuned_are_judged_in_the_precision_of_the_encoder():
    data, dtypes = gratings(), []
    model = nn.Sequential(Encoder(), linear_head(54, 4, CPU, torch.Generator())).eval()
    model[1].register_forward_hook(lambda module, x, logits: dtypes.append(logits.dtype))
    encode = encoding(data, model[0], precision=Precision("bf16", "cpu", torch.bfloat16), batch_size=30)
    assert accuracy(model, encode, data["test"], "") == pytest.approx(plain_accuracy(model, data, "test"), abs=0.05)
    assert dtypes[:4] == [torch.bfloat16] * 4


# ---- A few labels -------------------------------------------------------------------------------------------------


class Taken(Split):
    """Remembers what was taken."""

    def __init__(self, split):
        super().__init__(split.images, split.labels)
        self.taken = []

    def take(self, indices):
        self.taken.append(indices)
        return super().take(indices)


@pytest.mark.parametrize(
    ("fraction", "n", "classes", "expected"),
    [(0.01, 45_000, 10, 45), (0.1, 45_000, 10, 450), (0.01, 4500, 10, 4), (0.1, 1297, 10, 13), (0.01, 100, 10, 1)],
)
def test_a_fraction_is_a_number_of_labels_of_every_class(fraction, n, classes, expected):
    assert labels_per_class(fraction, n, classes) == expected


def test_semi_learns_from_as_many_labels_of_every_class():
    data = gratings(400)
    train = data.splits["train"] = Taken(data["train"])
    records = Semi(fractions=(0.05, 0.1), epochs=(2, 1)).run(encoding(data, Encoder()), data)
    few, more = train.taken
    assert train.labels[few].bincount().tolist() == [5] * 4 and len(few.unique()) == 20
    assert train.labels[more].bincount().tolist() == [10] * 4 and len(more.unique()) == 40
    assert [r["probe"] for r in records] == ["semi_5", "semi_5", "semi_10", "semi_10"]
    assert [r["split"] for r in records] == ["val", "test"] * 2
    assert all(r["n"] == 200 and r["metric"] == "accuracy" for r in records)
    assert "5 labels a class" in records[0]["protocol"] and "2 epochs, 2 steps of 20 images" in records[0]["protocol"]


def test_semi_is_fine_tuning_on_the_images_drawn():
    data, encoder = gratings(400), Encoder()
    records = Semi(fractions=(0.4,), epochs=(8,), batch_size=50, seed=3).run(encoding(data, encoder), data)
    keys = (3, "semi_40", 0)
    chosen = draw_per_class(data["train"].labels, 40, generator_for(*keys, "labels"))
    model = plain_loop(data, encoder, data["train"].take(chosen), 8, 50, 0.05, keys)
    for split in ("val", "test"):
        assert values(records)["semi_40", split] == pytest.approx(plain_accuracy(model, data, split))


def test_several_draws_give_mean_and_sd():
    data, encoder = gratings(400), Encoder()
    encode, sgd, how = encoding(data, encoder), SGD("semi", 256, 0.05, 0.9, 0.0), plan(40, 10, 256)
    train, found = data["train"], []
    for draw in range(3):
        keys = (0, "semi_10", draw)
        chosen = draw_per_class(train.labels, 10, generator_for(*keys, "labels"))
        model = fine_tuned(encode, data, train.take(chosen), sgd, how, keys, "")
        found.append(plain_accuracy(model, data, "test"))
    records = Semi(fractions=(0.1,), epochs=(10,), draws=3).run(encode, data)
    assert len(records) == 4 and all("3 draws" in r["protocol"] for r in records)
    assert values(records)["semi_10", "test"] == pytest.approx(np.mean(found))
    assert values(records, "accuracy_sd")["semi_10", "test"] == pytest.approx(np.std(found, ddof=1)) != 0


@pytest.mark.parametrize(
    ("fraction", "name"), [(0.005, "semi_0.5"), (0.01, "semi_1"), (0.07, "semi_7"), (1, "semi_100")]
)
def test_semi_is_named_after_its_per_cent(fraction, name):
    data = gratings(40)
    assert {r["probe"] for r in Semi((fraction,), (1,)).run(encoding(data, Encoder()), data)} == {name}


def test_semi_says_which_fraction_a_scarce_class_forbids():
    data = gratings(40)
    data.splits["train"] = data["train"].take(torch.arange(30) // 3 * 4 + torch.arange(30) % 3)
    assert data["train"].labels.bincount().tolist() == [10, 10, 10]  # of four classes
    with pytest.raises(UserError, match=r"50 % of the labels are 4 a class, but a class has only 0.*semi.fractions"):
        Semi(fractions=(0.5,), epochs=(1,)).check(data)
    with pytest.raises(UserError, match="but a class has only 0"):
        Semi().run(encoding(data, Encoder()), data)
    Semi(fractions=(1,), epochs=(1,)).check(gratings(40))


# ---- What both promise --------------------------------------------------------------------------------------------

BOTH = [Finetune(epochs=2, batch_size=64), Semi(fractions=(0.1, 0.5), epochs=(2, 2), batch_size=64, draws=2)]
both = pytest.mark.parametrize("probe", BOTH, ids=("finetune", "semi"))


@both
def test_encoder_and_random_numbers_are_left_as_they_were(probe):
    data, encoder = gratings(), Encoder(dropout=0.3)
    before, state = checksum(encoder), torch.get_rng_state()
    probe.run(encoding(data, encoder), data)
    assert checksum(encoder) == before and not encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def trained(seed, dropout=0.3, noise=0):
    data = gratings()
    torch.manual_seed(noise)
    sgd, how = SGD("finetune", 64, 0.05, 0.9, 0.0), plan(200, 2, 64)
    return fine_tuned(encoding(data, Encoder(dropout=dropout)), data, data["train"], sgd, how, (seed,), "")


def test_the_same_seed_gives_the_same_weights_dropout_too_and_another_seed_others():
    same(trained(0), trained(0, noise=1), atol=0)
    one, other = trained(0), trained(1)
    assert not torch.equal(one[0][0].weight, other[0][0].weight) and not torch.equal(one[2].weight, other[2].weight)
    assert not torch.equal(one[0][0].weight, trained(0, dropout=0.0)[0][0].weight)


@both
def test_the_labels_of_validation_and_test_images_only_judge(probe):
    ours, theirs = gratings(), gratings()
    for split in ("val", "test"):
        ours.splits[split].labels = torch.zeros(100, dtype=torch.long)
        theirs.splits[split].labels = torch.ones(100, dtype=torch.long)
    found = [values(probe.run(encoding(data, Encoder()), data)) for data in (ours, theirs)]
    for key, value in found[0].items():
        assert 0 < value + found[1][key] <= 1  # shares of the same predictions
    assert (theirs["test"].labels == 1).all()


@both
def test_only_an_encoder_can_be_fine_tuned(probe):
    data = gratings()
    assert probe.missing(encoding(data, Encoder())) is None
    assert "encoder to train" in probe.missing(Representation("pixels", lambda x, _: x, data, CPU))


@both
def test_a_loss_that_is_not_finite_says_that_a_smaller_learning_rate_helps(probe):
    probe = copy.deepcopy(probe)
    probe.sgd.lr = 1e30
    data, name = gratings(), probe.sgd.probe
    with pytest.raises(UserError, match=rf"probe.{name}: the loss is (nan|inf) .* probe.{name}.lr below 1e\+30 helps"):
        probe.run(encoding(data, Encoder()), data)


@both
def test_records_say_what_the_number_means(probe):
    data = gratings()
    for r in probe.run(encoding(data, Encoder(), "h_untrained"), data):
        assert r["feature"] == "h_untrained"
        for words in ("end to end", "label", "padded by 1 reflected", "Nesterov momentum 0.9", "cosine", "last epoch"):
            assert words in r["protocol"]


@both
def test_streamed_images_give_what_images_in_memory_give(probe, tmp_path):
    for i in range(60):
        file = tmp_path / ("dark" if i % 2 else "light") / f"{i:02d}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(40 * (1 - i % 2), 200 + 55 * (1 - i % 2), (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    found = []
    for in_memory in (True, False):
        data = ImageFolder(str(tmp_path), image_size=8, in_memory=in_memory, workers=0).load()
        assert isinstance(data.crops(), ResizedCrops)
        found.append(probe.run(encoding(data, Encoder()), data))
    assert found[0] == found[1]


# ---- Arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "arguments"),
    [
        (Finetune, {"epochs": 0}),
        (Finetune, {"batch_size": 1}),
        (Finetune, {"lr": -1.0}),
        (Semi, {"batch_size": 1}),
        (Semi, {"momentum": 1.0}),
        (Semi, {"draws": 0}),
        (Semi, {"fractions": ()}),
        (Semi, {"fractions": (0.0, 0.1)}),
        (Semi, {"fractions": (0.1, 1.5)}),
        (Semi, {"epochs": (30,)}),
        (Semi, {"epochs": (30, 0)}),
    ],
)
def test_what_makes_no_sense_is_refused(probe, arguments):
    name = next(iter(arguments))
    with pytest.raises(UserError, match=f"^probe.{probe.__name__.lower()}: {name} must be "):
        probe(**arguments)


@pytest.mark.parametrize("probe", [Finetune, Semi])
def test_the_config_holds_every_argument_with_its_default(probe):
    name = probe.__name__.lower()
    cfg = build.compose([f"probe=[{name}]", "dataset=synthetic"])
    (guest,) = build.probes(cfg)
    assert guest.features == ("h", "h_untrained")
    ours, default = vars(copy.copy(guest.probe)), vars(probe())
    assert vars(ours.pop("sgd")) == vars(default.pop("sgd")) and ours == default
