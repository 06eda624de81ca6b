"""Animal-MNIST: ten kinds of silhouettes, without duplicates, and their split."""

from pathlib import Path

import torch

from fmkit.assets import fetch, load_array
from fmkit.data.images import ImageSet

ANIMALS = ("bear", "bird", "cat", "cow", "dog")
ANIMALS += ("elephant", "giraffe", "horse", "sheep", "zebra")
SPLIT_FILE = Path(__file__).with_name("animals_split.txt")
TRAIN, TEST, DROPPED = ".", "T", "x"  # the character of an image in that file


def load_animals() -> tuple[ImageSet, ImageSet]:
    """Load the train set and the test set of Animal-MNIST without its duplicates.

    10,000 silhouettes, 28 by 28, one channel, bright on black; zebras have stripes.
    Of images that show the same drawing the first is kept: 9,637 remain and 363 are
    dropped. The remaining images fall into 7,054 groups of one pose, and no group
    straddles the split: 7,711 train, 1,926 test, a fifth of every class. The largest
    groups (787 cows and sheep, 417 bears) are too large for the test set. The test set
    therefore has fewer of the commonest poses and is harder than a random sample.
    ``tools/split_animals.py`` gives the rule. Raises ``AssetError`` if the images
    cannot be obtained.
    """
    files = fetch("animals")
    images = torch.from_numpy(load_array(files["images.gz"])).unsqueeze(1)
    labels = torch.from_numpy(load_array(files["labels.gz"]))
    everything = ImageSet(images, labels, ANIMALS)
    split = SPLIT_FILE.read_text(encoding="utf-8").replace("\n", "")
    train, test = (
        everything.subset(torch.tensor([mark == part for mark in split]))
        for part in (TRAIN, TEST)
    )
    return train, test
