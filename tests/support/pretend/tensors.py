"""A device that this machine lacks: tensors say they are on it, and lie on the CPU.

What a real device refuses is refused here with its error: CPU tensors beside those on
the device, a generator of another device, NumPy, and float64 on MPS. What makes the
host wait for the device is recorded with its place in the code. Which operators wait
is known from torch's source: those that ``torch.cuda.set_sync_debug_mode`` reports.
"""

import copy
import functools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
HERE = str(Path(__file__).parent)
WAITING = {  # operators after which the host needs what the device computed
    "_local_scalar_dense": "item",
    "equal": "equal",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "bincount": "bincount",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "multinomial": "multinomial",  # it looks at the probabilities
    "_linalg_check_errors": "linalg",
    "_linalg_eigh": "linalg",
}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
COPYING = {"_to_copy", "copy_", "_foreach_copy_"}
# Tensors without an axis may be on the CPU in these and in all pointwise operators
TAKES_CPU_NUMBERS = {"fill_", "fill", "masked_fill", "masked_fill_", "where", "lerp"}
NO_DATA = {"lift_fresh", "is_same_size", "detach", "record_stream"}
# Operators that make a tensor where `device` says; torch makes all others of these
MAKING = ["empty.memory_format", "empty_strided", "tril_indices", "triu_indices"]
MAKING += ["arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace"]
MAKING += ["randperm", "randperm.generator"]


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; `held` is its data, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "OnDevice":
        options = {"dtype": held.dtype, "layout": held.layout, "device": device}
        options |= {"strides": held.stride(), "storage_offset": held.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)
        tensor.held = held
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if Device.current is None:
            raise RuntimeError(
                f"{func} met a tensor of a pretended device that is gone"
            )
        return Device.current.run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: None = None) -> str:
        return f"{self.held!r} on {self.device}"

    def __format__(self, spec: str) -> str:
        if self.dim() == 0:
            return format(self.item(), spec)
        return super().__format__(spec)

    def __deepcopy__(self, memo: dict) -> "OnDevice":
        new = OnDevice(self.held.clone(), self.device)
        new.requires_grad_(self.requires_grad)
        new.__dict__ |= {k: v for k, v in vars(self).items() if k != "held"}
        new.grad = copy.deepcopy(self.grad, memo)
        return memo.setdefault(id(self), new)

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.held.__reduce_ex__(protocol)  # all files here are read to the CPU

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()  # its size and address, for those who count

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> None:
        if force:
            return self.cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use "
            "Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, dtype: object = None, copy: object = None) -> None:
        self.numpy()


class Device:
    """The device, pretended inside its context, and what was seen on it so far."""

    current: "Device | None" = None

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind, 0)
        self.generator = torch.Generator(kind)  # of what draws without one
        self.waits: list[str] = []  # "item at fmkit/train.py:46"
        self.copies: list[str] = []  # from the host, for which nothing waits

    def clear(self) -> None:
        """Forget what was seen so far."""
        self.waits.clear()
        self.copies.clear()

    def __enter__(self) -> "Device":
        assert Device.current is None, "one device is pretended at a time"
        self._kernels = torch.library.Library("aten", "IMPL", self.device.type.upper())
        for name in MAKING:
            packet, _, overload = name.partition(".")
            func = getattr(getattr(torch.ops.aten, packet), overload or "default")
            self._kernels.impl(name, functools.partial(self._made, func))
        Device.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Device.current = None
        self._kernels._destroy()

    def _made(self, func, *args, **kwargs) -> Tensor:
        return self.run(func, args, kwargs)

    def run(self, func, args: tuple, kwargs: dict) -> object:
        """Run an operator with tensors on the device, or that makes one there."""
        tensors = [*_tensors((args, tuple(kwargs.values())))]
        here = [x for x in tensors if type(x) is OnDevice]
        target = kwargs.get("device")
        stays = bool(here) if target is None else self._is_here(target)
        name = func.overloadpacket.__name__
        if name == "_fused_sdp_choice":
            return 0  # the one that is made of other operators
        self._watch(name, func, args, kwargs, tensors, here, stays)
        inner = {key: _held(value) for key, value in kwargs.items()}
        if target is not None:
            inner["device"] = "cpu" if stays else target
        generator = kwargs.get("generator")
        if generator is not None:
            inner["generator"] = None
        draws = torch.Tag.nondeterministic_seeded in func.tags or generator is not None
        with self._drawing(generator) if draws else nullcontext():
            out = func(*_held(args), **inner)
        return self._returned(func, args, kwargs, out, stays)

    def _is_here(self, target: torch.device | str | int) -> bool:
        return torch.device(target).type == self.device.type

    def _watch(self, name, func, args, kwargs, tensors, here, stays) -> None:
        """Refuse what the device refuses; record what waits and what is copied."""
        if name in COPYING:
            source = tensors[-1]  # of a copy in place; else the only one
            to_device = stays if name == "_to_copy" else type(tensors[0]) is OnDevice
            if (type(source) is OnDevice) != to_device:
                self._copied(to_device, waits=not _non_blocking(func, args, kwargs))
            return
        if name in INDEXING:
            self._index(name, args)
            return
        if name in WAITING:
            self.wait(WAITING[name])
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.wait(name)
        if name in NO_DATA or not here:
            return
        numbers = torch.Tag.pointwise in func.tags or name in TAKES_CPU_NUMBERS
        for x in tensors:
            if type(x) is not OnDevice and (x.dim() > 0 or not numbers):
                raise self._mixed(name)

    def _index(self, name: str, args: tuple) -> None:
        x, indices, *rest = args
        indices = [i for i in indices if i is not None]
        if type(x) is not OnDevice:
            if any(type(i) is OnDevice for i in indices):
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the "
                    "indexed tensor (cpu)"
                )
            raise self._mixed(name)
        value = rest[0] if rest else x
        number = type(value) is not OnDevice and value.dim() == 0
        if type(value) is not OnDevice and not number:
            raise self._mixed(name)
        accumulates = len(rest) > 1 and rest[1]
        for i in indices:
            if type(i) is not OnDevice:
                self._copied(True, waits=True)
            if i.dtype in (torch.bool, torch.uint8) and (not number or accumulates):
                self.wait("boolean index")

    def _mixed(self, name: str) -> RuntimeError:
        return RuntimeError(
            "Expected all tensors to be on the same device, but found at least two "
            f"devices, {self.device} and cpu! (in {name})"
        )

    def wait(self, what: str) -> None:
        """Record that the host waits for the device here."""
        self.waits.append(f"{what} at {_place()}")

    def _copied(self, to_device: bool, *, waits: bool) -> None:
        where = "to the device" if to_device else "to the host"
        (self.waits if waits else self.copies).append(f"copy {where} at {_place()}")

    @contextmanager
    def _drawing(self, generator: torch.Generator | None) -> Iterator[None]:
        """Let an operator that draws do so from the state of the right generator."""
        generator = self.generator if generator is None else generator
        if generator.device.type != self.device.type:
            raise RuntimeError(
                f"Expected a '{self.device.type}' device type for generator but found "
                f"'{generator.device.type}'"
            )
        cpu = torch.default_generator
        before = cpu.get_state()
        cpu.set_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(cpu.get_state())
            cpu.set_state(before)

    def _returned(self, func, args, kwargs, out, stays: bool):
        """Return what was written to as it is, and put what is new on the device."""
        written = _written(func)
        if not written:
            return self._put(out) if stays else out
        results = out if isinstance(out, (tuple, list)) else (out,)
        new = []
        for result, argument in zip(results, written, strict=True):
            if argument is None:
                new.append(self._put(result))
            else:
                position, name = argument
                old = kwargs[name] if name in kwargs else args[position]
                assert old.shape == result.shape, f"{func} changes a shape in place"
                new.append(old)
        return new[0] if len(func._schema.returns) == 1 else tuple(new)

    def _put(self, out: object) -> object:
        """Put results on the device. Raises TypeError for float64 on MPS."""
        if isinstance(out, (tuple, list)):
            return type(out)(self._put(x) for x in out)
        if not isinstance(out, Tensor) or type(out) is OnDevice:
            return out
        if self.device.type == "mps" and out.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework "
                "doesn't support float64. Please use float32 instead."
            )
        return OnDevice(out, self.device)


def _tensors(values: Iterable) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _held(value: object) -> object:
    """Replace tensors on the device by those that they hold, in lists too."""
    if type(value) is OnDevice:
        return value.held
    if isinstance(value, (tuple, list)):
        return type(value)(_held(x) for x in value)
    return value


@functools.cache
def _written(func) -> list[tuple[int, str] | None]:
    """Return for each result the argument that it is; empty if all are new."""
    arguments, found = func._schema.arguments, []
    for result in func._schema.returns:
        info, same = result.alias_info, None
        if info is not None and info.is_write:
            [same] = [
                (position, argument.name)
                for position, argument in enumerate(arguments)
                if argument.alias_info is not None
                and argument.alias_info.before_set == info.before_set
            ]
        found.append(same)
    return found if any(found) else []


@functools.cache
def _position(func, name: str) -> int:
    return [argument.name for argument in func._schema.arguments].index(name)


def _non_blocking(func, args: tuple, kwargs: dict) -> bool:
    """Tell whether a copy was asked not to wait."""
    position = _position(func, "non_blocking")
    return kwargs.get("non_blocking", args[position] if position < len(args) else False)


def _place() -> str:
    """Return the line of the repository, or of a chapter's cell, that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<cell"):
            return f"{name}:{frame.f_lineno}"
        ours = name.startswith(str(ROOT)) and not name.startswith(HERE)
        if ours and "site-packages" not in name:
            return f"{Path(name).relative_to(ROOT).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the repository, or in a backward pass"  # which has its own thread
