"""What this machine's processor and its PyTorch can do: instruction sets, Numba, and operators tried out once.

Operators that PyTorch does not promise to keep are tested against a known answer before they are used (`works`); where
that fails, the next kernel in the table takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# Above this many rows a matmul is limited by arithmetic, and dequantizing once is cheaper than unpacking for each row.
WEIGHT_ONLY_ROWS = 128


def has_vnni() -> bool:
    """AVX-512 VNNI: one instruction multiplies int8 and sums in 32 bits, without saturation."""
    return cpu_has("_is_vnni_supported")


@cache
def has_numba() -> bool:
    """Whether the kernels that Numba compiles can be imported."""
    try:
        from labsupport.quantization.fast import numba_int4, numba_int8  # noqa: F401
    except (ImportError, RuntimeError):  # missing, too old for the installed NumPy, or no place to cache compiled code
        return False
    return True


@cache
def has_triton() -> bool:
    """Whether there is a CUDA GPU, and Triton to compile for it (it comes with PyTorch's CUDA builds)."""
    return torch.cuda.is_available() and find_spec("triton") is not None


def avx2_at_most() -> bool:
    return cpu_has("_is_avx2_supported") and not cpu_has("_is_avx512_supported")


@cache
def cpu_has(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, lambda: False)())


_PROBED: dict[tuple[Any, ...], bool] = {}


def works(name: str, probe: Callable[..., bool], *arguments: Any) -> bool:
    """Whether an operator exists here and answers a small question correctly. Asked once per process."""
    key = (name, *arguments)
    if key not in _PROBED:
        try:
            _PROBED[key] = probe(*arguments)
        except (
            Exception
        ):  # gone, renamed, other arguments, not for this CPU: whatever the reason, the next kernel will do
            _PROBED[key] = False
    return _PROBED[key]


def worst_case(rows: int, value: int) -> Tensor:
    return torch.full((rows, 64), value, dtype=torch.int8)
