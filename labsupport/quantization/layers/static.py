"""int8 weights and activations (W8A8); one activation scale for everything, calibrated beforehand."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from labsupport.quantization.affine import QParams
from labsupport.quantization.fast.int8 import Int8Kernel, int8_kernel
from labsupport.quantization.int8 import quantize_weight_int8
from labsupport.quantization.layers.int8 import Int8Linear
from labsupport.quantization.observers import MinMaxObserver, Observer


class StaticQuantizedLinear(Int8Linear):
    """The scale of the activations is fixed beforehand: nothing is measured at run time.

    Call `observe(x)` on calibration inputs, or give `qparams`; before either, forward raises RuntimeError. Inputs
    outside the calibrated range saturate, and small ones waste most of it: static is cheaper, not more accurate.

    input_scale: [1] float32, NaN before calibration; input_zero_point: [1] int32, of signed codes -128..127.
    """

    def __init__(
        self,
        weight: Int8[Tensor, "out in"],
        weight_scale: Float[Tensor, " out"],
        bias: Float[Tensor, " out"] | None = None,
        qparams: QParams | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(weight, weight_scale, bias)
        self.register_buffer("input_scale", torch.full((1,), torch.nan, device=weight.device))
        # int8 = code - 128 for unsigned codes: a zero point of -128 .. 127 covers signed ones as well.
        self.register_buffer("input_zero_point", torch.zeros(1, dtype=torch.int32, device=weight.device))
        self.observer = MinMaxObserver() if observer is None else observer
        if qparams is not None:
            self._set_qparams(qparams)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        qparams: QParams | None = None,
        observer: Observer | None = None,
        saturation_free: bool = True,
        look: bool = True,
    ) -> StaticQuantizedLinear:
        """qparams: the inputs' 8-bit grid with one scale, if known; observer: what `observe` feeds (MinMaxObserver)."""
        weight, scale = quantize_weight_int8(linear.weight, saturation_free, look)
        return cls(weight, scale, linear.bias, qparams, observer)

    def observe(self, x: Float[Tensor, "... in"]) -> None:
        """Take one batch of calibration inputs into account."""
        self.observer.observe(x)
        self._set_qparams(self.observer.qparams())

    def _set_qparams(self, qparams: QParams) -> None:
        if qparams.scale.numel() != 1 or qparams.bits != 8 or qparams.group_size is not None:
            raise ValueError(
                f"qparams must have 8 bits and one scale, got {qparams.bits} bits, scales {list(qparams.scale.shape)}"
            )
        self._unpack()
        self.input_scale.copy_(qparams.scale.reshape(1))
        self.input_zero_point.copy_(qparams.zero_point.reshape(1) - (0 if qparams.symmetric else 128))

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        kernel = self._packed_kernel()
        steps = (x.float() / self.input_scale).round_().add_(self.input_zero_point).clamp_(-128, 127)
        return (kernel(steps) - self._offset) * (self.input_scale * self.weight_scale)

    def _make_kernel(self) -> Int8Kernel:
        if torch.isnan(self.input_scale).any():
            raise RuntimeError("this layer is not calibrated: call observe(x) on sample inputs, or give qparams")
        # sum over i of w_i (code_i - zero_point): the second term is the same for every token.
        self._offset = self.weight.sum(1, dtype=torch.int32) * self.input_zero_point
        return int8_kernel(self.weight)
