"""Batches whose order is a function of (seed, epoch), in memory and streamed."""

from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from aavae.augmentations.crops import crop_boxes, crop_draws
from aavae.augmentations.pipeline import NoAugmentation
from aavae.augmentations.simclr import SimCLRViews
from aavae.datasets import Dataset, Split
from aavae.datasets.folder import ImageFolder
from aavae.datasets.loader import Loader
from aavae.errors import UserError
from aavae.runtime.processes import Processes
from aavae.runtime.randomness import generator_for

CPU = torch.device("cpu")


class Numbered(Dataset):
    """Image i has the colour i throughout, so that a batch tells which images are in it."""

    name, num_classes, image_size = "numbered", 0, 4
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, n):
        super().__init__()
        self.n = n

    def read(self, device):
        images = torch.arange(self.n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        return {"pretrain": Split(images.contiguous().to(device))}


class Darker(Numbered):
    def target(self, images):
        return images / 2


def loader(n=23, batch_size=4, seed=0, kind=Numbered, **keywords):
    return Loader(kind(n), NoAugmentation(), batch_size, seed, CPU, **keywords)


def numbers(batches):
    """The images' numbers, a row for each batch."""
    return [(batch.source[:, 0, 0, 0] * 255).round().int().tolist() for batch in batches]


def test_every_epoch_shows_distinct_images_and_drops_the_incomplete_batch():
    whole = loader(n=23, batch_size=4)
    assert whole.steps_per_epoch == 5
    left_out = set()
    for epoch in range(10):
        batches = numbers(whole.epoch(epoch))
        assert [len(b) for b in batches] == [4] * 5
        seen = list(chain(*batches))
        assert len(set(seen)) == 20 and set(seen) <= set(range(23))
        left_out |= set(range(23)) - set(seen)
    assert len(left_out) > 3  # not always the same three


def test_all_images_are_shown_where_the_batch_size_divides_them():
    assert sorted(chain(*numbers(loader(n=24).epoch(0)))) == list(range(24))


def test_order_is_a_function_of_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = numbers(loader(seed=3).epoch(2))
    torch.manual_seed(2)
    again = loader(seed=3)
    list(again.epoch(0))
    assert numbers(again.epoch(2)) == first
    assert numbers(again.epoch(3)) != first
    assert numbers(loader(seed=4).epoch(2)) != first


def test_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(loader().epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_are_shuffled():
    seen = numbers(loader(n=200, batch_size=200).epoch(0))[0]
    assert abs(np.corrcoef(seen, range(200))[0, 1]) < 0.3


@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_epoch_goes_on_from_any_batch(first):
    assert numbers(loader().epoch(1, first)) == numbers(loader().epoch(1))[first:]


@pytest.mark.parametrize("world", [2, 4])
def test_shares_of_the_processes_make_up_the_global_batch(world):
    alone = numbers(loader(batch_size=8).epoch(0))
    shares = [numbers(loader(batch_size=8, processes=Processes(r, world)).epoch(0)) for r in range(world)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    assert {len(b) for share in shares for b in share} == {8 // world}


def test_batch_is_float_in_0_1_and_the_target_is_the_datasets():
    batch = next(loader(kind=Darker).epoch(0))
    assert batch.source.dtype == torch.float32 and not batch.cropped
    assert batch.source.max() <= 1
    assert torch.equal(batch.clean, batch.source / 2)


@pytest.mark.parametrize("batch_size", [-1, 0, 1, 24])
def test_impossible_batch_sizes_are_refused(batch_size):
    with pytest.raises(UserError, match=rf"batch_size.*{batch_size}"):
        loader(n=23, batch_size=batch_size)


def test_batch_may_be_the_whole_set():
    assert loader(n=23, batch_size=23).steps_per_epoch == 1


def test_batch_that_does_not_divide_among_the_processes_is_refused():
    with pytest.raises(UserError, match=r"batch_size=5.*2 processes"):
        loader(batch_size=5, processes=Processes(0, 2))


# ---- Streamed -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(26):
        size = (20 + i % 4, 24 - i % 3, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(root / f"{i:02d}.png")
    return root


def streamed(root, augmentation, batch_size=4, in_memory=False, workers=0, **keywords):
    data = ImageFolder(root, image_size=16, in_memory=in_memory, workers=workers)
    return Loader(data, augmentation, batch_size, 0, CPU, **keywords)


def simclr():
    return SimCLRViews(strength=0.5, blur_p=0.0)


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.clean, other.clean) and torch.equal(batch.source, other.source)


def test_streamed_epoch_shows_the_images_in_the_order_of_memory(pictures):
    from_disk = list(streamed(pictures, simclr()).epoch(1))
    in_memory = list(streamed(pictures, simclr(), in_memory=True).epoch(1))
    assert len(from_disk) == 6
    for a, b in zip(from_disk, in_memory, strict=True):
        assert torch.equal(a.clean, b.clean)
    assert all(b.cropped for b in from_disk) and not any(b.cropped for b in in_memory)


def test_streamed_source_is_torchvisions_resized_crop_of_the_whole_image(pictures):
    train, augmentation = streamed(pictures, simclr()), simclr()
    split = train.split
    order = numbers_of(train, epoch=1)
    for step, batch in enumerate(train.epoch(1)):
        # The boxes are a function of the global step, not of the rank.
        draws = crop_draws(4, generator_for(0, "crop", train.steps_per_epoch + step))
        for row, index in enumerate(order[step]):
            image = split.store.open(split.names[index])
            box = crop_boxes(draws[row][None], image.height, image.width, augmentation.scale, augmentation.ratio)
            crop = tvf.resized_crop(image, *(int(b) for b in box), [16, 16])
            assert torch.equal((batch.source[row] * 255).round().to(torch.uint8), tvf.pil_to_tensor(crop))


def numbers_of(train, epoch):
    """Which images an epoch shows, told by comparing its clean images with those of the split."""
    images = torch.cat(list(train.split.batches(8)))
    return [
        [int((images == clean).flatten(1).all(1).nonzero()) for clean in (batch.clean * 255).round().to(torch.uint8)]
        for batch in train.epoch(epoch)
    ]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # Python 3.12 on every fork
def test_workers_change_nothing(pictures):
    assert_same(streamed(pictures, simclr(), workers=2).epoch(0), streamed(pictures, simclr()).epoch(0))


def test_streamed_epoch_goes_on_from_any_batch(pictures):
    assert_same(streamed(pictures, simclr()).epoch(1, first=4), list(streamed(pictures, simclr()).epoch(1))[4:])


def test_streamed_shares_make_up_the_global_batch(pictures):
    alone = streamed(pictures, simclr()).epoch(0)
    shares = [streamed(pictures, simclr(), processes=Processes(r, 2)).epoch(0) for r in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(batch.clean, torch.cat([p.clean for p in parts]))
        assert torch.equal(batch.source, torch.cat([p.source for p in parts]))


def test_without_a_crop_the_streamed_source_is_the_clean_image(pictures):
    for batch in streamed(pictures, NoAugmentation()).epoch(0):
        assert torch.equal(batch.source, batch.clean) and not batch.cropped


def test_streamed_crops_differ_between_epochs(pictures):
    train = streamed(pictures, simclr(), batch_size=23)
    (first,), (second,) = train.epoch(0), train.epoch(1)
    position = numbers_of(train, 1)[0]
    same = first.source[numbers_of(train, 0)[0].index(position[0])]
    assert not torch.equal(same, second.source[0])
