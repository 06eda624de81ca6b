"""The cache and the mirror of assets, and the check of a file against its hash."""

import hashlib
import os
from pathlib import Path

import platformdirs

from fmkit._check import Refused
from fmkit.assets.catalogue import Asset


class AssetError(Refused):
    """An asset cannot be obtained: one sentence that says why and what to do."""


def cache_folder() -> Path:
    """Return the cache's folder: ``FMKIT_CACHE``, else the user's cache directory."""
    chosen = os.environ.get("FMKIT_CACHE")
    return Path(chosen or platformdirs.user_cache_dir("fmkit")).expanduser()


def from_mirror(asset: Asset) -> Path | None:
    """Return the published file in the folder ``FMKIT_MIRROR``, checked, or None."""
    mirror = os.environ.get("FMKIT_MIRROR")
    if not mirror:
        return None
    folder = Path(mirror).expanduser()
    if not folder.is_dir():
        raise AssetError(f"FMKIT_MIRROR must be a folder, got {mirror!r}.")
    path = folder / asset.file
    return checked(path, asset) if path.is_file() else None


def checked(path: Path, asset: Asset) -> Path:
    """Return `path` if it has the hash of the published file, else raise AssetError."""
    got = sha256_of(path)
    if got != asset.sha256:
        raise wrong_hash(asset.file, asset.sha256, got)
    return path


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_hash(what: str, expected: str, got: str) -> AssetError:
    """Return the error for a file with another hash than the published one."""
    return AssetError(
        f"{what} must have sha256 {expected}, got {got}; it was not kept."
    )


def not_arrived(asset: Asset, what: str) -> AssetError:
    """Return the error for a file that was not obtained, and say what to do."""
    return AssetError(
        f"{what}; without a network, place {asset.file} in a folder and set "
        "FMKIT_MIRROR to that folder."
    )
