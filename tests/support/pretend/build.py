"""Compile guard.cpp once for each torch, into the user's cache, and load it."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs
import torch

SOURCE = Path(__file__).with_name("guard.cpp")
COMPILER = "g++"


class NoCompilerError(RuntimeError):
    """The machine has no C++ compiler."""


@functools.cache
def load() -> ctypes.CDLL:
    """Load the guard into this process, compiled if it is not in the cache.

    Its functions ``begin_cuda`` and ``end_cuda`` put hooks for the device into torch
    and take them out; so do ``begin_mps`` and ``end_mps``.

    Call it before the first backward pass: torch then decides which devices there are.
    Raises NoCompilerError if it must be compiled and there is no compiler.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:10]
    cache = platformdirs.user_cache_path("fmkit-tests", ensure_exists=True)
    library = cache / f"guard-{torch.__version__}-{digest}.so"
    if not library.exists():
        compile_to(library)
    return ctypes.CDLL(str(library))


def compile_to(library: Path) -> None:
    """Compile the guard to the file `library`, either whole or not at all."""
    if shutil.which(COMPILER) is None:
        raise NoCompilerError(
            f"there is no {COMPILER}, so no GPU is pretended (apt install g++)"
        )
    torch_folder = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    options = ["-std=c++20", "-O0", "-shared", "-fPIC"]
    options += [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f"-I{torch_folder / 'include'}"]
    libraries = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        staging = Path(folder) / library.name
        command = [COMPILER, *options, str(SOURCE), "-o", str(staging), *libraries]
        subprocess.run(command, check=True)
        os.replace(staging, library)
