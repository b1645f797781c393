"""Linear layers that store integers, and nothing but integers.

    DynamicQuantizedLinear   int8 weights and activations; one activation scale a token, taken from the token itself
    StaticQuantizedLinear    int8 weights and activations; one activation scale in all, calibrated beforehand
    Int8WeightLinear         int8 weights, float activations
    Int4WeightLinear         packed 4-bit weights with group scales and zero points, float activations
    QuantizedLinear          any QuantizedWeight, 2 to 8 bits; dequantizes at every call and keeps nothing

Integers, scales and bias are buffers: they are in the state dict, follow `.to()`, and there is no float weight. The
state dict is the same on every machine. For inference only: no gradient flows through the integers.

Some kernels (kernels.py) want the weight in a layout of their own. A layer packs it at its first call and gives up
its own copy, so the memory is never doubled; whoever reads the buffers gets them back, and the next call packs again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from labsupport.quantization.affine import QParams, choose_qparams
from labsupport.quantization.fast.kernels import (
    Int4Kernel,
    Int8Kernel,
    has_numba,
    int4_kernel,
    int8_kernel,
    int8_weight_kernel,
    saturation_free_limit,
)
from labsupport.quantization.observers import MinMaxObserver, Observer
from labsupport.quantization.qweight import QuantizedWeight

_PACKING = threading.Lock()


def quantize_weight_int8(
    weight: Float[Tensor, "out in"], saturation_free: bool = True
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, " out"]]:
    """Symmetric int8 with one scale a row: weight = codes * scale[:, None], to half a step.

    saturation_free: where necessary a slightly larger scale, so that AVX2 multiplies in one pass (kernels.Fbgemm).
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be floating point of shape [out, in], got {weight.dtype} {list(weight.shape)}")
    weight = weight.detach().float()
    scale = choose_qparams(weight, bits=8, symmetric=True, axis=0).scale
    if saturation_free:
        scale = torch.maximum(scale, saturation_free_limit(weight))
    return torch.round(weight / scale).clamp_(-127, 127).to(torch.int8), scale.squeeze(1)


def quantize_rows(x: Float[Tensor, "n in"]) -> tuple[Float[Tensor, "n in"], Float[Tensor, "n 1"]]:
    """Symmetric int8 with one scale a row: whole numbers in ±127 (as float32), and the scales."""
    steps, scale = _in_steps(x.float())
    return steps.round_(), scale


def _in_steps(x: Float[Tensor, "n in"]) -> tuple[Float[Tensor, "n in"], Float[Tensor, "n 1"]]:
    """The same before rounding, which the kernel does as well: at batch 1 each operator counts."""
    if x.device.type == "cpu" and has_numba():
        from labsupport.quantization.fast.numba_kernels import rows_in_steps

        return rows_in_steps(x)
    scale = x.abs().amax(1, keepdim=True).mul_(1 / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return x / scale, scale


class IntegerLinear(nn.Module):
    """What all of them share: the two forms of the weight. Subclasses name the buffers that a kernel may own."""

    _owned: tuple[str, ...] = ("weight",)

    def __init__(self, in_features: int, out_features: int, bias: Float[Tensor, " out"] | None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._kernel: Any = None

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        shape, dtype = x.shape, x.dtype  # each look at a tensor counts: at batch 1 the matmul takes 10 microseconds
        if shape[-1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} features in its last dimension, got {list(shape)}")
        if x.requires_grad:
            x = x.detach()
        out = self._matmul(x.reshape(-1, self.in_features))
        if out.dtype != dtype:
            out = out.to(dtype)
        bias = self._buffers["bias"]
        if bias is not None:
            out = out + bias.to(dtype)
        return out.view((*shape[:-1], self.out_features))

    def dequantize(self) -> Float[Tensor, "out in"]:
        """The float32 weight that the integers stand for."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored: integers, scales, zero points, bias."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        raise NotImplementedError

    def _make_kernel(self) -> Any:
        """A kernel made from the buffers."""
        raise NotImplementedError

    def _unpacked(self, kernel: Any) -> dict[str, Tensor | None]:
        """The buffers named in _owned, made from the kernel."""
        return {"weight": kernel.unpack()}

    def _packed_kernel(self) -> Any:
        kernel = self._kernel
        if kernel is None:
            with _PACKING:  # a server calls one model from several threads
                kernel = self._kernel
                if kernel is None:
                    kernel = self._make_kernel()
                    self._kernel = kernel
                    for name in self._owned if kernel.owns_weight else ():
                        # A stand-in with shape and type but no memory: sums over buffers() still count these bytes.
                        buffer = self._buffers[name]
                        self._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="meta")
        return kernel

    def _unpack(self) -> None:
        with _PACKING:
            kernel, self._kernel = self._kernel, None
            if kernel is not None and kernel.owns_weight:
                self._buffers.update(self._unpacked(kernel))

    # Every way to read or replace the buffers goes through one of these.

    def __getattr__(self, name: str) -> Any:
        if name in self._owned and self.__dict__.get("_kernel") is not None:
            self._unpack()
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:  # copy.deepcopy, pickle, torch.save
        self._unpack()
        return self.__dict__.copy()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._unpack()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IntegerLinear:
        """Scales follow `.to(device)` but not `.to(dtype)`: half precision cannot hold them. The bias follows both."""
        self._unpack()

        def keep_dtype(tensor: Tensor) -> Tensor:
            if tensor is self.bias or not tensor.is_floating_point():
                return fn(tensor)
            return fn(tensor.view(torch.uint8)).view(tensor.dtype)

        return super()._apply(keep_dtype, recurse)


class DynamicQuantizedLinear(IntegerLinear):
    """W8A8: every token is quantized with a scale of its own, so its result does not depend on its neighbours.

    weight: [out, in] int8; weight_scale: [out] float32.
    """

    def __init__(
        self,
        weight: Int8[Tensor, "out in"],
        weight_scale: Float[Tensor, " out"],
        bias: Float[Tensor, " out"] | None = None,
    ) -> None:
        _check_int8(weight, weight_scale)
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("weight_scale", weight_scale.float())

    @classmethod
    def from_float(cls, linear: nn.Linear, saturation_free: bool = True) -> DynamicQuantizedLinear:
        """Quantize the weight, one scale an output channel; see quantize_weight_int8."""
        return cls(*quantize_weight_int8(linear.weight, saturation_free), linear.bias)

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.weight.float() * self.weight_scale[:, None]

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        steps, scale = _in_steps(x.float())
        sums, weight_scale = self._packed_kernel()(steps), self._buffers["weight_scale"]
        assert weight_scale is not None
        if x.device.type == "cpu" and has_numba():
            from labsupport.quantization.fast.numba_kernels import scale_rows_and_columns

            return scale_rows_and_columns(sums, scale, weight_scale)
        return sums.mul(scale).mul_(weight_scale)

    def _make_kernel(self) -> Int8Kernel:
        return int8_kernel(self.weight)


class StaticQuantizedLinear(DynamicQuantizedLinear):
    """W8A8 with one activation scale for all tokens, fixed beforehand: nothing to measure at run time.

    Call `observe(x)` on calibration inputs, or give `qparams`; before either, forward raises RuntimeError. Inputs
    outside of the calibrated range saturate, and small ones waste most of it: static is cheaper, not more accurate.

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
    def from_float(  # type: ignore[override]
        cls,
        linear: nn.Linear,
        qparams: QParams | None = None,
        observer: Observer | None = None,
        saturation_free: bool = True,
    ) -> StaticQuantizedLinear:
        """qparams: 8-bit grid of the inputs with one scale, if known; observer: what `observe` uses (min and max)."""
        weight, scale = quantize_weight_int8(linear.weight, saturation_free)
        return cls(weight, scale, linear.bias, qparams, observer)

    def observe(self, x: Float[Tensor, "... in"]) -> None:
        """Take calibration inputs into account."""
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


class Int8WeightLinear(DynamicQuantizedLinear):
    """int8 weights, float activations: for decoding, where reading the weights is what takes the time."""

    @classmethod
    def from_float(cls, linear: nn.Linear, saturation_free: bool = False) -> Int8WeightLinear:
        return cls(*quantize_weight_int8(linear.weight, saturation_free), linear.bias)

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return self._packed_kernel()(x)

    def _make_kernel(self) -> Any:
        return int8_weight_kernel(self.weight, self.weight_scale)


class QuantizedLinear(IntegerLinear):
    """Any QuantizedWeight. The weight is dequantized at each call: small in memory, slower than float.

    The buffers are the weight's own tensors: packed, scale, packed_zero_point and, where there are, group_index and
    input_scale.
    """

    _owned = ("packed", "scale", "packed_zero_point", "group_index", "input_scale")

    def __init__(self, weight: QuantizedWeight, bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self.bits, self.group_size = weight.bits, weight.group_size
        for name in self._owned:
            self.register_buffer(name, getattr(weight, name))

    @classmethod
    def from_quantized(cls, weight: QuantizedWeight, bias: Float[Tensor, " out"] | None = None) -> QuantizedLinear:
        return cls(weight, bias)

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
        # The checkpoint decides which of the optional tensors there are, and whether scales are float16 or float32.
        for name in self._owned:
            given, mine = state_dict.get(prefix + name), self._buffers[name]
            if given is None and name in ("group_index", "input_scale"):
                self._buffers[name] = None
            elif given is not None and (mine is None or mine.dtype != given.dtype):
                self._buffers[name] = torch.empty_like(given, device=self.packed.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Int4WeightLinear(QuantizedLinear):
    """4-bit weights: half a byte a weight, the scales and zero points of the groups on top of it, float activations."""

    def __init__(self, weight: QuantizedWeight, bias: Float[Tensor, " out"] | None = None) -> None:
        if weight.bits != 4:
            raise ValueError(f"weight must have 4 bits, got {weight.bits}; QuantizedLinear takes 2 to 8")
        super().__init__(weight, bias)

    def _matmul(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return self._packed_kernel()(x)

    def _make_kernel(self) -> Any:
        weight = self.quantized_weight()
        if weight.group_index is None and weight.input_scale is None:
            kernel: Any = int4_kernel(weight)
        else:
            kernel = _Int4Columns.around(weight)
        return _Dequantizing(weight) if kernel is None else kernel

    def _unpacked(self, kernel: Any) -> dict[str, Tensor | None]:
        weight = kernel.unpack()
        return {name: getattr(weight, name) for name in self._owned}


@dataclass
class _Int4Columns:
    """A 4-bit kernel and what has to happen to its inputs: AWQ's division, GPTQ's order of columns."""

    kernel: Int4Kernel
    input_scale: Float[Tensor, " in"] | None
    group_index: Int[Tensor, " in"] | None
    order: Int[Tensor, " in"] | None  # columns of one group side by side

    owns_weight = True

    @classmethod
    def around(cls, weight: QuantizedWeight) -> _Int4Columns | None:
        """None where no kernel fits, or the groups are not of one size."""
        codes, order = weight.codes(), None
        if weight.group_index is not None:
            order = torch.argsort(weight.group_index, stable=True)
            consecutive = torch.arange(len(order), device=order.device) // weight.group_size
            if not torch.equal(weight.group_index[order].long(), consecutive):
                return None
            codes = codes[:, order]
        kernel = int4_kernel(QuantizedWeight.from_codes(codes, weight.scale, weight.zero_point, 4, weight.group_size))
        return None if kernel is None else cls(kernel, weight.input_scale, weight.group_index, order)

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        if self.input_scale is not None:
            x = x / self.input_scale
        return self.kernel(x if self.order is None else x[:, self.order])

    def unpack(self) -> QuantizedWeight:
        weight = self.kernel.unpack()
        codes = weight.codes()
        if self.order is not None:
            codes[:, self.order] = codes.clone()
        return QuantizedWeight.from_codes(
            codes, weight.scale, weight.zero_point, 4, weight.group_size, self.group_index, self.input_scale
        )


@dataclass
class _Dequantizing:
    """Where there is no kernel."""

    weight: QuantizedWeight

    owns_weight = False

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return F.linear(x, self.weight.dequantize().to(x.dtype))


def _check_int8(weight: Tensor, weight_scale: Tensor) -> None:
    if weight.dtype != torch.int8 or weight.dim() != 2:
        raise ValueError(f"weight must be int8 of shape [out, in], got {weight.dtype} {list(weight.shape)}")
    if tuple(weight_scale.shape) != (weight.shape[0],):
        raise ValueError(f"weight_scale must have shape [{weight.shape[0]}], got {list(weight_scale.shape)}")
