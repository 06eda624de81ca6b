"""Sets split by classes, and the names of ImageNet's classes."""

import re

import pytest
import torch

from fmkit.data.imagenet import imagenet_classes
from fmkit.data.images import ImageSet, split_classes

CLASSES = ("ant", "bee", "cow", "dog", "elk")


@pytest.fixture
def data(rng):
    images = torch.randint(0, 256, (50, 1, 4, 4), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.arange(50) % 5, CLASSES)


def test_every_picture_is_on_one_side_under_its_own_name(data):
    parts = split_classes(data, ["elk", "bee"])
    assert [part.classes for part in parts] == [("ant", "cow", "dog"), ("bee", "elk")]
    assert sum(map(len, parts)) == len(data)
    for part in parts:
        assert part.labels.unique().tolist() == [*range(len(part.classes))]
        for i, name in enumerate(part.classes):
            own = data.images[data.labels == CLASSES.index(name)]
            assert torch.equal(part.images[part.labels == i], own)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["ant", "ox"],
            "task_classes must name classes of the data (ant, bee, ",
        ),
        (["ant", "ant"], "task_classes must name each class once, got ['ant', 'ant']."),
        (["ant"], "task_classes must leave at least 2 of the 5 classes in each part"),
        (["ant", "bee", "cow", "dog"], "task_classes must leave at least 2 of the 5"),
    ],
)
def test_wrong_classes(data, names, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_classes(data, names)


def test_without_labels_there_are_no_classes_to_split(data):
    with pytest.raises(ValueError, match="data must have labels, got None"):
        split_classes(ImageSet(data.images), ["ant", "bee"])


def test_imagenet_s_classes():
    names = imagenet_classes()
    assert len(set(names)) == len(names) == 1000
    known = {207: "golden retriever", 340: "zebra", 985: "daisy", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known
