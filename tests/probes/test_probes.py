"""Probes against scikit-learn, and what they promise about draws, splits and the model they look at."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aavae import build
from aavae.datasets import Dataset, Split
from aavae.errors import UserError
from aavae.probes.few_label import FewLabel, draw_per_class
from aavae.probes.knn import KNN, knn_predict
from aavae.probes.linear_cached import LinearCached, fit_softmax
from aavae.probes.representations import Representation
from aavae.runtime.randomness import generator_for

RECORD = {"probe", "feature", "split", "metric", "value", "n", "protocol"}
THREE = SimpleNamespace(num_classes=3)


class Features(dict):
    """Ready-made features and labels of each split, in place of an encoder."""

    name = "h"

    def __call__(self, split):
        return self[split]


def blobs(n=120, dims=6, spread=1.5, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, dims, generator=torch.Generator().manual_seed(7), dtype=dtype)
    labels = torch.randint(3, (n,), generator=g)
    return centres[labels] + spread * torch.randn(n, dims, generator=g, dtype=dtype), labels


def three_splits(**kwargs):
    return Features({name: blobs(seed=i, **kwargs) for i, name in enumerate(("train", "val", "test"))})


def values(records, metric="accuracy"):
    return {(r["probe"], r["split"]): r["value"] for r in records if r["metric"] == metric}


# ---- k nearest neighbours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (500, 0.07)])
def test_knn_equals_sklearn(k, temperature):
    (train, labels), (queries, _) = blobs(), blobs(n=1500, seed=1)  # more queries than one chunk
    oracle = KNeighborsClassifier(
        min(k, len(train)), metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    ).fit(train.numpy(), labels.numpy())
    predicted = knn_predict(train, labels, queries, k, temperature, 3)
    assert np.array_equal(predicted.numpy(), oracle.predict(queries.numpy()))


def test_knn_survives_a_temperature_that_would_overflow():
    (train, labels), (queries, _) = blobs(dtype=torch.float32), blobs(seed=1, dtype=torch.float32)
    cold = knn_predict(train, labels, queries, 20, 1e-6, 3)
    assert torch.equal(cold, knn_predict(train, labels, queries, 1, 1.0, 3))  # the nearest alone decides


def test_knn_gives_one_record_per_split_that_says_how_it_was_measured():
    records = KNN(k=5).run(three_splits(spread=0.1), THREE)
    assert [r["split"] for r in records] == ["val", "test"]
    assert all(r.keys() == RECORD and r["value"] == 1.0 and r["n"] == 120 for r in records)
    assert all(word in records[0]["protocol"] for word in ("k=5", "0.07", "cosine", "120"))


@pytest.mark.parametrize("arguments", [{"k": 0}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_knn_refuses_what_makes_no_sense(arguments):
    with pytest.raises(UserError, match="k must be 1 or more and temperature positive"):
        KNN(**arguments)


# ---- Few labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5])
def test_few_label_equals_sklearn_on_the_same_draws(n):
    splits = three_splits()
    (train, labels), (test, truth) = splits["train"], splits["test"]
    scores = []
    for draw in range(20):
        chosen = draw_per_class(labels, n, generator_for(3, "few_label", n, draw))
        oracle = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(train[chosen], labels[chosen])
        scores.append(oracle.score(test, truth))
    records = FewLabel((n,), draws=20, seed=3).run(splits, THREE)
    assert values(records)[f"few_label_{n}", "test"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert values(records, "accuracy_sd")[f"few_label_{n}", "test"] == pytest.approx(np.std(scores, ddof=1), abs=1e-6)
    assert all(r.keys() == RECORD and r["n"] == len(truth) and "20 draws" in r["protocol"] for r in records)


@pytest.mark.parametrize("n", [1, 4])
def test_a_draw_has_exactly_n_of_every_class_and_none_twice(n):
    labels = torch.tensor([0] * 50 + [2] * 4 + [1] * 20)
    chosen = draw_per_class(labels, n, torch.Generator().manual_seed(0))
    assert labels[chosen].bincount().tolist() == [n, n, n]
    assert len(chosen.unique()) == 3 * n


def test_draws_reach_every_image():
    labels = torch.arange(12) % 3
    drawn = torch.cat([draw_per_class(labels, 1, generator_for(0, draw)) for draw in range(100)])
    assert len(drawn.unique()) == 12


def test_every_representation_sees_the_same_draws():
    splits = three_splits()
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    rotated = Features({name: (3 * x @ rotation, y) for name, (x, y) in splits.items()})  # the same angles
    one, other = (values(FewLabel(seed=0).run(s, THREE)) for s in (splits, rotated))
    assert one == pytest.approx(other, abs=1e-6)
    assert values(FewLabel(seed=1).run(splits, THREE)) != pytest.approx(one, abs=1e-6)


def test_few_label_says_which_class_size_is_missing():
    train = torch.randn(7, 2, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    splits = Features(train=train, test=blobs(dims=2))
    with pytest.raises(UserError, match="5 labels a class were asked for, but a class has only 2"):
        FewLabel().run(splits, THREE)
    with pytest.raises(UserError, match="only 0"):  # a class that occurs in no training image
        FewLabel((1,)).run(splits, SimpleNamespace(num_classes=4))


@pytest.mark.parametrize("arguments", [{"labels_per_class": (0,)}, {"labels_per_class": ()}, {"draws": 1}])
def test_few_label_refuses_what_makes_no_sense(arguments):
    with pytest.raises(UserError, match="labels_per_class must be 1 or more, and draws 2 or more"):
        FewLabel(**arguments)


# ---- Linear -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [1e-3, 1e-2, 1.0])
def test_softmax_regression_equals_sklearn(weight_decay):
    features, labels = blobs(n=200)
    queries, _ = blobs(seed=1)
    # sklearn minimises C · Σ cross-entropy + ‖W‖²/2, and leaves the bias free too.
    oracle = LogisticRegression(C=1 / (weight_decay * len(labels)), tol=1e-10, max_iter=10_000).fit(features, labels)
    with torch.no_grad():
        probabilities = fit_softmax(features, labels, 3, weight_decay, 1000)(queries).softmax(1)
    np.testing.assert_allclose(probabilities.numpy(), oracle.predict_proba(queries), atol=5e-3)


def test_linear_standardises_with_training_statistics_as_sklearn_does():
    scale, shift = torch.logspace(-3, 3, 6, dtype=torch.float64), torch.linspace(-50, 50, 6, dtype=torch.float64)
    splits = Features({name: (x * scale + shift, y) for name, (x, y) in three_splits(spread=3.0).items()})
    (train, labels), (test, truth) = splits["train"], splits["test"]
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.01 * len(labels)), tol=1e-8, max_iter=1000))
    records = LinearCached((0.01,)).run(splits, THREE)
    assert 0.5 < values(records)["linear_cached", "test"] < 0.95  # not so easy that anything would do
    assert values(records)["linear_cached", "test"] == pytest.approx(oracle.fit(train, labels).score(test, truth))


@pytest.mark.parametrize("follows", ["feature", "majority"])
def test_weight_decay_is_chosen_on_validation_images_not_on_test_images(follows):
    # Little decay follows the feature; decay without end leaves the bias, which says the majority class.
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=g)
    feature, majority = (x[:, 0] > 0.5).long(), torch.zeros(200, dtype=torch.long)
    assert feature.float().mean() < 0.5
    val, test = (feature, majority) if follows == "feature" else (majority, feature)
    splits = Features(train=(x, feature), val=(x, val), test=(x, test))
    records = LinearCached((1e-4, 1e4)).run(splits, SimpleNamespace(num_classes=2))
    assert values(records)["linear_cached", "val"] > 0.98
    assert values(records)["linear_cached", "test"] < 0.9
    assert all(
        ("0.0001 chosen on val" if follows == "feature" else "10000 chosen on val") in r["protocol"] for r in records
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.3, 100.3])
def test_linear_is_not_led_astray_by_a_feature_that_is_constant_in_training(constant):
    splits = three_splits(spread=0.3, dtype=torch.float32)
    extra = {name: torch.full((120, 1), constant) for name in splits}
    extra["test"][::2] += 0.5  # a dead pixel that a few test images light up
    wider = Features({name: (torch.cat([x, extra[name]], 1), y) for name, (x, y) in splits.items()})
    oracle = make_pipeline(StandardScaler(), LogisticRegression()).fit(*wider["train"])
    assert oracle.score(*wider["test"]) == 1.0
    assert values(LinearCached((1e-3,)).run(wider, THREE))["linear_cached", "test"] == 1.0


@pytest.mark.parametrize("arguments", [{"weight_decays": ()}, {"weight_decays": (-0.1,)}, {"steps": 0}])
def test_linear_refuses_what_makes_no_sense(arguments):
    with pytest.raises(UserError, match="weight_decays must be 0 or more, and steps 1 or more"):
        LinearCached(**arguments)


# ---- Representations ----------------------------------------------------------------------------------------------


class Ramp(Dataset):
    """Image i of every split is i everywhere, so that features tell which images were looked at."""

    name, num_classes, image_size = "ramp", 3, 4
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)

    def read(self, device):
        images = torch.arange(30, dtype=torch.uint8).view(-1, 1, 1, 1).expand(30, 3, 4, 4)
        return {name: Split(images, torch.arange(30) % 3) for name in ("train", "val", "test")}


@pytest.fixture
def counted():
    seen = []

    def encode(x):
        seen.append(len(x))
        return x

    data = Ramp().load()
    return Representation("pixels", lambda x, _: encode(x), data, torch.device("cpu"), batch_size=8), data, seen


def test_features_are_of_normalised_clean_images_in_order(counted):
    features, labels = counted[0]("train")
    expected = (np.arange(30)[:, None] / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.4, 0.2])
    np.testing.assert_allclose(features.numpy(), expected.repeat(16, axis=1), atol=1e-6)
    assert features.dtype == torch.float32 and torch.equal(labels, torch.arange(30) % 3)


def test_all_probes_share_one_pass_over_the_images(counted):
    encode, data, seen = counted
    for probe in (KNN(), FewLabel(), LinearCached((1e-2,), steps=5)):
        probe.run(encode, data)
    assert sum(seen) == 3 * 30 and max(seen) == 8


def test_limit_keeps_a_random_few_of_one_split_because_files_lie_in_order_of_class(counted):
    encode, data, seen = counted
    everything, _ = encode("train")
    seen.clear()
    features, labels = encode.limit("train", 10)("train")
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(42))[:10]
    assert sum(seen) == 10 and torch.equal(features, everything[chosen]) and torch.equal(labels, chosen % 3)
    assert "10 training images" in KNN().run(encode, data)[0]["protocol"]
    assert len(encode("val")[0]) == 30


def test_limit_beyond_the_split_changes_nothing(counted):
    assert len(counted[0].limit("train", 100)("train")[0]) == 30


def digest(model):
    state = {name: t.numpy().tobytes() for name, t in model.state_dict().items()}
    return hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()


@pytest.mark.parametrize("clean_pass", ["every_step", "off"])
def test_probes_leave_the_model_as_it_was(clean_pass):
    cfg = build.compose(["trainer=debug", f"trainer.clean_pass={clean_pass}", "probe.few_label.draws=2"])
    trainer = build.trainer(cfg)
    model, inspector = trainer.model.train(), trainer.inspector
    before = digest(model)
    representations = inspector.representations(lambda: trainer.untrained_encoder)
    for guest in build.probes(cfg):
        for feature in guest.features:
            assert guest.probe.run(representations[feature], trainer.dataset)
    inspector.validate()
    assert digest(model) == before
    assert model.training and all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


# ---- Asked for, or a default --------------------------------------------------------------------------------------


def rare(tmp_path):
    """Two classes, of which one has two images for training."""
    from image_files import classes, save

    save(tmp_path / "photos", classes("train/", 20, ["cat"]) + classes("train/", 3, ["dog"]) + classes("test/", 2))
    return ("dataset=image_folder", "dataset.path=photos", "dataset.image_size=16", "hydra.run.dir=run")


SMALL = ("trainer=debug", "trainer.max_steps=1", "batch_size=4")


def test_a_default_probe_that_cannot_be_done_is_left_out_and_said(tmp_path, train):
    photos = rare(tmp_path)
    ended = train("experiment=none", "encoder=resnet_tiny", "decoder=resnet_tiny", "epochs=1", *SMALL[1:], *photos)
    assert ended.code == 0, ended.err
    assert "few_label is left out: probe.few_label: 5 labels a class" in ended.out
    assert "linear, cached" in ended.out


@pytest.mark.parametrize("asking", ["probe=[knn,few_label]", "probe.few_label.draws=3"])
def test_a_probe_that_was_asked_for_names_the_cure(tmp_path, train, asking):
    photos = [o for o in rare(tmp_path) if "epochs" not in o]
    tiny = ("encoder=resnet_tiny", "decoder=resnet_tiny", "epochs=1", *SMALL[1:])
    ended = train(*tiny, *photos, asking)
    assert ended.code == 2 and "probe.few_label.labels_per_class=[1] can be done" in ended.err
    assert not (tmp_path / "run").exists()
    assert train(*tiny, *photos, asking, "probe.few_label.labels_per_class=[1]").code == 0


def test_siblings_are_left_out_or_refused_by_the_same_rule():
    few = ["probe.semi.fractions=[0.9]", "probe.semi.epochs=[1]", "probe.few_label.labels_per_class=[100]"]
    cfg = build.compose(few, primary="evaluate")
    data = build.dataset(build.compose(["dataset=synthetic"]))
    data["train"].labels[:60] = 0  # of 64 images of each class
    left_out = {g.name: g.left_out for g in build.probes(cfg, data, asked=frozenset()) if g.left_out}
    assert {*left_out} == {"semi", "few_label"} and "probe.semi.fractions" in left_out["semi"]
    with pytest.raises(UserError, match=r"probe\.semi"):
        build.probes(cfg, data, build.asked(few[:1]))
    with pytest.raises(UserError, match=r"probe\.few_label"):
        build.probes(cfg, data)


def test_what_overrides_ask_for():
    assert build.asked(["seed=1", "epochs=2"]) == frozenset()
    assert build.asked(["probe.knn.k=3", "++probe.semi.draws=2"]) == {"knn", "semi"}
    assert build.asked(["probe=[knn]"]) is None and build.asked(["probe=knn,online"]) is None
