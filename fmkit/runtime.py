"""Device, precision, layout, seeding: the only module that asks about CUDA or MPS."""

import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version

import torch

from fmkit._check import require

# Measured with EfficientNet-Lite0 at 96 px on two cores: 542 pictures a second at
# batch 32 in channels-last, 240 at batch 64 in the default layout.
MEMORY_FORMAT = torch.channels_last
DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first there is of CUDA, MPS and the CPU.

    The environment variable ``FMKIT_DEVICE`` says what "auto" means: stored outputs
    are made on the CPU whatever else the machine has. Raises ``ValueError`` for an
    unknown name and for a device that this machine lacks.
    """
    known = f"be one of {', '.join(DEVICES)}"
    require(name in DEVICES, "device", known, name)
    if name == "auto":
        name = os.environ.get("FMKIT_DEVICE") or "auto"
        require(name in DEVICES, "FMKIT_DEVICE", known, name)
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    present = [kind for kind in there if there[kind]]
    require(there[name], "device", f"be on this machine ({', '.join(present)})", name)
    return torch.device(name)


def autocast(device: torch.device) -> AbstractContextManager:
    """Mixed precision where it pays: bfloat16 on CUDA; float32 on the CPU and MPS."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def batch_size_for_inference(device: torch.device) -> int:
    """Pictures a forward pass without gradients: small enough for a CPU's cache."""
    return 32 if device.type == "cpu" else 512


def bytes_at_once(device: torch.device) -> int:
    """Memory for a batch of prompts: keys and values of all its rows, and logits."""
    return 2**28 if device.type == "cpu" else 2**32


def on_host(tensor: torch.Tensor) -> bool:
    """Tell if reading a value of `tensor` is free; elsewhere it stops the device."""
    return tensor.device.type == "cpu"


def views_at_once(device: torch.device) -> int:
    """Random views made in one go: on a CPU as many as stay in its cache."""
    return 128 if device.type == "cpu" else 4096


def seed_weights(seed: int) -> None:
    """Seed the global generator, which is for initial weights and nothing else."""
    torch.manual_seed(seed)


def generators(seed: int) -> Callable[..., torch.Generator]:
    """Return ``rng(purpose, i=0)``: a new generator for each purpose and each draw.

    Purposes and draws are small integers. Streams do not overlap, so a purpose that
    draws more, or is left out, changes no other.
    """

    def rng(purpose: int, i: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(10_000 * seed + 100 * purpose + i)

    return rng


def peak_memory_mb(device: torch.device) -> float | None:
    """Most memory held so far, in MB: the GPU's on CUDA, else this process's resident.

    None where the system does not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, KiB here
    return peak / unit


def device_name(device: torch.device) -> str:
    """What a record calls the device: the GPU's own name, or the processor's kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = platform.machine()
    return f"mps ({kind})" if device.type == "mps" else f"cpu ({kind})"


def versions() -> dict[str, str]:
    """Versions of what a number can depend on: Python, torch, numpy and fmkit."""
    packages = {name: version(name) for name in ("torch", "numpy", "fmkit")}
    return {"python": platform.python_version(), **packages}
