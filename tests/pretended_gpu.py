"""A GPU that is none: tensors that say they are elsewhere, keep their numbers on the CPU, and count what would wait.

PyTorch leaves one device, ``PrivateUse1``, to others. Here a Python class stands behind it. As on CUDA,

- an operator whose tensors lie on two devices is refused, unless the one on the CPU has no dimension; indices in square
  brackets may lie on the CPU;
- ``numpy()`` is refused;
- what makes the host wait for the device is counted, each time with the operator's name: reading a value (``item``,
  ``bool``, ``tolist``, ``cpu``), results whose shape depends on values (``nonzero``, boolean masks), and copies from
  the host that are not ``non_blocking`` (PyTorch waits for those: `torch.cuda.set_sync_debug_mode` names the same).
"""

from __future__ import annotations

import copy
import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "pretended"
aten = torch.ops.aten

# Results whose shape the host must know, or operators that look at their result; and how often they wait.
_WAIT = {
    "_local_scalar_dense": 1, "nonzero": 1, "masked_select": 1, "equal": 1, "is_nonzero": 1, "bincount": 1,
    "_unique2": 1, "unique_dim": 1, "unique_consecutive": 1, "multinomial": 2, "linalg_cholesky": 1, "linalg_inv": 1,
    "linalg_solve": 1,
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_FACTORIES = (
    "empty.memory_format", "empty_strided", "zeros", "ones", "full", "arange", "arange.start", "arange.start_step",
    "eye", "eye.m", "linspace", "rand", "rand.generator", "randn", "randn.generator", "randint", "randint.low",
    "randint.generator", "randint.low_generator", "randperm", "randperm.generator", "scalar_tensor",
)  # fmt: skip


class PretendedTensor(Tensor):
    """``_real`` holds the numbers."""

    _real: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: Tensor) -> PretendedTensor:
        wrapper = Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        wrapper._real = real
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        _check_devices(name, args, kwargs)
        _count(name, args, kwargs)
        given = [each for each in _tensors((args, *kwargs.values())) if isinstance(each, PretendedTensor)]
        target = _device_of(kwargs)
        stays = target is None or target.type == NAME
        if target is not None:
            kwargs["device"] = torch.device("cpu") if stays else target
        real_args = _map(_real, args)
        real_kwargs = {key: _map(_real, value) for key, value in kwargs.items()}
        result = func(*real_args, **real_kwargs)
        if name == "copy_" and not isinstance(args[0], PretendedTensor):
            return result
        owner = {id(each._real): each for each in given}
        for each in given:
            assert each.shape == each._real.shape, f"{name} changed a shape in place: give it an out of the right size"

        def wrap(each: Any) -> Any:
            if not isinstance(each, Tensor) or not stays:
                return each
            return owner[id(each)] if id(each) in owner else PretendedTensor(each)

        return _map(wrap, result)

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self._real = new._real  # type: ignore[attr-defined]

    def data_ptr(self) -> int:
        return self._real.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True
        copied.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k[0] != "_"})
        memo[id(self)] = copied
        return copied

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretended({self._real!r})"


def _tensors(given: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for each in given:
            yield from _tensors(each)


def _map(change: Callable[[Any], Any], given: Any) -> Any:
    """What is in nested tuples and lists, changed."""
    if isinstance(given, tuple | list):
        return type(given)([_map(change, each) for each in given])
    return change(given)


def _real(each: Any) -> Any:
    if isinstance(each, PretendedTensor):
        return each._real
    return torch.device("cpu") if isinstance(each, torch.device) and each.type == NAME else each


def _device_of(kwargs: dict[str, Any]) -> torch.device | None:
    return None if kwargs.get("device") is None else torch.device(kwargs["device"])


def _check_devices(name: str, args: Any, kwargs: Any) -> None:
    if name == "copy_" or name == "_to_copy":
        return
    checked = (args[0], *args[2:]) if name in _INDEXING else args
    for each in _tensors((checked, *kwargs.values())):
        if not isinstance(each, PretendedTensor) and each.dim() > 0:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and "
                f"{each.device}! ({name})"
            )
    if name.endswith("_") and not isinstance(args[0], PretendedTensor):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} would write to {args[0].device}")


class Waits:
    """Each time the host waited: the operator and the line of the program that called it."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def __len__(self) -> int:
        return len(self.places)


_COUNTERS: list[Waits] = []


@contextmanager
def waits() -> Iterator[Waits]:
    """Counts within the block."""
    counter = Waits()
    _COUNTERS.append(counter)
    try:
        yield counter
    finally:
        _COUNTERS.remove(counter)


def _count(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    if not _COUNTERS:
        return
    times = _WAIT.get(name, 0)
    if name == "copy_":
        blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        apart = isinstance(args[0], PretendedTensor) != isinstance(args[1], PretendedTensor)
        times = int(blocking and apart)
    elif name == "_to_copy":
        device = _device_of(kwargs)
        times = int(device is not None and device.type != NAME)  # even non_blocking: a result is wanted
    elif name in _INDEXING:
        indices = [each for each in args[1] if each is not None]
        masks = [each for each in indices if each.dtype in (torch.bool, torch.uint8)]
        filled = name != "index" and len(indices) == 1 and args[2].dim() == 0  # becomes masked_fill
        times = (0 if filled else len(masks)) + sum(not isinstance(each, PretendedTensor) for each in indices)
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        times = 1
    if times:
        stack = [each for each in traceback.extract_stack() if "/labsupport/" in each.filename]
        place = f"{name} at " + (f"{stack[-1].filename.split('/labsupport/')[-1]}:{stack[-1].lineno}" if stack else "?")
        for counter in _COUNTERS:
            counter.places += [place] * times


@functools.cache
def pretended_device() -> torch.device:
    """Makes the device known to PyTorch, once a process."""
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    for name in _FACTORIES:
        library.impl(name, functools.partial(_factory, name), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    _KEPT.append(library)
    return torch.device(NAME, 0)


_KEPT: list[Any] = []  # a library that is collected takes its operators with it


def _copy_from(source: Tensor, target: PretendedTensor, non_blocking: bool = False) -> PretendedTensor:
    """What ``torch.tensor(numbers, device=...)`` ends in, past the class above."""
    _count("copy_", (target, source), {"non_blocking": non_blocking})
    target._real.copy_(source)
    return target


def _factory(name: str, *args: Any, **kwargs: Any) -> PretendedTensor:
    packet, _, overload = name.partition(".")
    kwargs["device"], kwargs["pin_memory"] = torch.device("cpu"), None
    return PretendedTensor(getattr(getattr(aten, packet), overload or "default")(*args, **kwargs))
