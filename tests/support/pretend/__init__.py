"""Run code as on a machine with a GPU or a Mac, without either.

::

    with pretend.cuda() as seen:
        step(model.to("cuda"))
    assert seen.waits == []  # synchronizations, each as "item at fmkit/train.py:46"

Inside, ``runtime.pick_device("auto")`` is CUDA, and CUDA's own autocast applies. Values
are right, but computed by the kernels of the CPU: this finds code that is wrong about
devices and precision, never a kernel's own errors, TF32, memory or speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from fmkit import runtime
from support.pretend import build
from support.pretend.build import NoCompilerError
from support.pretend.tensors import Device

__all__ = ["Device", "NoCompilerError", "bfloat16", "cuda", "mps"]


@contextmanager
def cuda() -> Iterator[Device]:
    """Pretend that there is one CUDA device, and yield what is seen on it.

    ``torch.compile`` returns what it is given, because there is no device to compile
    for. Raises NoCompilerError if there is no compiler.
    """
    with _device("cuda") as device, pytest.MonkeyPatch.context() as patch:
        answers = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "is_bf16_supported": lambda including_emulation=True: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_capability": lambda _=None: (9, 0),
            "get_device_name": lambda _=None: "a pretended GPU",
            "max_memory_allocated": lambda _=None: 0,
            "mem_get_info": lambda _=None: (2**33, 2**34),  # bytes: free, all
            "synchronize": lambda _=None: device.wait("synchronize"),
            "Event": lambda **_: _Event(device),
            "default_generators": (device.generator,),
        }
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, answer)
        patch.setattr(torch.cuda.random, "device_count", lambda: 1)  # for its seeding
        patch.setattr(torch, "compile", lambda model, **_: model)
        yield device


@contextmanager
def mps() -> Iterator[Device]:
    """Pretend that there is Apple's MPS, which has no float64.

    Raises NoCompilerError if there is no compiler.
    """
    with _device("mps") as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
        patch.setattr(torch.mps, "manual_seed", device.generator.manual_seed)
        patch.setattr(F, "scaled_dot_product_attention", _attention)
        yield device


class _Event:
    """A place in what the device was asked to do, for which the host can wait."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def record(self) -> None:
        """Take this place; everything here is done at once."""

    def synchronize(self) -> None:
        self._device.wait("event")


def _attention(q, k, v, attn_mask=None, **options) -> torch.Tensor:
    """Attention made of operators that the CPU has; torch would look for Metal."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # this one adds masks
        nothing = torch.zeros_like(attn_mask, dtype=q.dtype)
        attn_mask = nothing.masked_fill(~attn_mask, -torch.inf)
    of_operators = torch.ops.aten._scaled_dot_product_attention_math
    return of_operators(q, k, v, attn_mask, **options)[0]


@contextmanager
def bfloat16() -> Iterator[None]:
    """Compute on the CPU in bfloat16 wherever a GPU would."""

    def autocast(device: torch.device) -> torch.autocast:
        pays = not runtime._EXACT.get()
        return torch.autocast(device.type, torch.bfloat16, enabled=pays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "autocast", autocast)
        yield


@contextmanager
def _device(kind: str) -> Iterator[Device]:
    library = build.load()
    lifts = torch._C._only_lift_cpu_tensors()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    library[f"begin_{kind}"]()
    try:
        torch._C._set_only_lift_cpu_tensors(True)
        # A module's weights move by an exchange of objects, so tied ones stay tied
        torch.__future__.set_swap_module_params_on_conversion(True)
        with Device(kind) as device:
            yield device
    finally:
        library[f"end_{kind}"]()
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_swap_module_params_on_conversion(swaps)
