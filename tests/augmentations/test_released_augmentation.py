"""SimCLR's batched pipeline against the per-image one of the released code: torchvision's transforms on PIL images in
the released order (spec §1.5).

What the transforms draw is recorded where they hand it to torchvision's functional operations. Two promises: the
parameters have the same distribution, and the same parameters give the same pixels up to PIL's truncation to whole
levels. Everything is seeded. LEVEL is that of each test, shared by its k comparisons (Bonferroni): on other seeds an
innocent test would fail once in a thousand times.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision import transforms
from torchvision.transforms import functional

from aavae.augmentations.crops import CROP_TRIES, crop_boxes
from aavae.augmentations.simclr import SimCLRViews
from aavae.datasets.downloads import CIFAR10, STL10

pytestmark = pytest.mark.slow

LEVEL = 1e-3
OUR_DRAWS = 100_000
CATEGORIES = 32  # more than a parameter is sorted into
BATCH = 250  # images whose pixels are compared at a time
SCALE, RATIO, KERNEL = (0.08, 1.0), (3 / 4, 4 / 3), 9
COLOURS = ("brightness", "contrast", "saturation", "hue")
COINS = ("flip", "jitter", "gray", "blur")
BOX = ("area", "aspect", "top", "left")
OPERATIONS = ("resized_crop", "hflip", *(f"adjust_{c}" for c in COLOURS), "rgb_to_grayscale", "gaussian_blur")


class Setting(NamedTuple):
    """What the released code asks for on a data set, the images it draws for, and those whose pixels are compared."""

    dataset: type
    size: int
    strength: float
    blurs: bool
    draws: int  # so many that 20,000 are jittered and, on STL-10, 20,000 blurred
    views: int

    def ours(self, **wrong) -> SimCLRViews:
        """Our pipeline at the strengths that the data set recommends, but for deliberate mistakes."""
        return SimCLRViews(**{"strength": self.dataset.strength, "blur_p": self.dataset.blur_p, **wrong})


CIFAR = Setting(CIFAR10, 32, 0.5, False, draws=25_500, views=12_000)
STL = Setting(STL10, 96, 1.0, True, draws=40_500, views=500)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- The released pipeline, recorded ------------------------------------------------------------------------------


def released(setting: Setting) -> transforms.Compose:
    """The released transforms up to ToTensor."""
    s = setting.strength
    steps = [
        transforms.RandomResizedCrop(setting.size),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.RandomApply([transforms.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
    ]
    if setting.blurs:
        steps.append(transforms.RandomApply([transforms.GaussianBlur(KERNEL)], p=0.5))
    return transforms.Compose(steps)


class Recorder:
    """Notes what torchvision's transforms hand to functional operations: for each image, {operation: arguments}."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.images, self.pixels = [], True
        for name in OPERATIONS:
            monkeypatch.setattr(functional, name, self._noting(name, getattr(functional, name)))

    def _noting(self, name, operation):
        def noting(image, *arguments, **named):
            self.images[-1][name] = arguments
            return operation(image, *arguments, **named) if self.pixels else image

        return noting

    def view(self, transform, image: Image.Image, pixels: bool) -> Image.Image:
        """A view; without `pixels` the parameters are drawn, but the image stays as it is."""
        self.images.append({})
        self.pixels = pixels
        return transform(image)


def drawn(image: dict) -> dict:
    """A recorded image's parameters, in our names; NaN for a number whose step was not taken."""
    order = [COLOURS.index(name.removeprefix("adjust_")) for name in image if name.startswith("adjust_")]
    return {
        "box": image["resized_crop"][:4],  # top, left, height, width
        "flip": "hflip" in image,
        "jitter": len(order) == 4,
        "order": order or [0, 1, 2, 3],
        "factors": [image.get(f"adjust_{colour}", [np.nan])[0] for colour in COLOURS],
        "gray": "rgb_to_grayscale" in image,
        "blur": "gaussian_blur" in image,
        "sigma": image["gaussian_blur"][1][0] if "gaussian_blur" in image else np.nan,
    }


def photographs(size: int) -> np.ndarray:
    """Squares `(n, size, size, 3)` cut from scikit-learn's two photographs."""
    return np.concatenate(
        [
            photo[top : top + size, left : left + size][None]
            for photo in load_sample_images().images
            for top in range(0, photo.shape[0] - size + 1, size)
            for left in range(0, photo.shape[1] - size + 1, size)
        ]
    )


def as_floats(images: Tensor) -> Tensor:
    """Images `(n, H, W, 3)` of bytes as floats `(n, 3, H, W)` in [0, 1], which is what ToTensor does."""
    return images.permute(0, 3, 1, 2).float() / 255


class Release(NamedTuple):
    """The released pipeline's draws, and the first `setting.views` images with the views it made of them, as bytes."""

    setting: Setting
    draws: dict[str, Tensor]
    parameters: dict[str, np.ndarray]
    images: Tensor
    views: Tensor


def record(setting: Setting) -> Release:
    patches, transform, views = photographs(setting.size), released(setting), []
    pictures = [Image.fromarray(patch) for patch in patches]
    with pytest.MonkeyPatch.context() as monkeypatch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recorder = Recorder(monkeypatch)
        for i in range(setting.draws):
            view = recorder.view(transform, pictures[i % len(pictures)], pixels=i < setting.views)
            if i < setting.views:
                views.append(np.asarray(view))
    rows = [drawn(image) for image in recorder.images]
    draws = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    images = patches[np.arange(setting.views) % len(patches)]
    theirs = taken(parameters(draws, setting.size))
    return Release(setting, draws, theirs, torch.from_numpy(images), torch.from_numpy(np.stack(views)))


@pytest.fixture(scope="module")
def cifar10() -> Release:
    return record(CIFAR)


@pytest.fixture(scope="module")
def stl10() -> Release:
    return record(STL)


@pytest.fixture(scope="module", params=["cifar10", "stl10"])
def release(request) -> Release:
    return request.getfixturevalue(request.param)


# ---- Draws --------------------------------------------------------------------------------------------------------


def boxes(draws: dict[str, Tensor], setting: Setting, scale=SCALE, ratio=RATIO) -> Tensor:
    """Our crop boxes `(n, 4)`: top, left, height, width."""
    return torch.stack(crop_boxes(draws["crop"], setting.size, setting.size, scale, ratio), 1)


def ours(setting: Setting, alter=None, **wrong) -> dict[str, np.ndarray]:
    """The parameters that our pipeline draws; `wrong` arguments and `alter`ed draws are deliberate mistakes."""
    pipeline = setting.ours(**wrong)
    draws = pipeline.draw(OUR_DRAWS, setting.size, seeded(1))
    if alter:
        alter(draws)
    return parameters({**draws, "box": boxes(draws, setting, pipeline.scale, pipeline.ratio)}, setting.size)


def parameters(draws: dict[str, Tensor], size: int) -> dict[str, np.ndarray]:
    """Every parameter of each image as one number; `top` and `left` as a fraction of the places that are free."""
    top, left, height, width = draws["box"].double().unbind(1)
    named = {
        "area": height * width / size**2,
        "aspect": width / height,
        "top": (top + 0.5) / (size - height + 1),
        "left": (left + 0.5) / (size - width + 1),
        **dict(zip(COLOURS, draws["factors"].double().unbind(1), strict=True)),
        "order": draws["order"].double() @ torch.tensor([64.0, 16, 4, 1], dtype=torch.float64),
        "sigma": draws["sigma"].double(),
        **{coin: draws[coin].double() for coin in COINS},
    }
    return {name: values.numpy() for name, values in named.items()}


def taken(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters with NaN where their step is not taken, which is all that the released pipeline shows."""
    coin = {**dict.fromkeys((*COLOURS, "order"), "jitter"), "sigma": "blur"}
    return {n: np.where(named[coin[n]] > 0, v, np.nan) if n in coin else v for n, v in named.items()}


def independence(table: np.ndarray) -> float:
    """The p-value of χ² that rows and columns of a table of counts are independent."""
    return stats.chi2_contingency(table[table.any(1)][:, table.any(0)], correction=False).pvalue


def category(values: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Each number's quarter of the pooled ones, or its rank where they take few values; NaN is a category too."""
    levels = np.unique(pooled[~np.isnan(pooled)])
    if len(levels) > 24:  # four operations have 24 orders
        levels = np.unique(np.nanquantile(pooled, [0.25, 0.5, 0.75]))
    return np.where(np.isnan(values), len(levels) + 1, np.searchsorted(levels, values, side="right"))


def pair(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """How often two categories meet, as a table."""
    return np.bincount(CATEGORIES * one + two, minlength=CATEGORIES**2).reshape(CATEGORIES, CATEGORIES)


def marginals(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    """Two-sample p-values of each parameter: Kolmogorov-Smirnov for numbers, χ² for coins and the order."""
    p_values = {}
    for name in a:
        x, y = (values[name][~np.isnan(values[name])] for values in (a, b))
        if name in (*COINS, "order"):
            pooled = np.concatenate([x, y])
            counts = [np.bincount(category(values, pooled), minlength=CATEGORIES) for values in (x, y)]
            p_values[name] = independence(np.stack(counts))
        elif len(x) and len(y):
            p_values[name] = stats.ks_2samp(x, y).pvalue
    return p_values


def joints(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Two-sample p-values of each pair of parameters: χ² of their joint categories."""
    pooled = {name: np.concatenate([a[name], b[name]]) for name in a}
    samples = [{name: category(sample[name], pooled[name]) for name in sample} for sample in (a, b)]
    return {
        (one, two): independence(np.stack([pair(sample[one], sample[two]).ravel() for sample in samples]))
        for one, two in itertools.combinations(a, 2)
    }


def independences(named: dict[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """The p-values that parameters, and those of neighbours in a batch, are independent: χ² of joint categories.

    The numbers of one crop box are not independent in torchvision either: large boxes have no room for all aspects.
    """
    categories = {name: category(values, values) for name, values in named.items()}
    pairs = [names for names in itertools.combinations(named, 2) if not set(names) <= set(BOX)]
    return {
        **{(one, two): independence(pair(categories[one], categories[two])) for one, two in pairs},
        **{(name, "next"): independence(pair(values[:-1], values[1:])) for name, values in categories.items()},
    }


def surprises(p_values: dict) -> set:
    """The comparisons that fail at LEVEL divided among all of them."""
    return {name for name, p in p_values.items() if p * len(p_values) < LEVEL}


def test_at_least_20_000_of_each_parameter_are_compared(release):
    counts = {name: np.isfinite(values).sum() for name, values in release.parameters.items()}
    assert (counts.pop("sigma") >= 20_000) == release.setting.blurs
    assert min(counts.values()) >= 20_000


def test_each_parameter_is_distributed_as_in_the_released_pipeline(release):
    p_values = marginals(taken(ours(release.setting)), release.parameters)
    assert len(p_values) == 13 + release.setting.blurs
    assert not surprises(p_values)


def test_each_pair_of_parameters_is_distributed_as_in_the_released_pipeline(release):
    assert not surprises(joints(taken(ours(release.setting)), release.parameters))


def test_our_parameters_are_independent_of_each_other_and_of_the_next_images():
    assert not surprises(independences(ours(STL)))


# ---- The tests above see small mistakes ---------------------------------------------------------------------------


def test_a_wrong_number_shows_in_its_parameter(release):
    setting = release.setting
    wrong = {
        "strength": 1.1 * setting.strength,
        "scale": (0.1, 1.0),
        "ratio": (0.8, 1.25),
        "flip_p": 0.52,
        "jitter_p": 0.78,
        "grayscale_p": 0.22,
        "blur_p": setting.dataset.blur_p + 0.02,
        "blur_sigma": (0.1, 1.9),
    }
    p_values = marginals(taken(ours(setting, **wrong)), release.parameters)
    assert surprises(p_values) >= p_values.keys() - {"order", "top", "left"}


def test_a_mistaken_position_or_order_shows_in_its_parameter(release):
    def mistake(draws):
        draws["crop"][:, -2:] **= 1.1  # crops lean to the corner
        draws["order"][::25] = torch.arange(4)  # one order comes twice as often

    assert surprises(marginals(taken(ours(release.setting, mistake)), release.parameters)) == {"top", "left", "order"}


def test_a_dependence_between_draws_shows_in_its_pair(stl10):
    def mistake(draws):
        draws["factors"][::20, 1] = draws["factors"][::20, 0]  # contrast is brightness now and then
        draws["gray"] &= draws["blur"]  # only blurred images are gray
        draws["crop"][:, -1] = draws["crop"][:, -1] ** torch.where(draws["crop"][:, 0] < 0.3, 1.3, 1.0)  # small: left
        draws["sigma"][1:4000:2] = draws["sigma"][:4000:2]  # two neighbours are blurred alike

    named = ours(STL, mistake)
    assert surprises(joints(taken(named), stl10.parameters)) >= {
        ("brightness", "contrast"),
        ("gray", "blur"),
        ("area", "left"),
    }
    assert surprises(independences(named)) == {("brightness", "contrast"), ("gray", "blur"), ("sigma", "next")}


# ---- Pixels -------------------------------------------------------------------------------------------------------


class Differences(NamedTuple):
    """Ours minus theirs for each view, in levels of 1/255."""

    mean: Tensor  # (n, 3, 4, 4): the mean of each channel in each of 4×4 fields
    spread: Tensor  # (n, 3): the standard deviation of each channel
    largest: Tensor  # (n,): the largest difference of a pixel
    absolute: Tensor  # (n,): the mean of the absolute difference


def differences(release: Release, draws: dict[str, Tensor]) -> Differences:
    """What our pipeline makes of the released pipeline's images with `draws`, against what that made of them."""
    pipeline, batches = release.setting.ours(), []
    for i in range(0, len(draws["flip"]), BATCH):
        batch = slice(i, i + BATCH)
        images, theirs = as_floats(release.images[batch]), as_floats(release.views[batch])
        view = pipeline.apply(images, {name: values[batch] for name, values in draws.items()})
        change = 255 * (view - theirs)
        batches.append(
            (
                avg_pool2d(change, release.setting.size // 4),
                255 * (view.std((2, 3)) - theirs.std((2, 3))),
                change.abs().amax((1, 2, 3)),
                change.abs().mean((1, 2, 3)),
            )
        )
    return Differences(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def standard_error(values: Tensor) -> Tensor:
    return values.std(0) / len(values) ** 0.5


def crop_numbers(box: Tensor, size: int) -> Tensor:
    """Numbers from which our `crop_boxes` makes the given boxes `(n, 4)`."""
    top, left, height, width = box.double().unbind(1)
    area = (height * width / size**2 - SCALE[0]) / (SCALE[1] - SCALE[0])
    low, high = np.log(RATIO)
    aspect = ((width / height).log() - low) / (high - low)
    place = (top + 0.5) / (size - height + 1), (left + 0.5) / (size - width + 1)
    return torch.stack([*[area] * CROP_TRIES, *[aspect] * CROP_TRIES, *place], 1).float()


@pytest.fixture(scope="module")
def same_draws(release) -> tuple[dict[str, Tensor], Differences]:
    """The released pipeline's own draws, in our form, and what differs when we apply them."""
    draws = {name: values[: min(release.setting.views, 2000)] for name, values in release.draws.items()}
    draws["crop"] = crop_numbers(draws["box"], release.setting.size)
    assert torch.equal(boxes(draws, release.setting).long(), draws["box"])
    return draws, differences(release, draws)


def test_the_same_draws_give_the_same_means_within_two_levels(same_draws):
    _, change = same_draws
    assert standard_error(change.mean).max() < 0.1
    assert change.mean.mean(0).abs().max() < 2


def test_the_same_draws_give_the_same_contrast_and_almost_the_same_view(same_draws):
    _, change = same_draws
    assert change.spread.mean(0).abs().max() < 0.2
    assert change.absolute.mean() < 1.5 and change.absolute.max() < 8


def test_only_colour_jitter_is_biased_where_pil_truncates(same_draws):
    draws, change = same_draws
    plain = ~draws["jitter"]
    assert change.mean[plain].mean((0, 2, 3)).abs().max() < 0.05  # PIL rounds crops, grays and blurs
    assert change.largest[plain].max() < 3
    assert 0.5 < change.mean[~plain].mean() < 2


def test_our_own_draws_give_the_same_means_within_two_levels(cifar10):
    draws = CIFAR.ours().draw(CIFAR.views, CIFAR.size, seeded(2))
    change = differences(cifar10, draws)
    mean = change.mean.mean((2, 3))  # (n, 3)
    assert standard_error(mean).max() < 0.5 and standard_error(change.spread).max() < 0.2
    assert mean.mean(0).abs().max() < 2
    assert change.spread.mean(0).abs().max() < 2
