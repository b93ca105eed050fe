"""Cosines of views against scikit-learn, and the promise that every representation sees the same views."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from sklearn.metrics.pairwise import cosine_similarity

from aavae import build
from aavae.augmentations.simclr import SimCLRViews
from aavae.datasets import Dataset, Split
from aavae.errors import UserError
from aavae.probes.guests import Picture
from aavae.probes.representations import Representation
from aavae.probes.similarity import Similarity, mean_cosines, view_features
from aavae.reports.canvas import thumbnails
from aavae.reports.figures import similarity_figure
from aavae.runtime.randomness import generator_for


class Noise(Dataset):
    """Unlabelled images of noise, 130 of them: more than one batch."""

    name, num_classes, image_size = "noise", 0, 8
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)

    def __init__(self, size: int = 130):
        super().__init__()
        self.size = size

    def read(self, device):
        images = torch.randint(256, (self.size, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        return {"pretrain_val": Split(images.to(torch.uint8))}

    def target(self, images):
        return 0 * images  # a view is made of the image, not of the target


def representation(features, name="h", data=None):
    made = Representation(name, features, data or Noise(), torch.device("cpu"))
    made.views = SimCLRViews(0.5, 0.5)
    return made


def pixels(x, generator):
    return x


def values(found):
    return {r["metric"]: r["value"] for r in found if isinstance(r, dict)}


def png(found):
    return next(p for p in found if isinstance(p, Picture)).png


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ---- Cosines ------------------------------------------------------------------------------------------------------


def sklearn_cosines(features, centre):
    n, k, _ = features.shape
    cosines = cosine_similarity(features.reshape(n * k, -1) - centre)
    image = np.arange(n * k) // k
    same, itself = image[:, None] == image, np.eye(n * k, dtype=bool)
    return cosines[same & ~itself].mean(), cosines[~same].mean()


@pytest.mark.parametrize(("n", "k"), [(2, 2), (7, 3), (5, 10)])
@pytest.mark.parametrize("centred", [False, True])
def test_mean_cosines_equal_sklearn(n, k, centred):
    features = torch.randn(n, k, 6, generator=torch.Generator().manual_seed(0)) + torch.randn(n, 1, 6) + 1
    centre = features.double().mean((0, 1)) if centred else torch.zeros(6)
    expected = sklearn_cosines(features.double().numpy(), centre.numpy())
    assert mean_cosines(features, centre, 1.0) == pytest.approx(expected, abs=1e-9)


def test_features_that_do_not_differ_are_alike_but_have_no_direction_from_their_mean():
    constant = torch.full((4, 3, 5), 0.1)
    constant[0, 0] += 1e-8  # rounding
    centre = constant.double().mean((0, 1))
    assert mean_cosines(constant, 0.0, 0.2) == pytest.approx((1, 1))
    assert mean_cosines(constant, centre, 0.2) == pytest.approx((0, 0), abs=0.02)
    assert mean_cosines(torch.zeros(4, 3, 5), 0.0, 0.0) == (0, 0)


def test_the_records_are_those_of_all_views_raw_and_centred():
    found = Similarity(images=130, views=3, shown=2).run(representation(pixels), data := Noise())
    order = torch.randperm(130, generator=torch.Generator().manual_seed(42))
    features = torch.cat(list(view_features(representation(pixels), data["pretrain_val"].take(order), 3, 0))).double()
    raw, centred = (sklearn_cosines(features.numpy(), c) for c in (0, features.mean((0, 1)).numpy()))
    names = ("cos_within", "cos_between", "cos_within_centred", "cos_between_centred")
    assert values(found) == pytest.approx(dict(zip(names, (*raw, *centred), strict=True)), abs=1e-6)
    records = [r for r in found if isinstance(r, dict)]
    assert all(r["n"] == 130 and r["split"] == "pretrain_val" and r["feature"] == "h" for r in records)
    words = ("130 images × 3 views", "SimCLR of strength 0.5", "seed 0")
    assert all(word in r["protocol"] for word in words for r in records)
    assert ["subtracted" in r["protocol"] for r in records] == [False, False, True, True]


# ---- Views --------------------------------------------------------------------------------------------------------


def test_views_are_drawn_from_the_image_before_it_is_cut_to_the_target_and_normalised():
    data, encode = Noise(), representation(pixels)
    first, second = view_features(encode, data["pretrain_val"], 2, seed=3)
    assert first.shape == (100, 2, 192) and second.shape == (30, 2, 192)
    images = data["pretrain_val"].images[100:].float() / 255
    for k in range(2):
        draws = encode.views.draw(30, 8, generator_for(3, "views", 1, k))
        expected = (encode.views.apply(images, draws) - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(
            data.std
        ).view(3, 1, 1)
        torch.testing.assert_close(second[:, k], expected.flatten(1))


def test_every_representation_sees_the_same_views():
    seen = {}
    for name in ("h", "mu", "z"):

        def features(x, generator, name=name):
            seen.setdefault(name, []).append(x)
            return x + torch.randn(x.shape, generator=generator) if name == "z" else -x

        list(view_features(representation(features, name), Noise()["pretrain_val"], 2, seed=0))
    assert all(torch.equal(torch.cat(seen["h"]), torch.cat(seen[name])) for name in ("mu", "z"))


def test_views_depend_on_the_seed_alone():
    once, again, other = (
        torch.cat(list(view_features(representation(pixels), Noise()["pretrain_val"], 2, seed))) for seed in (0, 0, 1)
    )
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_a_drawn_latent_is_drawn_anew_for_each_view():
    encode = representation(lambda x, g: torch.randn(len(x), 500, generator=g), "z")
    features = torch.cat(list(view_features(encode, Noise()["pretrain_val"], 10, seed=0)))
    assert mean_cosines(features, 0.0, 1.0) == pytest.approx((0, 0), abs=0.01)


# ---- Picture ------------------------------------------------------------------------------------------------------


def test_the_colours_of_the_matrix_mean_the_same_in_every_picture():
    images, views = torch.ones(2, 3, 8, 8), torch.ones(2, 3, 3, 8, 8)
    panels = {str(cosine): torch.full((6, 6), cosine, dtype=torch.float64) for cosine in (0.2, 0.9)}
    picture = decoded(similarity_figure(panels, images, views, "title")).astype(int)
    for cosine in (0.2, 0.9):
        expected = matplotlib.colormaps["RdBu_r"]((cosine + 1) / 2, bytes=True)[:3]
        assert (abs(picture - expected).max(-1) <= 1).mean() > 0.15


def test_every_image_and_view_is_shown_and_the_images_beside_their_blocks():
    n, k, levels = 3, 4, np.arange(15) * 17 / 255
    shades = torch.tensor(levels[: n * (k + 1)], dtype=torch.float32).view(n, k + 1)
    # Green in steps, so that each can be found again.
    flat = torch.stack([torch.zeros_like(shades), shades, torch.ones_like(shades)], -1)[..., None, None]
    flat = flat.expand(-1, -1, -1, 8, 8)
    matrix = torch.zeros(n * k, n * k)
    picture = decoded(similarity_figure({"raw": matrix, "centred": matrix}, flat[:, 0], flat[:, 1:], "title"))
    for (i, view), shade in np.ndenumerate(shades.numpy()):
        found = abs(picture.astype(int) - (0, round(shade * 255), 255)).max(-1) <= 3
        patches, _ = ndimage.label(found)
        count = (np.bincount(patches.flat)[1:] > 50).sum()
        assert count == (4 if view == 0 else 1), (i, view)  # above both matrices, beside the first, and in the grid


def test_few_images_are_all_shown_in_shuffled_order():
    data = Noise(3)
    found = Similarity(images=100, views=2).run(representation(pixels, data=data), data)
    assert {r["n"] for r in found if isinstance(r, dict)} == {3}
    assert Image.open(io.BytesIO(png(found))).format == "PNG"


def test_a_picture_of_photographs_stays_a_small_file():
    g, photo = np.random.default_rng(0), load_sample_image("china.jpg")
    corners = [(g.integers(427 - 224), g.integers(640 - 224)) for _ in range(110)]
    cut = np.stack([photo[y : y + 224, x : x + 224] for y, x in corners]).transpose(0, 3, 1, 2)
    shown = thumbnails(torch.from_numpy(cut).float() / 255)
    unit = torch.nn.functional.normalize(torch.randn(100, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    matrices = {"raw": unit @ unit.T, "centred": unit @ unit.T}
    picture = similarity_figure(matrices, shown[:10], shown[10:].unflatten(0, (10, 10)), "title")
    assert len(picture) < 500_000


# ---- As a guest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 1}, "images and views must be 2 or more, not 1 and 10"),
        ({"views": 1}, "images and views must be 2 or more, not 100 and 1"),
        ({"shown": 1}, "shown must lie between 2 and 20 of 100 images, not 1"),
        ({"shown": 21}, "shown must lie between 2 and 20"),
        ({"images": 5, "shown": 6}, "shown must lie between 2 and 5 of 5 images, not 6"),
    ],
)
def test_similarity_refuses_what_makes_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        Similarity(**arguments)


def test_similarity_is_left_out_where_there_is_one_image():
    assert "pretrain_val has 1" in Similarity().missing(representation(pixels, data=Noise(1)))
    assert Similarity().missing(representation(pixels, data=Noise(2))) is None


def test_similarity_as_configured_works_on_a_model():
    cfg = build.compose(["trainer=debug", "experiment=digits", "probe=[similarity]", "probe.similarity.images=12"])
    trainer = build.trainer(cfg)
    (guest,) = build.probes(cfg)
    representations = trainer.inspector.representations(lambda: trainer.untrained_encoder)
    assert guest.features == ("h", "mu", "z", "pixels", "h_untrained") and not guest.probe.needs_labels
    for feature in ("z", "h_untrained"):
        found = guest.probe.run(representations[feature], trainer.dataset)
        assert found[-1].name == f"similarity_{feature}" and len(values(found)) == 4
        assert all(-1 <= v <= 1 for v in values(found).values())
