"""Device, precision, layout, seeding: the only module that asks about CUDA or MPS."""

import contextlib
import functools
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path

import torch

from fmkit._check import require

DEVICES = ("auto", "cpu", "cuda", "mps")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_EXACT = ContextVar("exact", default=False)  # whether `exact` is active


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" is CUDA if there is one, else the CPU.

    "auto" never picks MPS, because MPS has no float64: ask for it by name. The
    environment variable ``FMKIT_DEVICE`` replaces "auto": stored outputs are made on
    the CPU, whatever else the machine has. Each process that torchrun started on this
    machine gets the next GPU, in turns if there are fewer GPUs than processes. Raises
    ValueError if the name is unknown or if this machine lacks the device.
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
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        index = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
        return torch.device(name, index)
    return torch.device(name)


def own_gpu(device: torch.device) -> bool:
    """Tell whether each process that torchrun started here has a GPU of its own.

    That of this process also becomes the default GPU.
    """
    if device.type != "cuda":
        return False
    torch.cuda.set_device(device)
    return int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()


def autocast(device: torch.device) -> AbstractContextManager:
    """Return a context of mixed precision: bfloat16 on CUDA, float32 on CPU and MPS.

    float32 also on GPUs that only emulate bfloat16 (T4, V100, P100), because emulation
    is slower than float32, and inside :func:`fmkit.runtime.exact`.
    """
    pays = trains_in_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=pays)


def trains_in_bfloat16(device: torch.device) -> bool:
    """Tell whether :func:`fmkit.runtime.autocast` computes in bfloat16."""
    return device.type == "cuda" and computes_bfloat16(device) and not _EXACT.get()


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
    of arithmetic, not of bfloat16 or TF32 (8 and 11 bits in place of 24). cuDNN does
    not choose algorithms by their speed either. All settings are restored at the end.
    """
    products = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,
        torch.backends.cudnn.rnn,
    )
    before = [product.fp32_precision for product in products]
    timed = torch.backends.cudnn.benchmark
    token = _EXACT.set(True)
    try:
        for product in products:
            product.fp32_precision = "ieee"
        torch.backends.cudnn.benchmark = False
        with contextlib.ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision
        torch.backends.cudnn.benchmark = timed
        _EXACT.reset(token)


@contextlib.contextmanager
def fixed_shapes(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose its fastest algorithms: for shapes that come again and again.

    On CUDA only. It times the algorithms for a shape when it first occurs. Inside
    :func:`fmkit.runtime.exact` and :func:`fmkit.runtime.deterministic` it does not,
    because the choice may be another one in each run.
    """
    before = torch.backends.cudnn.benchmark
    same = _EXACT.get() or torch.are_deterministic_algorithms_enabled()
    try:
        torch.backends.cudnn.benchmark = before or (device.type == "cuda" and not same)
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Make CUDA repeat a computation bit for bit, at some cost in time.

    Elsewhere a GPU adds up in an order that changes from run to run: in the gradients
    of convolutions, of attention and of indexing. On a CPU results repeat without it.
    Enter it before anything is computed on the GPU, because cuBLAS reads its
    environment variable once. All settings are restored at the end. An operation that
    cannot repeat itself raises ``RuntimeError``.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    timed, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    try:
        os.environ[WORKSPACE] = ":4096:8"
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        torch.backends.cudnn.benchmark = timed
        os.environ.pop(WORKSPACE)
        if workspace is not None:
            os.environ[WORKSPACE] = workspace


def compiled(module: torch.nn.Module) -> torch.nn.Module:
    """Return a compiled form of a module on a GPU; elsewhere the module itself.

    The form shares all weights and buffers with `module`. Call it in the loss of a long
    training, with batches of one shape, and use `module` for everything else:
    evaluation, copies, checkpoints. Compiling takes about a minute, at the first call.
    Without a compiler (Windows, a GPU older than 2017, no C compiler, no header files
    of Python) the module itself is returned too.
    """
    first = next(module.parameters(), None)
    on_gpu = first is not None and first.device.type == "cuda"
    return torch.compile(module) if on_gpu and _compiles(first.device) else module


def _compiles(device: torch.device) -> bool:
    """Tell whether torch's compiler for GPUs, Triton, works here.

    It compiles a C extension, so it needs a C compiler and Python's header files, which
    Debian and Ubuntu keep in a package of their own.
    """
    c_compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    installed = importlib.util.find_spec("triton") is not None
    new_enough = torch.cuda.get_device_capability(device) >= (7, 0)
    return bool(installed and c_compiler and headers and new_enough)


def fused(device: torch.device) -> bool:
    """Tell if optimizers should update all parameters in one kernel: on CUDA.

    For ``torch.optim.AdamW(..., fused=runtime.fused(device))``.
    """
    return device.type == "cuda"


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


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `tensor` on a device. A copy to a GPU is queued: the host goes on.

    It leaves from pinned memory, which the GPU reads by itself.
    """
    if on_host(tensor) and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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


def global_generator(device: torch.device) -> torch.Generator:
    """Return the generator from which dropout draws on a device.

    Raises ``ValueError`` for devices other than a CPU and CUDA.
    """
    known = device.type in ("cpu", "cuda")
    require(known, "device", "be a CPU or CUDA", device.type)
    if device.type == "cpu":
        return torch.default_generator
    torch.cuda.init()  # before that there is none
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


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


def gpu_libraries() -> dict[str, str]:
    """Return the versions of CUDA and cuDNN, if there is a GPU that uses them."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return {}
    found = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {name: str(version) for name, version in found.items() if version}


def count_gpus() -> int:
    """Return how many CUDA devices this process may use."""
    return torch.cuda.device_count()


def device_name(device: torch.device) -> str:
    """Return the device's name for a record: the GPU's model or the processor's kind.

    For example "NVIDIA H200" or "cpu (x86_64)".
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = platform.machine()
    return f"{device.type} ({kind})"
