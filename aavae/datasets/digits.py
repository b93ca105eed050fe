"""scikit-learn's handwritten digits: real, small, and on every machine that has scikit-learn."""

import torch
from torch.nn import functional as F

from aavae.augmentations.crops import Crops
from aavae.augmentations.digits import DigitViews
from aavae.augmentations.pipeline import Pipeline
from aavae.datasets import SPLIT_SEED, Dataset, Split, to_uint8


class Digits(Dataset):
    """1,797 digits of 8×8, enlarged bilinearly to 3×16×16; stratified 1,297 / 200 / 300, seed 42."""

    name, num_classes, image_size = "digits", 10, 16
    reference_batch = 128
    mean, std = (0.306, 0.306, 0.306), (0.319, 0.319, 0.319)  # of the 1,297 training images

    def views(self) -> Pipeline:
        """Rotations, shifts and the like."""
        return DigitViews()

    def crops(self) -> Pipeline:
        """Shifts; a mirrored digit is another digit, or none."""
        return Crops(self.image_size // 8, flip_p=0.0)

    def read(self, device: torch.device) -> dict[str, Split]:
        """The three labelled splits; pretraining uses the images of `train` and `val`."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        data = load_digits()
        images = torch.from_numpy(data.images).float()[:, None] / 16
        images = F.interpolate(images, size=(self.image_size,) * 2, mode="bilinear", align_corners=False)
        images = to_uint8(images.expand(-1, 3, -1, -1))
        labels = torch.from_numpy(data.target).long()
        index = range(len(labels))
        train, rest = train_test_split(index, test_size=500, stratify=labels, random_state=SPLIT_SEED)
        val, test = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=SPLIT_SEED)
        everything = Split(images, labels)
        train, val, test = (everything.take(torch.tensor(i)).to(device) for i in (train, val, test))
        return {"pretrain": train, "pretrain_val": val, "train": train, "val": val, "test": test}
