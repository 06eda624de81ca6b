"""Devices that this machine lacks."""

import contextlib
import os

import pytest
from support import pretend
from support.pretend import build

# Now, because the first backward pass fixes which devices there are
with contextlib.suppress(pretend.NoCompilerError):
    build.load()


@pytest.fixture(scope="session")
def compiler():
    """Skip what needs a pretended device where its part in C++ cannot be compiled."""
    try:
        build.load()
    except pretend.NoCompilerError as error:
        assert os.environ.get("CI") != "true", "CI needs the package g++"
        pytest.skip(str(error))


@pytest.fixture
def gpu(compiler):
    """A pretended CUDA device; what is seen on it."""
    with pretend.cuda() as seen:
        yield seen


@pytest.fixture
def mac(compiler):
    """A pretended MPS device; what is seen on it."""
    with pretend.mps() as seen:
        yield seen
