"""Every chapter, at its smallest, on machines that are not there."""

import functools

import jaxtyping
import pytest
import torch
from support import pretend
from support.pretend.chapter import ROOT, execute, smallest

from fmkit.data import load, text
from fmkit.data.animals import load_animals

# Those of libraries, which a kernel does not show
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
corpus = functools.cache(text.load_corpus)  # read once for all chapters
CHAPTERS = [
    path.stem
    for path in sorted((ROOT / "chapters").glob("*.ipynb"))
    if not path.stem.endswith("_exercises")
]
# A probe is thousands of small operators, and each of them passes through Python
FEWER = {
    "pretraining_and_adaptation": {"draws": 1},
    "supervised_pretraining": {"draws": 1, "n_layers": [8]},
    "contrastive_learning": {"draws": 1},
}


def parameters(name, device):
    """The smallest of a chapter, without what is only repeated."""
    return smallest(name) | FEWER.get(name, {}) | {"device": device}


@pytest.fixture(autouse=True)
def as_a_kernel_would(monkeypatch, closed_figures):
    """Where a chapter starts, and what ``fmkit rerun`` sets."""
    monkeypatch.chdir(ROOT / "chapters")
    monkeypatch.setenv("FMKIT_FINDINGS", "report")
    monkeypatch.delenv("FMKIT_DEVICE", raising=False)
    monkeypatch.delenv("FMKIT_RECORD", raising=False)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(text, "load_corpus", corpus)
    monkeypatch.setitem(load.SETS, "animals", few_animals)


@functools.cache
def few_animals():
    """One in some images, because the features of all take most of a chapter's time."""
    parts = zip(load_animals(), (12, 8), strict=True)
    train, test = (x.subset(torch.arange(0, len(x), step)) for x, step in parts)
    return train, test


@pytest.mark.parametrize("name", CHAPTERS)
def test_on_a_gpu(gpu, name):
    execute(name, parameters(name, "auto"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_on_a_mac(mac, name):
    execute(name, parameters(name, "mps"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_in_bfloat16(name):
    with pretend.bfloat16():
        execute(name, parameters(name, "cpu"))
