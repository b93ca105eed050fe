"""Every operation against torchvision's on the same parameters; the pipelines' draws against torchvision's and scipy's
distributions. Draws are seeded, so a statistical test that passes once passes always; their level is LEVEL."""

import inspect
import itertools

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms
from torchvision.transforms.v2 import functional as tvf

from aavae import augmentations as ops
from aavae.augmentations import whole_batch as simclr_module
from aavae.augmentations.crops import Crops
from aavae.augmentations.digits import DigitViews
from aavae.augmentations.pipeline import NoAugmentation
from aavae.augmentations.simclr import ResizedCrops, SimCLRViews
from aavae.errors import UserError

LEVEL = 1e-3  # of each statistical test
SIZES = [(32, 1e-5), (96, 1e-4), (224, 1e-4)]  # image size, largest error allowed
BLUR_KERNEL = {32: 3, 96: 9, 224: 23}  # spec §1.5: a tenth of the image, made odd
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
COLOURS = ("brightness", "contrast", "saturation", "hue")

at_every_size = pytest.mark.parametrize(("size", "tolerance"), SIZES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, height: int, width: int | None = None) -> torch.Tensor:
    return torch.rand(n, 3, height, width or height, generator=seeded(1))


def per_image(operation, images, *parameters) -> torch.Tensor:
    """torchvision's operation on one image after the other, each with its own parameters as Python numbers."""
    return torch.stack([operation(x, *(p.item() for p in row)) for x, *row in zip(images, *parameters, strict=True)])


def assert_near(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# ---- Operations ---------------------------------------------------------------------------------------------------


def tv_crop(size):
    return lambda x, *box: tvf.resized_crop(x, *box, [size, size], antialias=True)


@at_every_size
def test_resized_crop_equals_torchvision(size, tolerance):
    s = size
    boxes = [  # top, left, height, width
        (0, 0, s, s),  # the whole image
        (0, 0, 1, 1),
        (s - 1, s - 1, 1, 1),
        (s // 3, 0, 1, s),
        (0, s // 3, s, 1),
        (3, 5, s // 2, s // 3),
        (s - 7, 2, 7, s - 3),
        (1, s - 2, s - 1, 2),
    ]
    images, box = random_images(len(boxes), size), torch.tensor(boxes).unbind(1)
    assert_near(ops.resized_crop(images, *box, size), per_image(tv_crop(size), images, *box), tolerance)


def test_resized_crop_equals_torchvision_on_drawn_boxes():
    images = random_images(200, 32)
    box = ops.crop_boxes(ops.crop_draws(200, seeded()), 32, 32, SCALE, RATIO)
    assert_near(ops.resized_crop(images, *box, 32), per_image(tv_crop(32), images, *(b.int() for b in box)), 1e-5)


@pytest.mark.parametrize("size", [33, 96, 224])
def test_resized_crop_is_as_exact_as_torchvisions_in_float64(size):
    # Positions are fractions of a pixel beside hundreds of pixels: carelessly rounded, they are off by a hundred times.
    images = random_images(16, size)
    box = ops.crop_boxes(ops.crop_draws(16, seeded()), size, size, SCALE, RATIO)
    expected = per_image(tv_crop(size), images.double(), *(b.int() for b in box))
    assert_near(ops.resized_crop(images, *box, size), expected.float(), 5e-7)


@pytest.mark.parametrize(("height", "width"), [(20, 50), (50, 20)])
def test_resized_crop_takes_images_that_are_not_square(height, width):
    images = random_images(3, height, width)
    box = torch.tensor([(0, 0, height, width), (2, 3, 11, 17), (height - 1, width - 20, 1, 20)]).unbind(1)
    assert_near(ops.resized_crop(images, *box, 64), per_image(tv_crop(64), images, *box), 1e-5)


def test_a_crop_sees_nothing_outside_its_box():
    images = torch.ones(1, 3, 32, 32)
    images[:, :, 10:14, 20:23] = 0.5
    box = (torch.tensor([v]) for v in (10, 20, 4, 3))
    assert_near(ops.resized_crop(images, *box, 32), torch.full_like(images, 0.5), 1e-6)


def test_horizontal_flip_equals_torchvision():
    images, flip = random_images(6, 32), torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    expected = per_image(lambda x, f: tvf.horizontal_flip(x) if f else x, images, flip)
    assert torch.equal(ops.horizontal_flip(images, flip), expected)


@at_every_size
@pytest.mark.parametrize("colour", COLOURS[:3])
def test_blending_operations_equal_torchvision(colour, size, tolerance):
    factor = torch.tensor([0.0, 0.2, 0.6, 1.0, 1.4, 1.8, 3.0])
    images, name = random_images(len(factor), size), f"adjust_{colour}"
    assert_near(getattr(ops, name)(images, factor), per_image(getattr(tvf, name), images, factor), tolerance)


@at_every_size
def test_hue_equals_torchvision(size, tolerance):
    factor = torch.tensor([-0.5, -0.2, -1e-3, 0.0, 0.1, 1 / 3, 0.5])
    images = random_images(len(factor), size)
    assert_near(ops.adjust_hue(images, factor), per_image(tvf.adjust_hue, images, factor), tolerance)


@pytest.mark.parametrize("factor", [-0.5, -1 / 3, -1 / 6, 0.0, 0.1, 1 / 6, 1 / 3, 0.5])
def test_hue_equals_torchvision_where_channels_tie(factor):
    # Black, white, grays, pure and secondary colours, pairs of equal channels, and one ulp from gray.
    levels = torch.tensor([0.0, 0.25, 0.5, 0.50000006, 1.0])
    images = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 25, 5)
    assert_near(ops.adjust_hue(images, torch.tensor([factor])), tvf.adjust_hue(images, factor), 1e-5)


def test_hue_half_a_turn_takes_red_to_cyan_and_leaves_gray():
    images = torch.tensor([[1.0, 0, 0], [0.3, 0.3, 0.3]]).view(2, 3, 1, 1)
    expected = torch.tensor([[0.0, 1, 1], [0.3, 0.3, 0.3]]).view(2, 3, 1, 1)
    assert_near(ops.adjust_hue(images, torch.tensor([0.5, 0.5])), expected, 1e-6)


def test_color_jitter_equals_torchvision_in_every_order_and_leaves_the_images_it_is_not_for():
    order = torch.tensor(list(itertools.permutations(range(4)))).repeat(2, 1)[torch.randperm(48, generator=seeded())]
    factors = torch.rand(48, 4, generator=seeded(2)) * torch.tensor([1.8, 1.8, 1.8, 1]) - torch.tensor([0, 0, 0, 0.5])
    images, chosen = random_images(48, 32), torch.rand(48, generator=seeded(3)) < 0.8
    before, expected = images.clone(), images.clone()
    for i in chosen.nonzero()[:, 0].tolist():
        for step in order[i].tolist():
            expected[i] = getattr(tvf, f"adjust_{COLOURS[step]}")(expected[i], factors[i, step].item())
    actual = ops.color_jitter(images, factors, order, chosen)
    assert_near(actual, expected, 1e-5)
    assert torch.equal(actual[~chosen], images[~chosen]) and torch.equal(images, before)


@at_every_size
def test_grayscale_equals_torchvision(size, tolerance):
    images = random_images(3, size)
    assert_near(ops.grayscale(images), tvf.rgb_to_grayscale(images, num_output_channels=3), tolerance)


@at_every_size
@pytest.mark.parametrize("kernel_size", [1, 3, 9, 23])
def test_gaussian_blur_equals_torchvision(kernel_size, size, tolerance):
    sigma = torch.tensor([0.1, 0.5, 1.3, 2.0, 9.0])
    images = random_images(len(sigma), size)
    expected = per_image(lambda x, s: tvf.gaussian_blur(x, [kernel_size] * 2, [s, s]), images, sigma)
    assert_near(ops.gaussian_blur(images, sigma, kernel_size), expected, tolerance)


def test_gaussian_blur_equals_torchvision_with_the_widest_kernel_of_an_image_that_is_not_square():
    images = random_images(1, 12, 40)
    expected = tvf.gaussian_blur(images, [23, 23], [4.0, 4.0])
    assert_near(ops.gaussian_blur(images, torch.tensor([4.0]), 23), expected, 1e-5)


@pytest.mark.parametrize("kernel_size", [0, 2, 4, 17, 23])
def test_a_kernel_that_does_not_fit_is_refused(kernel_size):
    with pytest.raises(UserError, match=f"kernel_size must be odd.*{kernel_size}"):
        ops.gaussian_blur(random_images(1, 8), torch.ones(1), kernel_size)


# Sign convention: angle turns clockwise and translate moves right and down, both as torchvision's affine has them;
# shear leans to the other side.
@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize(
    ("angle", "translate", "scale", "shear"),
    [
        (0, (0, 0), 1, 0),
        (17, (0, 0), 1, 0),
        (-90, (0, 0), 1, 0),
        (0, (0.2, -0.1), 1, 0),
        (0, (0, 0), 0.8, 0),
        (0, (0, 0), 1.2, 0),
        (0, (0, 0), 1, 10),
        (-20, (-0.13, 0.2), 0.85, -10),
    ],
)
def test_affine_equals_torchvision(angle, translate, scale, shear, size):
    images = random_images(2, size)
    one = torch.ones(2)
    turned, lean = (angle * one).deg2rad(), (shear * one).deg2rad()
    actual = ops.affine(images, turned, torch.tensor([translate] * 2).float(), scale * one, lean)
    pixels = [size * t for t in translate]
    bilinear = transforms.InterpolationMode.BILINEAR
    assert_near(actual, tvf.affine(images, angle, pixels, scale, [-shear, 0.0], interpolation=bilinear), 1e-4)


@pytest.mark.parametrize("angle", [-20.0, 35.0])
def test_affine_turns_as_torchvisions_rotate_the_other_way_round(angle):
    # torchvision's rotate counts counter-clockwise, its affine clockwise.
    images, zero = random_images(1, 32), torch.zeros(1)
    actual = ops.affine(images, torch.tensor([angle]).deg2rad(), torch.zeros(1, 2), torch.ones(1), zero)
    assert_near(actual, tvf.rotate(images, -angle, transforms.InterpolationMode.BILINEAR), 1e-4)


def test_affine_uses_each_images_own_parameters():
    images, angle = random_images(4, 32), torch.tensor([0.1, -0.3, 0.0, 0.2])
    translate, scale, shear = torch.rand(4, 2, generator=seeded()) / 5, 1 + angle, angle.flip(0)
    one_by_one = [ops.affine(*(p[i : i + 1] for p in (images, angle, translate, scale, shear))) for i in range(4)]
    assert_near(ops.affine(images, angle, translate, scale, shear), torch.cat(one_by_one), 1e-6)


# ---- Whatever the caller's precision and layout -------------------------------------------------------------------

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def crop(images):
    return ops.resized_crop(images, *torch.tensor([(0, 0, 32, 32), (3, 4, 20, 9)]).to(images.device).unbind(1), 32)


def blur(images):
    return ops.gaussian_blur(images, torch.tensor([0.7, 1.5], device=images.device), 9)


def turn(images):
    angle, shift, scale = torch.tensor([0.3, -0.2]), torch.tensor([[0.1, 0.2], [-0.1, 0.03]]), torch.tensor([0.8, 1.1])
    return ops.affine(images, *(p.to(images.device) for p in (angle, shift, scale, angle)))


def colours(images):
    factor = torch.tensor([0.3, 0.4], device=images.device)
    for name in COLOURS:
        images = getattr(ops, f"adjust_{name}")(images, factor)
    return images


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("operation", [crop, blur, turn, colours])
def test_autocast_changes_no_pixel(operation):
    images = random_images(2, 32).to(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside = operation(images)
    assert inside.dtype == torch.float32
    assert_near(inside, operation(images), 1e-6)


@pytest.mark.parametrize("operation", [crop, blur, turn, colours])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_changes_no_pixel(operation, precision, matmul_precision):
    images = random_images(2, 32).to(DEVICE)
    matmul_precision("highest")
    expected = operation(images)
    matmul_precision(precision)
    assert_near(operation(images), expected, 1e-6)
    assert torch.get_float32_matmul_precision() == precision  # the caller's setting is given back


class Products(TorchDispatchMode):
    """Records the matrix products that run."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.seen.add(operation)
        return operation(*args, **(kwargs or {}))


# A CPU may have no reduced precision to show in its pixels; a GPU would round what a product is made of.
@pytest.mark.parametrize("operation", [crop, blur, turn, colours, lambda images: SimCLRViews(1.0, 0.5)(images)])
def test_no_matrix_product_is_there_for_tf32_to_round(operation):
    with Products() as products:
        operation(random_images(2, 32))
    assert not products.seen


@pytest.mark.parametrize("operation", [crop, blur, turn, colours])
def test_channels_last_changes_no_pixel_and_no_operation_changes_its_images(operation):
    images = random_images(2, 32)
    before = images.clone()
    assert_near(operation(images.contiguous(memory_format=torch.channels_last)), operation(images), 1e-6)
    assert torch.equal(images, before)


# ---- Crop boxes ---------------------------------------------------------------------------------------------------


def torchvision_boxes(n, height, width, scale, ratio):
    image = torch.empty(1, height, width)
    draw = transforms.RandomResizedCrop.get_params
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        boxes = [draw(image, list(scale), list(ratio)) for _ in range(n)]
    return torch.tensor(boxes).double().unbind(1)


# (20, 300) mixes accepted boxes with the fallback, (64, 48) is an ordinary photograph.
@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 96), (64, 48), (20, 300)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width):
    n = 5000
    actual = [b.double() for b in ops.crop_boxes(ops.crop_draws(n, seeded(2)), height, width, SCALE, RATIO)]
    expected = torchvision_boxes(n, height, width, SCALE, RATIO)
    measures = {
        "area": lambda top, left, h, w: h * w,
        "aspect": lambda top, left, h, w: w / h,
        "top": lambda top, left, h, w: top,
        "left": lambda top, left, h, w: left,
        "relative position": lambda top, left, h, w: (top + left) / (height - h + width - w).clamp(min=1),
    }
    for name, measure in measures.items():
        assert stats.ks_2samp(measure(*actual), measure(*expected)).pvalue > LEVEL, name


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 300), (300, 20), (1, 1), (2, 5)])
def test_crop_boxes_lie_inside_the_image(height, width):
    top, left, h, w = ops.crop_boxes(ops.crop_draws(2000, seeded()), height, width, SCALE, RATIO)
    assert min(top.min(), left.min()) >= 0 and min(h.min(), w.min()) >= 1
    assert (top + h).max() <= height and (left + w).max() <= width
    assert all(torch.equal(b, b.round()) for b in (top, left, h, w))


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(20, 300, (0, 136, 20, 27)), (300, 21, (136, 0, 28, 21)), (203, 220, (0, 0, 203, 220))],
)
def test_the_fallback_box_is_torchvisions(height, width, box):
    whole = (1.0, 1.0)  # of the area, which no drawn aspect fits
    assert torch.stack(torchvision_boxes(5, height, width, whole, RATIO), 1).tolist() == [list(box)] * 5
    lowest_aspect = torch.zeros(5, ops.crop_draws(1, seeded()).shape[1])
    assert torch.stack(ops.crop_boxes(lowest_aspect, height, width, whole, RATIO), 1).tolist() == [list(box)] * 5


def test_the_crops_corners_are_reached_evenly():
    # Crops of half the height leave 17 places of equal chance, first and last included.
    top, _, h, _ = ops.crop_boxes(ops.crop_draws(8500, seeded(4)), 32, 32, (0.25, 0.25), (1.0, 1.0))
    assert (h == 16).all()
    assert stats.chisquare(top.long().bincount(minlength=17)).pvalue > LEVEL


# ---- SimCLR -------------------------------------------------------------------------------------------------------


def torchvision_view(image, draw, cropped=False):
    """One view by torchvision's operations, in the order SimCLR's transforms stand in."""
    size = image.shape[-1]
    if not cropped:
        box = [int(b) for b in ops.crop_boxes(draw["crop"][None], size, size, SCALE, RATIO)]
        image = tv_crop(size)(image, *box)
    if draw["flip"]:
        image = tvf.horizontal_flip(image)
    if draw["jitter"]:
        for i in draw["order"].tolist():
            image = getattr(tvf, f"adjust_{COLOURS[i]}")(image, draw["factors"][i].item())
    if draw["gray"]:
        image = tvf.rgb_to_grayscale(image, num_output_channels=3)
    if draw["blur"]:
        image = tvf.gaussian_blur(image, [BLUR_KERNEL[size]] * 2, [draw["sigma"].item()] * 2)
    return image


def rows(draws, index):
    return {name: values[index] for name, values in draws.items()}


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize(("size", "n", "blur_p"), [(32, 128, 0.0), (32, 128, 0.5), (96, 32, 0.5), (224, 4, 0.5)])
def test_simclr_equals_torchvisions_operations_composed_per_image(size, n, blur_p, cropped):
    simclr, images = SimCLRViews(1.0, blur_p), random_images(n, size)
    draws = simclr.draw(n, size, seeded(5))
    expected = torch.stack([torchvision_view(images[i], rows(draws, i), cropped) for i in range(n)])
    assert_near(simclr.apply(images, draws, cropped), expected, 1e-4)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("coins", [*itertools.product([0.0, 1.0], repeat=4)])
def test_simclr_equals_torchvision_whoever_is_chosen(coins, n):
    flip, jitter, gray, blur = coins
    simclr = SimCLRViews(1.0, blur, flip_p=flip, jitter_p=jitter, grayscale_p=gray)
    images, draws = random_images(n, 32), simclr.draw(n, 32, seeded())
    expected = torch.stack([torchvision_view(images[i], rows(draws, i)) for i in range(n)])
    assert_near(simclr.apply(images, draws), expected, 1e-4)


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("images_in_a_part", [1, 7, 40])
def test_working_in_parts_changes_no_pixel(images_in_a_part, cropped, monkeypatch):
    height, width = (36, 32) if cropped else (32, 32)
    simclr, images = SimCLRViews(1.0, 0.5), random_images(40, 36, 32)
    draws = simclr.draw(40, 32, seeded())
    whole = simclr.apply(images, draws, cropped)
    monkeypatch.setattr(simclr_module, "PART", images_in_a_part * height * width)  # of each thread
    assert_near(simclr.apply(images, draws, cropped), whole, 1e-6)


def test_the_four_colour_operations_come_in_every_order_alike():
    order = SimCLRViews(0.5, 0.0).draw(12_000, 32, seeded())["order"]
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(12_000, 4))
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LEVEL


@pytest.mark.parametrize(("coin", "p"), [("flip", 0.5), ("jitter", 0.8), ("gray", 0.2), ("blur", 0.5)])
def test_each_coin_falls_as_often_as_simclrs(coin, p):
    draws = SimCLRViews(1.0, 0.5).draw(20_000, 32, seeded(6))
    assert stats.binomtest(int(draws[coin].sum()), 20_000, p).pvalue > LEVEL


def test_the_coins_are_independent():
    draws = SimCLRViews(1.0, 0.5).draw(20_000, 32, seeded(7))
    joint = sum(draws[coin].long() * 2**i for i, coin in enumerate(("flip", "jitter", "gray", "blur")))
    table = joint.bincount(minlength=16).view(2, 2, 2, 2).numpy()
    assert stats.chi2_contingency(table).pvalue > LEVEL


@pytest.mark.parametrize("coin", ["flip", "jitter", "gray", "blur"])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_probabilities_of_zero_and_one_are_certain(coin, p):
    coins = {"flip": "flip_p", "jitter": "jitter_p", "gray": "grayscale_p", "blur": "blur_p"}
    draws = SimCLRViews(**{"strength": 1.0, "blur_p": 0.5, coins[coin]: p}).draw(500, 32, seeded())
    assert (draws[coin] == bool(p)).all()


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.25])
def test_jitter_factors_are_uniform_over_torchvisions_ranges(strength):
    reach = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    ranges = transforms.ColorJitter(*reach)
    factors = SimCLRViews(strength, 0.0).draw(5000, 32, seeded(8))["factors"]
    for colour, drawn in zip(COLOURS, factors.unbind(1), strict=True):
        low, high = getattr(ranges, colour)
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > LEVEL, colour
    assert abs(torch.corrcoef(factors.T) - torch.eye(4)).max() < 0.06  # four standard errors


def test_blur_sigma_is_uniform():
    sigma = SimCLRViews(1.0, 0.5).draw(5000, 96, seeded(9))["sigma"]
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > LEVEL


def test_every_image_of_a_batch_gets_its_own_view():
    images = random_images(1, 32).expand(256, -1, -1, -1)
    # Always jittered: boxes are whole pixels, so that two plain crops may coincide.
    assert len(SimCLRViews(0.5, 0.0, jitter_p=1.0)(images, seeded()).unique(dim=0)) == 256


@pytest.mark.parametrize("name", ["crop", "factors", "sigma"])
def test_every_image_of_a_batch_has_its_own_draw(name):
    assert len(SimCLRViews(0.5, 0.0).draw(256, 32, seeded())[name].unique(dim=0)) == 256


def test_zero_strength_leaves_colours_alone():
    images = random_images(32, 32)
    simclr = SimCLRViews(0.0, 0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0, grayscale_p=0.0)
    assert_near(simclr(images, seeded()), images, 1e-5)


def test_views_stay_within_zero_and_one():
    extremes = random_images(64, 32).round()
    views = SimCLRViews(1.0, 0.5)(extremes, seeded())
    assert views.min() >= -1e-6 and views.max() <= 1 + 1e-6  # a weighted mean may round past its largest member


@pytest.mark.parametrize("cropped", [False, True])
def test_cropped_skips_only_the_crop(cropped):
    simclr, images = SimCLRViews(1.0, 0.5), random_images(32, 32)
    draws = simclr.draw(32, 32, seeded())
    by_worker = ops.resized_crop(images, *ops.crop_boxes(draws["crop"], 32, 32, SCALE, RATIO), 32)
    assert torch.equal(simclr.apply(by_worker, draws, cropped=True), simclr.apply(images, draws))


# ---- Draws and views, of every pipeline ---------------------------------------------------------------------------

PIPELINES = [SimCLRViews(1.0, 0.5), DigitViews()]
of_every_pipeline = pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: type(p).__name__)


@of_every_pipeline
def test_the_same_seed_gives_the_same_views_and_another_seed_others(pipeline):
    images = random_images(16, 32)
    assert torch.equal(pipeline(images, seeded(1)), pipeline(images, seeded(1)))
    assert not torch.equal(pipeline(images, seeded(1)), pipeline(images, seeded(2)))


@of_every_pipeline
def test_all_randomness_is_the_generators(pipeline):
    before = torch.get_rng_state()
    pipeline(random_images(16, 32), seeded())
    assert torch.equal(torch.get_rng_state(), before)


@of_every_pipeline
def test_a_view_depends_on_its_own_draw_only(pipeline):
    images, draws = random_images(32, 32), pipeline.draw(32, 32, seeded())
    some = torch.tensor([31, 3, 17, 8, 4])
    views = pipeline.apply(images, draws)
    assert_near(pipeline.apply(images[some], rows(draws, some)), views[some], 1e-6)
    for i in range(4):
        one = slice(i, i + 1)
        assert_near(pipeline.apply(images[one], rows(draws, one)), views[one], 1e-6)


@of_every_pipeline
def test_calling_a_pipeline_is_to_draw_and_apply(pipeline):
    images = random_images(8, 32)
    assert torch.equal(pipeline(images, seeded()), pipeline.apply(images, pipeline.draw(8, 32, seeded())))


@of_every_pipeline
@pytest.mark.parametrize("cropped", [False, True])
def test_the_images_themselves_are_left_as_they_were(pipeline, cropped):
    images = random_images(16, 32)
    before, draws = images.clone(), pipeline.draw(16, 32, seeded())
    kept = {name: values.clone() for name, values in draws.items()}
    views = pipeline.apply(images, draws, cropped)
    views += 1  # nor do the views share their memory
    assert torch.equal(images, before)
    assert all(torch.equal(draws[name], kept[name]) for name in draws)


@pytest.mark.parametrize("pipeline", [*PIPELINES, ResizedCrops(), Crops()], ids=str)
def test_applying_a_pipeline_never_waits_for_the_device(pipeline):
    # The meta device computes nothing, so that whoever wanted to read a number from it would fail.
    views = pipeline.apply(torch.empty(16, 3, 32, 32, device="meta"), pipeline.draw(16, 32, seeded()))
    assert views.is_meta and views.shape == (16, 3, 32, 32) and views.dtype == torch.float32


@of_every_pipeline
def test_draws_have_one_row_an_image(pipeline):
    assert {len(values) for values in pipeline.draw(7, 32, seeded()).values()} == {7}


@pytest.mark.parametrize(("pipeline", "crops"), [(SimCLRViews(0.5, 0.0), True), (DigitViews(), False)])
def test_a_pipeline_says_that_it_augments_and_whether_it_crops(pipeline, crops):
    assert pipeline.augments and pipeline.crops is crops


def test_no_augmentation_returns_the_images():
    images, none = random_images(4, 32), NoAugmentation()
    assert torch.equal(none(images, seeded()), images)
    assert not none.augments and not none.crops


# ---- Digits -------------------------------------------------------------------------------------------------------


def digits_images(n):
    return random_images(n, 16).mean(1, keepdim=True).expand(-1, 3, -1, -1)


def test_digits_equals_torchvisions_affine_and_contrast_per_image():
    images, digits = digits_images(64), DigitViews()
    draws = digits.draw(64, 16, seeded())

    def view(image, angle, shift, scale, shear, contrast, noise):
        degrees, lean = angle.rad2deg().item(), shear.rad2deg().item()
        bilinear = transforms.InterpolationMode.BILINEAR
        image = tvf.affine(image, degrees, (16 * shift).tolist(), scale.item(), [-lean, 0.0], interpolation=bilinear)
        return (tvf.adjust_contrast(image, contrast.item()) + noise).clamp(0, 1)

    names = ("angle", "shift", "scale", "shear", "contrast", "noise")
    expected = [view(*row) for row in zip(images, *(draws[name] for name in names), strict=True)]
    assert_near(digits.apply(images, draws), torch.stack(expected), 1e-4)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("angle", -20 * torch.pi / 180, 20 * torch.pi / 180),
        ("shift", -0.2, 0.2),
        ("scale", 0.8, 1.2),
        ("shear", -10 * torch.pi / 180, 10 * torch.pi / 180),
        ("contrast", 0.7, 1.3),
    ],
)
def test_digits_draws_are_uniform_around_unchanged(name, low, high):
    drawn = DigitViews().draw(5000, 1, seeded(3))[name].flatten()
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > LEVEL


def test_digits_noise_has_its_own_strength_per_image_up_to_the_largest():
    noise = DigitViews(noise=0.1).draw(500, 64, seeded(4))["noise"]
    assert stats.kstest(noise.flatten(1).std(1), stats.uniform(0, 0.1).cdf).pvalue > LEVEL


def test_digits_stay_gray_and_within_zero_and_one():
    views = DigitViews(noise=0.5)(digits_images(200).round(), seeded())
    assert views.min() == 0 and views.max() == 1
    assert torch.equal(views, views[:, :1].expand_as(views))


def test_digits_are_never_mirrored():
    # A "b": a long stroke on the left, a short one on the right at the foot. Turned, it still is no "d".
    letter = torch.zeros(1, 3, 16, 16)
    letter[:, :, 3:13, 5:7] = 1
    letter[:, :, 9:13, 9:11] = 1
    views = DigitViews(rotation=10, shift=0.1, shear=5, noise=0.0)(letter.expand(500, -1, -1, -1), seeded())[:, 0]
    mass = views / views.sum((1, 2), keepdim=True)
    x = torch.arange(16.0)
    upper = mass.cumsum(1).sum(2, keepdim=True) < 0.4  # the rows that hold the upper part of the ink
    top = (mass * upper * x).sum((1, 2)) / (mass * upper).sum((1, 2))
    assert (top < (mass * x).sum((1, 2))).all()


def test_digits_without_reach_leaves_the_images():
    images = digits_images(4)
    assert_near(DigitViews(0, 0, 0, 0, 0, 0)(images, seeded()), images, 1e-5)


# ---- Bad input ----------------------------------------------------------------------------------------------------

INFINITE, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("strength", -0.1),
        ("strength", 1.3),
        ("strength", NAN),
        ("blur_p", 1.1),
        ("blur_p", -0.1),
        ("flip_p", 2),
        ("jitter_p", -1),
        ("grayscale_p", NAN),
        ("scale", (0.0, 1.0)),
        ("scale", (0.9, 0.1)),
        ("scale", (0.1, 1.1)),
        ("scale", (0.5,)),
        ("ratio", (0.0, 1.0)),
        ("ratio", (2.0, 1.0)),
        ("ratio", (1.0, INFINITE)),
        ("blur_sigma", (0.0, 1.0)),
        ("blur_sigma", (2.0, 1.0)),
        ("blur_sigma", (0.1, INFINITE)),
    ],
)
def test_simclr_refuses_values_out_of_range_by_name(name, value):
    with pytest.raises(UserError, match=f"augmentation.{name} must"):
        SimCLRViews(**{"strength": 0.5, "blur_p": 0.0, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", 1.0),
        ("scale", -0.1),
        ("contrast", 1.0),
        ("contrast", NAN),
        ("rotation", -1),
        ("shift", -0.1),
        ("shear", -1),
        ("noise", -0.1),
        ("noise", NAN),
        ("rotation", INFINITE),
    ],
)
def test_digits_refuses_values_out_of_range_by_name(name, value):
    with pytest.raises(UserError, match=rf"augmentation\.(\w+, )*.*{name}.* must"):
        DigitViews(**{name: value})


def test_the_defaults_are_the_papers():
    defaults = {name: p.default for name, p in inspect.signature(SimCLRViews).parameters.items()}
    assert (defaults["scale"], defaults["ratio"], defaults["blur_sigma"]) == (SCALE, RATIO, (0.1, 2.0))


def test_parameters_of_other_dtypes_and_oblong_sizes_are_taken():
    images = random_images(3, 32)
    factor = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    for operation in (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation):
        assert torch.equal(operation(images, factor), operation(images, factor.float()))
    assert ops.adjust_hue(images, factor / 10).dtype == ops.gaussian_blur(images, factor, 3).dtype == torch.float32
    assert torch.equal(ops.horizontal_flip(images, torch.tensor([1, 0, 1])), images.flip(-1)[[0, 1, 2]].where(
        torch.tensor([True, False, True])[:, None, None, None], images))  # fmt: skip
    box = torch.tensor([[2, 3, 9, 8]] * 3).unbind(1)
    expected = tvf.resized_crop(images, 2, 3, 9, 8, [20, 24], antialias=True)
    assert_near(ops.resized_crop(images, *box, (20, 24)), expected, 1e-5)
