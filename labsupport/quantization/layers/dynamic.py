"""int8 weights and activations (W8A8); one activation scale per token, taken from the token itself."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from labsupport.quantization.fast.int8 import Int8Kernel, IntMM, int8_kernel
from labsupport.quantization.fast.probes import has_numba, has_triton
from labsupport.quantization.int8 import in_steps, quantize_weight_int8
from labsupport.quantization.layers.int8 import Int8Linear


class DynamicQuantizedLinear(Int8Linear):
    """Every token is quantized with a scale of its own, so its result does not depend on the rest of the batch."""

    @classmethod
    def from_float(cls, linear: nn.Linear, saturation_free: bool = True, look: bool = True) -> DynamicQuantizedLinear:
        """Quantize the weight, one scale per output channel; see quantize_weight_int8."""
        return cls(*quantize_weight_int8(linear.weight, saturation_free, look), linear.bias)

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        if x.is_cuda and has_triton() and not IntMM.supports(self.weight):  # sizes that PyTorch's kernel refuses
            from labsupport.quantization.fast.triton_int8 import int8_matmul, quantize_tokens

            return int8_matmul(*quantize_tokens(x), self.weight, self.weight_scale, x.dtype)
        steps, scale = in_steps(x.float())
        sums, weight_scale = self._packed_kernel()(steps), self._buffers["weight_scale"]
        assert weight_scale is not None
        if x.device.type == "cpu" and has_numba():
            from labsupport.quantization.fast.numba_int8 import scale_rows_and_columns

            return scale_rows_and_columns(sums, scale, weight_scale)
        return sums.mul(scale).mul_(weight_scale)

    def _make_kernel(self) -> Int8Kernel:
        return int8_kernel(self.weight)
