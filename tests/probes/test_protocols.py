"""One encoder by several protocols: each row is what the probe or the library of that protocol would say."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from aavae.augmentations.crops import Crops
from aavae.datasets.synthetic import Synthetic
from aavae.errors import UserError
from aavae.loggers.screen import results_tables
from aavae.probes.knn import KNN
from aavae.probes.linear import Linear
from aavae.probes.linear_cached import LinearCached
from aavae.probes.protocols import Protocols
from aavae.probes.representations import Representation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encode():
    data = Synthetic(200, image_size=8)
    data.load()
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.3, g)
    net(torch.randn(64, 3, 8, 8, generator=g))  # running statistics that are not 0 and 1
    net.eval()
    return Representation("h", lambda x, _: net(x), data, CPU, encoder=net, views=Crops(2))


@pytest.fixture(scope="module")
def found(encode):
    return Protocols(epochs=4, batch_size=32, steps=30).run(encode, encode.dataset)


@pytest.fixture(scope="module")
def values(found):
    return {r["metric"]: r["value"] for r in found}


def of_test(records: list[dict]) -> dict:
    return next(r for r in records if (r["split"], r["metric"]) == ("test", "accuracy"))


def test_rows_are_what_our_own_probes_say(encode, found, values):
    own = {
        "knn_ours": KNN(),
        "knn_lightly": KNN(200, 0.1),
        "fit_ours": LinearCached(steps=30),
        "sgd_authors": Linear(epochs=4, batch_size=32),
    }
    protocols = {r["metric"]: r["protocol"] for r in found}
    for row, probe in own.items():
        said = of_test(probe.run(encode, encode.dataset))
        assert values[f"accuracy_{row}"] == pytest.approx(said["value"], abs=1e-6), row
        assert said["protocol"].split(", ")[-2] in protocols[f"accuracy_{row}"], row


def test_euclidean_neighbours_are_those_of_scikit_learn(encode, values):
    (train, labels), (test, truth) = encode("train"), encode("test")
    theirs = KNeighborsClassifier(20, weights="distance").fit(train.numpy(), labels.numpy())
    assert values["accuracy_knn_euclidean"] == pytest.approx(theirs.score(test.numpy(), truth.numpy()), abs=0.011)


def test_points_are_differences_of_the_rows_they_name(found, values):
    compared = {r["metric"].removeprefix("points_"): r for r in found if r["metric"].startswith("points_")}
    compared = {row: r for row, r in compared.items() if not row.startswith("se_")}
    assert set(compared) == {m.removeprefix("accuracy_") for m in values if m.startswith("accuracy_")} - {
        "knn_ours", "fit_ours"}  # fmt: skip
    for row, r in compared.items():
        against = r["protocol"].removeprefix("against ").partition(":")[0]
        apart = 100 * (values[f"accuracy_{row}"] - values[f"accuracy_{against}"])
        assert r["value"] == pytest.approx(apart, abs=1e-4)
        # Of two paired fractions; of independent ones it would be larger.
        assert 0 <= values[f"points_se_{row}"] <= 100 * (2 / r["n"]) ** 0.5
        assert (values[f"points_se_{row}"] == 0) <= (r["value"] == 0)


def test_the_best_epoch_on_test_is_never_below_the_last_and_is_called_an_error(found, values):
    assert values["points_sgd_best_on_test"] >= 0
    (record,) = [r for r in found if r["metric"] == "accuracy_sgd_best_on_test"]
    assert "which is an error" in record["protocol"]


def test_the_same_seed_gives_the_same_records_and_leaves_the_encoder_alone(encode, found):
    before = {k: v.clone() for k, v in encode.encoder.state_dict().items()}
    assert Protocols(epochs=4, batch_size=32, steps=30).run(encode, encode.dataset) == found
    assert all(torch.equal(v, before[k]) for k, v in encode.encoder.state_dict().items())
    assert not encode.encoder.training


def test_every_accuracy_names_its_protocol_and_none_is_of_validation_images(found):
    """The score of a sweep is chosen by validation accuracies."""
    assert all(r["protocol"] and (r["probe"], r["split"]) == ("protocols", "test") for r in found)
    accuracies = [r["protocol"] for r in found if r["metric"].startswith("accuracy")]
    assert len(set(accuracies)) == len(accuracies)


def test_without_batchnorm_or_an_encoder_there_is_nothing_to_say_of_it(encode):
    plain = Representation("mu", lambda x, _: x.flatten(1)[:, :9], encode.dataset, CPU, views=Crops(2))
    rows = {r["metric"] for r in Protocols(epochs=1, batch_size=32, steps=2).run(plain, plain.dataset)}
    assert "accuracy_sgd_views" in rows and "accuracy_sgd_solo_frozen" not in rows


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_has_all(found, values, width):
    console = Console(width=width, file=io.StringIO())
    (table,) = results_tables(found)
    console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for name, value in values.items():
        if name.startswith("accuracy_"):
            assert name.removeprefix("accuracy_") in text and f"{100 * value:.1f}" in text


def test_a_run_is_asked_by_name_and_keeps_what_is_there(train, evaluate):
    assert train("trainer=debug", "probe=[knn,online]", "trainer.max_steps=2", "hydra.run.dir=run").code == 0
    ended = evaluate("run=run", "probe=protocols", "probe.protocols.epochs=1", "probe.protocols.steps=2")
    assert ended.code == 0, ended.err
    assert "online" in ended.out and "sgd_solo_frozen" in ended.out and "against sgd_views" in ended.out
    assert {r["probe"] for r in json.loads(Path("run/results.json").read_text())} == {"knn", "online", "protocols"}


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"steps": 0}, {"weight_decays": ()}, {"lr": 0.0}, {"batch_size": 0}])
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(UserError, match=r"probe\.protocols"):
        Protocols(**wrong)


def test_a_classifier_that_diverges_is_an_error(encode):
    with pytest.raises(UserError, match="diverged"):
        Protocols(epochs=20, batch_size=256, steps=2, lr=3e38).run(encode, encode.dataset)
