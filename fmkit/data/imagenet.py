"""The names of ImageNet's thousand classes."""

from pathlib import Path

NAMES_FILE = Path(__file__).with_name("imagenet_classes.txt")


def imagenet_classes() -> tuple[str, ...]:
    """Return the short names of ImageNet's classes, in the order of a network's logits.

    From ``torchvision/models/_meta.py`` of torchvision 0.29.1, BSD 3-Clause, Copyright
    (c) Soumith Chintala 2016.
    """
    return tuple(NAMES_FILE.read_text(encoding="utf-8").splitlines())
