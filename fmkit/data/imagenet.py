"""What ImageNet's thousand classes are called."""

from pathlib import Path

NAMES_FILE = Path(__file__).with_name("imagenet_classes.txt")


def imagenet_classes() -> tuple[str, ...]:
    """Short names of the classes, in the order of the logits of ImageNet's networks.

    From ``torchvision/models/_meta.py`` of torchvision 0.29.1, BSD 3-Clause, Copyright
    (c) Soumith Chintala 2016.
    """
    return tuple(NAMES_FILE.read_text().splitlines())
