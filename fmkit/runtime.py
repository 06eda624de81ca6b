"""Device, precision, layout, seeding: the only module that asks about CUDA or MPS."""

import contextlib
import functools
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch

from fmkit._check import require

DEVICES = ("auto", "cpu", "cuda", "mps")
_EXACT = ContextVar("exact", default=False)  # whether `exact` is active


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" is CUDA if there is one, else the CPU.

    "auto" never picks MPS, because MPS has no float64: ask for it by name. The
    environment variable ``FMKIT_DEVICE`` replaces "auto": stored outputs are made on
    the CPU, whatever else the machine has. Raises ValueError if the name is unknown or
    if this machine lacks the device.
    """
    known = f"be one of {', '.join(DEVICES)}"
    require(name in DEVICES, "device", known, name)
    if name == "auto":
        name = os.environ.get("FMKIT_DEVICE") or "auto"
        require(name in DEVICES, "FMKIT_DEVICE", known, name)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    present = ", ".join(kind for kind in available if available[kind])
    require(available[name], "device", f"be on this machine ({present})", name)
    return torch.device(name)


def autocast(device: torch.device) -> AbstractContextManager:
    """Return a context of mixed precision: bfloat16 on CUDA, float32 on CPU and MPS.

    float32 also on GPUs that only emulate bfloat16 (T4, V100, P100), because emulation
    is slower than float32, and inside :func:`fmkit.runtime.exact`.
    """
    pays = device.type == "cuda" and computes_bfloat16(device) and not _EXACT.get()
    return torch.autocast(device.type, torch.bfloat16, enabled=pays)


def computes_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware multiplies bfloat16 matrices, without emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(
            capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")
        )
    return False


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Compute in the precision of the tensors: no autocast, no TF32, on any device.

    For code that compares two ways to compute the same thing: a difference is then one
    of arithmetic, not of bfloat16 or TF32 (8 and 11 bits in place of 24). All settings
    are restored at the end.
    """
    products = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,
        torch.backends.cudnn.rnn,
    )
    before = [product.fp32_precision for product in products]
    token = _EXACT.set(True)
    try:
        for product in products:
            product.fp32_precision = "ieee"
        with contextlib.ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision
        _EXACT.reset(token)


def batch_size_for_inference(device: torch.device) -> int:
    """Return how many images a forward pass without gradients takes at a time.

    On a CPU so few that their features stay in its cache, and as few on MPS, whose
    memory is that of the CPU.
    """
    return 512 if device.type == "cuda" else 32


def bytes_at_once(device: torch.device) -> int:
    """Return the memory for a batch of prompts: its keys, values and logits.

    It is a tenth of the free memory on CUDA, and 256 MiB elsewhere.
    """
    return torch.cuda.mem_get_info(device)[0] // 10 if device.type == "cuda" else 2**28


def on_host(tensor: torch.Tensor) -> bool:
    """Tell if reading a value of `tensor` is free; elsewhere it stops the device."""
    return tensor.device.type == "cpu"


def views_at_once(device: torch.device) -> int:
    """Return how many random views to make at a time; few enough for a CPU's cache."""
    return 4096 if device.type == "cuda" else 128


def read_late(tensors: Iterable[torch.Tensor]) -> Iterator[list]:
    """Yield the values of each tensor, on CUDA only after the next one was asked for.

    Reading a value waits for the device. Each tensor is made from the last one, so on
    CUDA the device would stand still while a value is on its way; here it is computing
    the next tensor then.
    """
    waiting = None
    for tensor in tensors:
        if tensor.device.type != "cuda":
            yield tensor.tolist()
            continue
        copy = tensor.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        if waiting is not None:
            yield _read(*waiting)
        waiting = copy, copied
    if waiting is not None:
        yield _read(*waiting)


def _read(copy: torch.Tensor, copied: torch.cuda.Event) -> list:
    copied.synchronize()  # waits for the copy, not for what was queued after it
    return copy.tolist()


def look_every(device: torch.device) -> int:
    """Return every how many steps training looks at the loss; a GPU waits for it."""
    return 1 if device.type == "cpu" else 20


def seed_weights(seed: int) -> None:
    """Seed the global generator, which is for initial weights and nothing else."""
    torch.manual_seed(seed)


def generators(seed: int) -> Callable[..., torch.Generator]:
    """Return ``rng(purpose, i=0)``, which makes a new generator for each purpose and i.

    Purposes and draws are small integers. Streams do not overlap, so a purpose that
    draws more numbers, or none, changes no other purpose.
    """

    def rng(purpose: int, i: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(10_000 * seed + 100 * purpose + i)

    return rng


def float64(x: torch.Tensor) -> torch.Tensor:
    """Convert to float64, on the CPU if `x` is on MPS, which has no float64.

    The first tensor of a process that this brings to the CPU prints a line.
    """
    if x.device.type == "mps":
        _say_that_float64_is_on_the_cpu()
        x = x.cpu()
    return x.double()


@functools.cache  # hence once
def _say_that_float64_is_on_the_cpu() -> None:
    print("MPS has no float64: what needs it is computed on the CPU.")


def gpu_libraries() -> dict[str, str]:
    """Return the versions of CUDA and cuDNN, if there is a GPU that uses them."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return {}
    found = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {name: str(version) for name, version in found.items() if version}


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the most memory used so far, in MB: of the GPU, else of this process.

    For a process it is resident memory; None if the system does not report it
    (Windows). MPS does not record its peak, so there it is what Metal's driver holds
    now for this process, including what PyTorch keeps for its next tensors.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS reports bytes, Linux KiB
    return peak / unit


def device_name(device: torch.device) -> str:
    """Return the device's name for a record: the GPU's model or the processor's kind.

    For example "NVIDIA H200" or "cpu (x86_64)".
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = platform.machine()
    return f"{device.type} ({kind})"
