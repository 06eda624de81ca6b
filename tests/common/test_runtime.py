"""Device, precision, seeding."""

import re

import pytest
import torch

from fmkit import runtime

HERE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("FMKIT_DEVICE", raising=False)


def test_the_cpu_is_everywhere():
    assert runtime.pick_device("cpu") == torch.device("cpu")


def test_auto_is_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    assert runtime.pick_device() == torch.device("cpu")


def test_a_name_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "cuda")
    assert runtime.pick_device("cpu") == torch.device("cpu")


def test_an_empty_variable_says_nothing(monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "")
    assert runtime.pick_device().type in ("cpu", "cuda", "mps")


def test_unknown_devices(monkeypatch):
    message = "device must be one of auto, cpu, cuda, mps, got 'gpu'."
    with pytest.raises(ValueError, match=re.escape(message)):
        runtime.pick_device("gpu")
    monkeypatch.setenv("FMKIT_DEVICE", "tpu")
    with pytest.raises(ValueError, match=r"FMKIT_DEVICE must be one of .*, got 'tpu'"):
        runtime.pick_device()


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there(name):
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if there[name]:
        pytest.skip(f"this machine has {name}")
    with pytest.raises(
        ValueError, match=rf"device must be on this machine \(.*'{name}'"
    ):
        runtime.pick_device(name)


def test_the_cpu_computes_in_float32():
    a = torch.ones(2, 2)
    with runtime.autocast(torch.device("cpu")):
        assert (a @ a).dtype == torch.float32


def test_cuda_computes_in_bfloat16():
    if HERE != "cuda":
        pytest.skip("no CUDA here")
    a = torch.ones(2, 2, device="cuda")
    with runtime.autocast(a.device):
        assert (a @ a).dtype == torch.bfloat16


def test_seeded_weights():
    def weights(seed):
        runtime.seed_weights(seed)
        return torch.nn.Linear(3, 3).weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_peak_memory_grows_with_what_is_held():
    before = runtime.peak_memory_mb(torch.device("cpu"))
    if before is None:
        pytest.skip("this system does not say")
    held = torch.ones(int(before + 200), 1_000_000, dtype=torch.uint8)
    after = runtime.peak_memory_mb(torch.device("cpu"))
    assert after >= held.numel() / 1e6
    assert before < 1e5  # MB, not bytes or KiB


def test_names_and_versions():
    assert runtime.device_name(torch.device("cpu")).startswith("cpu (")
    assert runtime.versions()["torch"] == torch.__version__
    assert set(runtime.versions()) == {"python", "torch", "numpy", "fmkit"}
