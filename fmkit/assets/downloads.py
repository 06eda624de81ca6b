"""Files that have an address: downloaded, resumed where the connection breaks."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3

from fmkit.assets.catalogue import Download
from fmkit.assets.places import AssetError, checked, not_arrived
from fmkit.progress import progress

ATTEMPTS = 4
PAUSE_SECONDS = 1.0  # before the second attempt; twice and three times that later
TIMEOUT_SECONDS = 30  # without a byte from the server
BLOCK = 1 << 18  # bytes
PARTIAL = 206  # HTTP: what was asked for begins where the last attempt broke off
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError)


def download(asset: Download, staging: Path) -> None:
    """Put the file of `asset` into `staging`. Raises ``AssetError``.

    A broken connection and a server in trouble (5xx) are met with another attempt,
    which goes on where the last one ended; any other refusal is final.
    """
    if asset.url is None:
        raise AssetError(
            f"{asset.name} has no address of its own ({asset.source}): place "
            f"{asset.file} in a folder and set FMKIT_MIRROR to that folder."
        )
    target = staging / asset.file
    with open(target, "wb") as file:
        arriving = _percents(asset, file)
        for _ in progress(arriving, label=f"fetch {asset.name}, %", total=100):
            pass
    checked(target, asset)


def _percents(asset: Download, file: BinaryIO) -> Iterator[int]:
    """Yield each percent of the file as it arrives, over all attempts."""
    percent = 0
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS * attempt)
        try:
            for size in _receive(asset, file):
                arrived = 100 * size // asset.size
                yield from range(percent, arrived)
                percent = max(percent, arrived)
            return
        except BROKEN as error:
            if attempt == ATTEMPTS - 1 or _is_final(error):
                what = f"{asset.url} did not arrive ({_innermost(error)})"
                raise not_arrived(asset, what) from error


def _receive(asset: Download, file: BinaryIO) -> Iterator[int]:
    """Append what `file` lacks of `asset`; yield its size, block after block."""
    # As it lies on the server, neither packed for the way nor, if a .gz, unpacked.
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={file.tell()}-"}
    with requests.get(
        asset.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS
    ) as response:
        response.raise_for_status()
        if response.status_code != PARTIAL:
            file.seek(0)  # the whole comes again, over what is there
        for block in response.raw.stream(BLOCK, decode_content=False):
            file.write(block)
            yield file.tell()
            if file.tell() > asset.size:  # another file, perhaps without an end
                return


def _is_final(error: Exception) -> bool:
    answer = getattr(error, "response", None)
    return answer is not None and answer.status_code < 500


def _innermost(error: BaseException) -> str:
    """What went wrong first, which says more than what was made of it."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).partition(" for url: ")[0].split())
