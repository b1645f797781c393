"""Which device computes, and in which precision, where nobody says otherwise; and waiting for it.

    device = choose_device()                    # "cuda", else "mps", else "cpu"
    lm = load_lm("tiny", device, choose_dtype(device))

Torch is imported when it is needed.
"""

from __future__ import annotations

import functools
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

AUTO = "auto"


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; None or "auto": a CUDA GPU, else Apple's (if float32 works there), else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name is None or name == AUTO:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if _mps_works() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise ValueError(f"device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def choose_dtype(device: str | torch.device, name: str | torch.dtype | None = None) -> torch.dtype:
    """The named precision; None or "auto": bfloat16 on GPUs that multiply it (compute capability 8.0 or later),
    float16 on older ones such as a T4, float32 everywhere else.

    Raises:
        ValueError: the name is no floating-point type of torch.
    """
    import torch

    if isinstance(name, torch.dtype):
        return name
    if name is not None and name != AUTO:
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ValueError(f"dtype must be auto, float32, float16 or bfloat16; got {name!r}")
        return found
    device = torch.device(device)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def describe(device: str | torch.device) -> str:
    """One line for readers: "cuda: NVIDIA T4, 15 GiB", "cpu: x86_64, 2 thread(s)"."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        return f"{device}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        return f"cpu: {platform.machine()}, {torch.get_num_threads()} thread(s)"
    return str(device)


def synchronize() -> None:
    """Wait until every GPU that this process uses has done what it was given; at once where there is none."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
    if torch.backends.mps.is_available():
        torch.mps.synchronize()


@functools.cache
def _mps_works() -> bool:
    """Whether Apple's GPU multiplies float32 as a CPU does."""
    import torch

    if not torch.backends.mps.is_available():
        return False
    try:
        x = torch.arange(12, dtype=torch.float32).view(3, 4)
        return torch.allclose((x.to("mps") @ x.to("mps").T).cpu(), x @ x.T)
    except RuntimeError:
        return False
