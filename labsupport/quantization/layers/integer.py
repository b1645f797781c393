"""What all layers with integer weights share: two forms of the weight, of which only one exists at a time.

Integers, scales and bias are buffers: they are in the state dict, follow `.to()`, and there is no float weight. The
state dict is the same on every machine. For inference only: no gradient flows through the integers.

Some kernels (quantization/fast) need the weight in a layout of their own. A layer packs it at its first call and gives
up its own copy, so the memory is never doubled; reading the buffers brings them back, and the next call packs again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_PACKING = threading.Lock()


class IntegerLinear(nn.Module):
    """A linear layer without a float weight. Subclasses name the buffers that a kernel may own."""

    _owned: tuple[str, ...] = ("weight",)

    def __init__(self, in_features: int, out_features: int, bias: Float[Tensor, " out"] | None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._kernel: Any = None

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        shape, dtype = x.shape, x.dtype  # every access counts: at batch 1 the matmul takes 10 microseconds
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
        """The buffers named in _owned, recovered from the kernel."""
        return {"weight": kernel.unpack()}

    def _packed_kernel(self) -> Any:
        kernel = self._kernel
        if kernel is None:
            with _PACKING:  # a server may call the model from several threads
                kernel = self._kernel
                if kernel is None:
                    kernel = self._make_kernel()
                    self._kernel = kernel
                    for name in self._owned if kernel.owns_weight else ():
                        # A stand-in with shape and dtype but no memory: sums over buffers() still count these bytes.
                        buffer = self._buffers[name]
                        self._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="meta")
        return kernel

    def _unpack(self) -> None:
        with _PACKING:
            kernel, self._kernel = self._kernel, None
            if kernel is not None and kernel.owns_weight:
                self._buffers.update(self._unpacked(kernel))

    # Every way to read or replace the buffers goes through one of the methods below.

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
            return fn(tensor.reshape(-1).view(torch.uint8)).view(tensor.dtype).view(tensor.shape)

        return super()._apply(keep_dtype, recurse)
