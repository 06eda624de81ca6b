"""Files that have an address, obtained with pooch: it tries again and shows a bar."""

import sys
from pathlib import Path

from fmkit.assets.catalogue import Download
from fmkit.assets.places import AssetError, checked, not_arrived

RETRIES = 3  # after the first attempt, with pauses of 1, 2 and 3 seconds
TIMEOUT_SECONDS = 30  # without a byte from the server


def download(asset: Download, staging: Path) -> None:
    """Put the file of `asset` into the folder `staging`.

    Raises ``AssetError`` if the asset has no address, if the server cannot be reached
    or refuses, and if the file is not the published one.
    """
    if asset.url is None:
        raise AssetError(
            f"{asset.name} has no address of its own ({asset.source}): place "
            f"{asset.file} in a folder and set FMKIT_MIRROR to that folder."
        )
    import pooch  # not at the top, because most readers never need it

    pooch.get_logger().setLevel("ERROR")
    server = pooch.create(
        path=staging,
        base_url="",
        registry={asset.file: None},  # the hash is checked below, in words of our own
        urls={asset.file: asset.url},
        retry_if_failed=RETRIES,
    )
    shown = sys.stderr.isatty()  # a stored notebook keeps no trace of a bar
    receive = pooch.HTTPDownloader(progressbar=shown, timeout=TIMEOUT_SECONDS)
    try:
        server.fetch(asset.file, downloader=receive)
    except OSError as error:
        if error.errno is not None:  # of the disk: errors of the network have none
            raise
        what = f"{asset.url} did not arrive ({_innermost(error)})"
        raise not_arrived(asset, what) from error
    checked(staging / asset.file, asset)


def _innermost(error: BaseException) -> str:
    """Return the message of the first error in a chain, which is the most precise."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).partition(" for url: ")[0].split())
