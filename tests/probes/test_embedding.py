"""PCA and t-SNE against scikit-learn, and the picture made of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

from aavae import build
from aavae.datasets import Dataset, Split
from aavae.errors import UserError
from aavae.probes.embedding import Embedding, neighbour_map, principal_components, standardised
from aavae.probes.representations import Representation
from aavae.reports.figures import COLOURS, embedding_figure


class Iris(Dataset):
    """Images of four grey columns, as high as an iris has sepals and petals; labelled or not."""

    name, num_classes, image_size = "iris", 3, 4
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, size: int = 150, labelled: bool = True, classes=None):
        super().__init__()
        self.size, self.classes = size, classes
        self.num_classes = 3 if labelled else 0

    def read(self, device):
        measured, labels = load_iris(return_X_y=True)
        order = np.random.default_rng(0).permutation(150)[: self.size]
        images = torch.from_numpy((25 * measured[order]).astype(np.uint8)).view(-1, 1, 1, 4).expand(-1, 3, 4, 4)
        return {"pretrain_val": Split(images, torch.from_numpy(labels[order]) if self.num_classes else None)}


def representation(data, features=lambda x: x[:, 0, 0]):
    return Representation("h", lambda x, g: features(x), data, torch.device("cpu"))


def iris():
    return torch.from_numpy(load_iris().data).float()


def measured(found, what="value"):
    return {r["metric"]: r[what] for r in found if isinstance(r, dict)}


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


# ---- Maps ---------------------------------------------------------------------------------------------------------


def test_principal_components_equal_sklearn_whatever_the_scale():
    expected = PCA(2).fit(iris().double())
    for scale in (1.0, 1e-25, 1e15):
        components, share = principal_components(standardised(iris() * scale))
        assert share == pytest.approx(expected.explained_variance_ratio_.sum(), abs=1e-6)
        cosines = np.corrcoef(components.T, expected.transform(iris().double()).T)
        np.testing.assert_allclose(abs(np.diag(cosines[:2, 2:])), 1, atol=1e-6)


def test_the_share_of_the_variance_is_exact_where_it_is_small():
    features = standardised(torch.randn(600, 600, generator=torch.Generator().manual_seed(0)))
    eigenvalues = np.linalg.svd(features, compute_uv=False) ** 2
    assert principal_components(features)[1] == pytest.approx(eigenvalues[:2].sum() / eigenvalues.sum(), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e15])
def test_the_neighbour_map_is_sklearns_from_principal_components(scale):
    features = standardised(iris()[::3] * scale)
    points, trust = neighbour_map(features, principal_components(features)[0], 10.0)
    theirs = TSNE(perplexity=10, init="pca", random_state=0).fit_transform(iris()[::3].numpy())
    assert np.ptp(points, axis=0).max() == pytest.approx(np.ptp(theirs, axis=0).max(), rel=0.5)
    assert 0.95 < trust == pytest.approx(trustworthiness(features, theirs, n_neighbors=5), abs=0.01)


def test_records_say_how_they_were_measured():
    found = Embedding(images=50).run(representation(data := Iris()), data)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(42))[:50]
    shown = data["pretrain_val"].images[order, 0, 0].double()
    assert measured(found)["pca_explained_variance"] == pytest.approx(
        PCA(2).fit(shown).explained_variance_ratio_.sum(), abs=1e-6
    )
    assert measured(found, "n") == {"pca_explained_variance": 50, "trustworthiness": 50}
    protocol = measured(found, "protocol")
    assert all(
        w in protocol["trustworthiness"] for w in ("perplexity 16.3", "from PCA", "5 neighbours")
    )  # (50 - 1) / 3
    assert "4 features" in protocol["pca_explained_variance"]


def test_there_is_one_map_of_a_representation():
    features = standardised(iris()[::3])
    once, again = (neighbour_map(features, principal_components(features)[0], 10.0)[0] for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize("size", [4, 5, 11, 12])
def test_few_images_are_mapped_with_fewer_neighbours(size):
    found = Embedding().run(representation(data := Iris(size)), data)
    assert 0 <= measured(found)["trustworthiness"] <= 1
    assert f" {min(5, (size - 1) // 2)} neighbour" in measured(found, "protocol")["trustworthiness"]


@pytest.mark.parametrize(
    "features", [lambda x: 0 * x[:, 0, 0], lambda x: 0 * x[:, 0, 0] + 0.1, lambda x: x[:, 0, 0, :1]]
)
def test_degenerate_features_give_finite_numbers_and_a_picture(features):
    data = Iris(30)
    *records, picture = Embedding().run(representation(data, features), data)
    constant = features(torch.rand(9, 3, 4, 4)).std() < 1e-6
    assert measured(records)["pca_explained_variance"] == pytest.approx(0.0 if constant else 1.0)
    assert 0 <= measured(records)["trustworthiness"] <= 1
    assert decoded(picture.png).shape[2] == 3


def test_rounding_is_not_mapped():
    noise = 1e-8 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert not standardised(noise + 0.1).any() and standardised(noise).any()


# ---- Picture ------------------------------------------------------------------------------------------------------


def patches(picture, colour, least):
    """Sizes of connected patches of a colour, with at least so many pixels."""
    found, _ = ndimage.label(abs(picture - np.array(colour)).max(-1) <= 8)
    sizes = np.bincount(found.flat)[1:]
    return sizes[sizes >= least]


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_no_thumbnail_lies_over_another():
    points = np.random.default_rng(0).normal(size=(800, 2))
    magenta = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(800, 3, 8, 8)
    picture = decoded(embedding_figure({"a": points}, magenta, torch.zeros(800, dtype=torch.long), ["x"], "title"))
    sizes = patches(picture, (255, 0, 255), 100)
    assert 24 <= len(sizes) <= 40
    assert sizes.min() > 0.85 * sizes.max()  # none is covered, none is cut off at the edge


def test_every_class_has_its_colour_and_its_name():
    points, black = np.random.default_rng(0).normal(size=(200, 2)), torch.zeros(200, 3, 8, 8)
    labels = torch.arange(200) % 10
    with_names = decoded(embedding_figure({"a": points}, black, labels, list("abcdefghij"), "title"))
    for colour in COLOURS:
        assert len(patches(with_names, rgb(colour), 8)) >= 10  # points, not only frames of thumbnails
    without = decoded(embedding_figure({"a": points}, black, None, [], "title"))
    assert len(patches(without, rgb(COLOURS[0]), 8)) and not len(patches(without, rgb(COLOURS[4]), 8))
    longer = decoded(embedding_figure({"a": points}, black, labels, ["a long name"] * 10, "title"))
    assert without.shape[1] < with_names.shape[1] < longer.shape[1]  # room for the legend
    many = decoded(embedding_figure({"a": points}, black, torch.arange(200), list(map(str, range(200))), "title"))
    assert many.shape == without.shape  # a hundred names would be no legend


@pytest.mark.parametrize("labelled", [False, True])
def test_embedding_needs_no_labels(labelled):
    data = Iris(30, labelled, classes=["setosa", "versicolor", "virginica"] if labelled else None)
    *_, picture = Embedding(perplexity=5).run(representation(data), data)
    assert picture.name == "embedding_h" and not Embedding.needs_labels
    assert bool(len(patches(decoded(picture.png), rgb(COLOURS[2]), 8))) == labelled


# ---- As a guest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"images": 3}, {"perplexity": 0.5}, {"perplexity": float("nan")}])
def test_embedding_refuses_what_makes_no_sense(arguments):
    with pytest.raises(UserError, match="images must be 4 or more and perplexity 1 or more"):
        Embedding(**arguments)


def test_embedding_is_left_out_where_there_are_hardly_any_images():
    assert "pretrain_val has 3" in Embedding().missing(representation(Iris(3)))
    assert Embedding().missing(representation(Iris(4))) is None


def test_embedding_as_configured_works_on_a_model():
    cfg = build.compose(["trainer=debug", "experiment=digits", "probe=[embedding]", "probe.embedding.images=60"])
    trainer = build.trainer(cfg)
    (guest,) = build.probes(cfg)
    assert guest.features == ("h",)
    representations = trainer.inspector.representations(lambda: trainer.untrained_encoder)
    *records, picture = guest.probe.run(representations["h"], trainer.dataset)
    assert len(records) == 2 and len(picture.png) < 500_000
