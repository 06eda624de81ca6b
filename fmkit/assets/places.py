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
    return _chosen("FMKIT_CACHE") or Path(platformdirs.user_cache_dir("fmkit"))


def _chosen(variable: str) -> Path | None:
    """Return the folder that an environment variable names, if any."""
    text = os.environ.get(variable)
    if not text:
        return None
    folder = Path(os.path.expanduser(text))
    # JupyterLab starts a kernel in the notebook's folder, not where this was typed.
    if "JPY_SESSION_NAME" in os.environ and not folder.is_absolute():
        rule = "must be an absolute path for a kernel of JupyterLab"
        raise AssetError(f"{variable} {rule}, got {text!r}.")
    return folder


def from_mirror(asset: Asset) -> Path | None:
    """Return the published file in the folder ``FMKIT_MIRROR``, checked, or None."""
    folder = _chosen("FMKIT_MIRROR")
    if folder is None:
        return None
    if not folder.is_dir():
        raise AssetError(f"FMKIT_MIRROR must be a folder, got {str(folder)!r}.")
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
