"""Where tests find real data and the built pages."""

import os
import shutil
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from fmkit._check import Refused

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def asset_cache(tmp_path_factory):
    """``FMKIT_CACHE`` of this session: the one that is set, else an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("FMKIT_CACHE"):
            patch.setenv("FMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["FMKIT_CACHE"])


@pytest.fixture
def mirror(monkeypatch):
    """The folder of shared data, as ``FMKIT_MIRROR``."""
    if not SHARED_DATA.is_dir():
        pytest.skip("there is no folder shared/data beside the repository")
    monkeypatch.setenv("FMKIT_MIRROR", str(SHARED_DATA))
    return SHARED_DATA


@pytest.fixture(scope="session")
def site():
    """The folder of the built pages."""
    from support import pages

    return pages.built()


@pytest.fixture
def served(site):
    """A server of the built pages at ``address``; it lacks the file ``without``."""
    from support import pages

    with pages.served(site) as server:
        yield server


@pytest.fixture(scope="module")  # its event loop would stop other modules' notebooks
def browser():
    """Debian's chromium; Playwright's own is not downloaded."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        assert os.environ.get("CI") != "true", "CI needs the package chromium"
        pytest.skip("no chromium here, so nothing opens the pages")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        yield playwright.chromium.launch(executable_path=chromium, args=options)


@pytest.fixture(scope="session")
def smollm2(asset_cache):
    """SmolLM2 with its tokenizer, read once; no test changes it."""
    from fmkit.assets import fetch
    from fmkit.models.pretrained import load_gguf

    return load_gguf(fetch("smollm2-135m-instruct-q4")["smollm2.gguf"])


@pytest.fixture
def rng():
    """A generator, the same for every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def closed_figures():
    """Figures of a test are closed after it, and its style does not stay."""
    with matplotlib.rc_context():
        yield
    plt.close("all")


@pytest.fixture(autouse=True)
def refusals(monkeypatch):
    """Every refusal in any test is one sentence: one line that ends in a full stop.

    So other tests match an argument and its value, and words can be improved freely.
    """
    sentences = []

    def refuse(self, *arguments):
        ValueError.__init__(self, *arguments)
        sentences.append(str(self))

    monkeypatch.setattr(Refused, "__init__", refuse)
    yield
    wrong = [x for x in sentences if "\n" in x or not x.endswith(".") or x != x.strip()]
    assert wrong == []
