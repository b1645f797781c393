"""Packed weights of 2 to 8 bits, for which there is no kernel; float activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.quantization.qweight import QuantizedWeight


class QuantizedLinear(IntegerLinear):
    """Any QuantizedWeight. It is dequantized at each call and kept packed: small in memory, slower than float.

    The buffers are the weight's own tensors: packed, scale, packed_zero_point and, if present, group_index and
    input_scale.
    """

    _owned = ("packed", "scale", "packed_zero_point", "group_index", "input_scale")

    def __init__(self, weight: QuantizedWeight, bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self.bits, self.group_size = weight.bits, weight.group_size
        for name in self._owned:
            self.register_buffer(name, getattr(weight, name))

    def quantized_weight(self) -> QuantizedWeight:
        shape = (self.out_features, self.in_features)
        tensors = {name: getattr(self, name) for name in self._owned}
        return QuantizedWeight(**tensors, bits=self.bits, group_size=self.group_size, shape=shape)

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.quantized_weight().dequantize()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}"

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return F.linear(x, self.dequantize().to(x.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._unpack()
        # The checkpoint decides which optional tensors exist, and whether scales are float16 or float32.
        for name in self._owned:
            given, mine = state_dict.get(prefix + name), self._buffers[name]
            if given is None and name in ("group_index", "input_scale"):
                self._buffers[name] = None
            elif given is not None and (mine is None or mine.dtype != given.dtype):
                self._buffers[name] = torch.empty_like(given, device=self.packed.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
