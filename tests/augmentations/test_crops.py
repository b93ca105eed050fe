"""The light augmentation of classifiers against torchvision's operations on the same parameters, and its draws against
the distributions of torchvision's transforms. Draws are seeded; LEVEL is that of each statistical test."""

import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms.v2 import functional as tvf

from aavae import augmentations as ops
from aavae.augmentations.crops import Crops
from aavae.augmentations.simclr import ResizedCrops
from aavae.datasets.digits import Digits
from aavae.datasets.downloads import CIFAR10, STL10
from aavae.datasets.synthetic import Synthetic
from aavae.errors import UserError

LEVEL = 1e-3
PIPELINES = [Crops(), Crops(0), Crops(15, 0.0), ResizedCrops()]

of_every_pipeline = pytest.mark.parametrize("pipeline", PIPELINES, ids=("crops", "flips", "wide", "resized"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, height: int = 16, width: int | None = None) -> torch.Tensor:
    return torch.rand(n, 3, height, width or height, generator=seeded(1))


# ---- padded_crop --------------------------------------------------------------------------------------------------


def torchvisions_crop(image, top, left, padding):
    padded = tvf.pad(image, [padding] * 4, padding_mode="reflect")
    return tvf.crop(padded, int(top), int(left), *image.shape[-2:])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 9), (12, 20), (20, 12)])
@pytest.mark.parametrize("padding", [0, 1, 4, 8])
def test_padded_crop_is_torchvisions_pad_and_crop_at_every_corner(height, width, padding):
    corners = torch.cartesian_prod(*[torch.arange(2 * padding + 1)] * 2)
    images = random_images(len(corners), height, width)
    expected = [torchvisions_crop(x, *corner, padding) for x, corner in zip(images, corners, strict=True)]
    top, left = corners.unbind(1)
    assert torch.equal(ops.padded_crop(images, top, left, padding), torch.stack(expected))


def test_the_middle_crop_is_the_image_itself():
    images, middle = random_images(5), torch.full((5,), 4)
    assert torch.equal(ops.padded_crop(images, middle, middle, 4), images)


# ---- Crops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (16, 2), (96, 12), (8, 0)])
def test_crops_are_torchvisions_operations_composed_per_image(size, padding):
    crops, images = Crops(padding), random_images(64, size)
    draws = crops.draw(64, size, seeded())
    expected = []
    for image, (top, left), flip in zip(images, draws["corner"], draws["flip"], strict=True):
        view = torchvisions_crop(image, top, left, padding)
        expected.append(tvf.horizontal_flip(view) if flip else view)
    assert 0 < draws["flip"].sum() < 64
    assert torch.equal(crops.apply(images, draws), torch.stack(expected))


def test_corners_are_as_evenly_distributed_as_those_of_torchvisions_random_crop():
    corner = Crops(4).draw(8100, 32, seeded(2))["corner"]
    counts = (9 * corner[:, 0] + corner[:, 1]).bincount(minlength=81)
    assert len(counts) == 81 and stats.chisquare(counts).pvalue > LEVEL
    torch.manual_seed(0)
    padded = torch.empty(3, 40, 40)
    theirs = torch.tensor([transforms.RandomCrop.get_params(padded, (32, 32))[:2] for _ in range(8100)])
    theirs = (9 * theirs[:, 0] + theirs[:, 1]).bincount(minlength=81)
    assert stats.chi2_contingency(torch.stack([counts, theirs])).pvalue > LEVEL


def test_half_of_the_images_are_flipped_whatever_their_corner():
    draws = Crops(1).draw(20_000, 32, seeded(3))
    assert stats.binomtest(int(draws["flip"].sum()), 20_000, 0.5).pvalue > LEVEL
    joint = 9 * draws["flip"] + 3 * draws["corner"][:, 0] + draws["corner"][:, 1]
    assert stats.chi2_contingency(joint.bincount(minlength=18).view(2, 9)).pvalue > LEVEL


@pytest.mark.parametrize("kind", [Crops, ResizedCrops])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_no_image_or_every_image_is_flipped(kind, p):
    assert (kind(flip_p=p).draw(500, 32, seeded())["flip"] == bool(p)).all()


@pytest.mark.parametrize(("arguments", "named"), [({"padding": -1}, "padding"), ({"flip_p": 1.5}, "flip_p")])
def test_crops_refuse_what_makes_no_sense(arguments, named):
    with pytest.raises(UserError, match=f"augmentation.{named} must"):
        Crops(**arguments)


# ---- ResizedCrops -------------------------------------------------------------------------------------------------


def test_resized_crops_are_torchvisions_crop_and_flip_and_leave_colours_alone():
    crops, images = ResizedCrops(), random_images(64, 32)
    draws = crops.draw(64, 32, seeded())
    boxes = torch.stack(ops.crop_boxes(draws["crop"], 32, 32, (0.08, 1.0), (3 / 4, 4 / 3)), 1).int().tolist()
    expected = []
    for image, box, flip in zip(images, boxes, draws["flip"], strict=True):
        view = tvf.resized_crop(image, *box, [32, 32], antialias=True)
        expected.append(tvf.horizontal_flip(view) if flip else view)
    torch.testing.assert_close(crops.apply(images, draws), torch.stack(expected), atol=1e-5, rtol=0)


def test_resized_crops_have_the_areas_they_are_asked_for():
    crops = ResizedCrops(scale=(0.25, 0.25), ratio=(1.0, 1.0), flip_p=0.0)
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    view = crops(ramp, seeded())
    # Half the width of a ramp spans half of its values, less the half pixel at each end.
    assert torch.allclose(view.amax((1, 2, 3)) - view.amin((1, 2, 3)), torch.tensor(15 / 31), atol=1e-5)


# ---- Draws and views ----------------------------------------------------------------------------------------------


@of_every_pipeline
def test_the_same_seed_gives_the_same_views_and_another_seed_others(pipeline):
    images = random_images(16)
    assert torch.equal(pipeline(images, seeded(1)), pipeline(images, seeded(1)))
    assert not torch.equal(pipeline(images, seeded(1)), pipeline(images, seeded(2)))


@of_every_pipeline
def test_all_randomness_is_the_generators(pipeline):
    before = torch.get_rng_state()
    pipeline(random_images(16), seeded())
    assert torch.equal(torch.get_rng_state(), before)


@of_every_pipeline
def test_a_view_depends_on_its_own_draw_only(pipeline):
    images, draws = random_images(32), pipeline.draw(32, 16, seeded())
    some = torch.tensor([31, 3, 17, 8, 4])
    views = pipeline.apply(images[some], {name: values[some] for name, values in draws.items()})
    torch.testing.assert_close(views, pipeline.apply(images, draws)[some], atol=1e-6, rtol=0)


@of_every_pipeline
def test_images_and_draws_are_left_as_they_were(pipeline):
    images, draws = random_images(16), pipeline.draw(16, 16, seeded())
    before, kept = images.clone(), {name: values.clone() for name, values in draws.items()}
    views = pipeline.apply(images, draws)
    views += 1
    assert torch.equal(images, before)
    assert all(torch.equal(draws[name], kept[name]) for name in draws)


@of_every_pipeline
def test_views_have_the_size_of_the_images_and_stay_within_zero_and_one(pipeline):
    extremes = random_images(64).round()
    views = pipeline(extremes, seeded())
    assert views.shape == extremes.shape and pipeline.augments
    assert views.min() >= -1e-6 and views.max() <= 1 + 1e-6


# ---- What datasets recommend --------------------------------------------------------------------------------------


def test_each_dataset_is_cropped_as_its_released_evaluation_was_and_digits_are_never_mirrored(tmp_path):
    cifar = CIFAR10(tmp_path).crops()
    assert isinstance(cifar, Crops) and (cifar.padding, cifar.flip_p) == (4, 0.5)  # spec §1.8
    digits = Digits().crops()
    assert isinstance(digits, Crops) and (digits.padding, digits.flip_p) == (2, 0.0)
    stl = STL10(tmp_path).crops()
    assert isinstance(stl, ResizedCrops) and (stl.scale, stl.flip_p) == ((0.08, 1.0), 0.5)


@pytest.mark.parametrize("image_size", [1, 4, 8, 20])
def test_small_images_are_padded_by_less_than_their_size(image_size):
    data = Synthetic(size=8, image_size=image_size)
    images = random_images(8, image_size)
    assert data.crops()(images, seeded()).shape == images.shape
