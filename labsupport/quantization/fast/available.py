"""Which kernels this machine has, by job: int8 (W8A8), int8_weight and int4 hold one table each."""

from __future__ import annotations

import torch

from labsupport.quantization.fast.int4 import int4_kernel
from labsupport.quantization.fast.int8 import int8_kernel
from labsupport.quantization.fast.int8_weight import int8_weight_kernel
from labsupport.quantization.qweight import QuantizedWeight


def available_kernels(device: str = "cpu") -> dict[str, str]:
    """The name of the kernel that each job gets on this machine, for a weight of ordinary shape."""
    codes = torch.zeros(64, 64, dtype=torch.uint8, device=device)
    ones = torch.ones(64, 1, device=device)
    int4 = QuantizedWeight.from_codes(codes, ones, torch.zeros_like(ones, dtype=torch.int32), bits=4, group_size=64)
    weight = codes.to(torch.int8)
    kernels = {
        "int8 weights and activations": int8_kernel(weight),
        "int8 weights": int8_weight_kernel(weight, ones[:, 0]),
        "int4 weights": int4_kernel(int4),
    }
    return {job: "Dequantize" if kernel is None else type(kernel).__name__ for job, kernel in kernels.items()}
