"""Caches of 8- or 4-bit integers, contiguous and paged, with a scale and a minimum for every token and head.

The cache holds codes 0..2**bits - 1 of x = minimum + scale · code over the head_dim values of one head of one token,
two codes a byte at 4 bits. A new token never changes the scale of an old one, so each token is written once. All tokens
are attended to as they are held, the newest too, so prefill in chunks gives the same result as prefill in one pass.

Keys have a few large channels, and one scale for all channels serves the others badly. KIVI (Liu et al. 2024, arXiv
2402.02750) gives keys one scale a channel instead, at the price of a window of recent tokens kept as floats. Here keys
are rotated, as in QuaRot (Ashkboos et al. 2024, arXiv 2404.00456, section 4): a Hadamard matrix H spreads each channel
over all, and because it is orthogonal, (qH)·(kH) = q·k and (Σ p vH)H = Σ p v: queries are rotated, and keys never need
to be rotated back.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from labsupport.kvcache.attention import PagedStep, by_kernel
from labsupport.kvcache.contiguous import KVCache, Step
from labsupport.kvcache.grouped import grouped_attention
from labsupport.kvcache.paged import PagedKVCache
from labsupport.numerics.packing import pack, packed_size, unpack


class QuantizedKVCache(KVCache):
    """`KVCache` in ``bits`` = 8 or 4, ``rotate``d first or not.

    ``dtype`` is what attention reads; ``nbytes`` counts codes, scales and minima.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        bits: int = 8,
        rotate: bool = True,
    ) -> None:
        if bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8; got {bits}")
        self.bits, self.rotate = bits, rotate
        super().__init__(num_layers, batch_size, capacity, num_kv_heads, head_dim, dtype, device)

    @torch.no_grad()
    def attend(
        self,
        layer_index: int,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
        window: int | None = None,
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        if not self.rotate:
            return super().attend(layer_index, query, key, value, window)
        query, key, value = (rotate_heads(each, self.hadamard) for each in (query, key, value))
        return rotate_heads(super().attend(layer_index, query, key, value, window), self.hadamard)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._storage())

    def _allocate(self) -> None:
        shape = (2, self.num_layers, self.batch_size, self.num_kv_heads, self.capacity)
        size = packed_size(self.head_dim, self.bits)
        self.codes = torch.zeros(*shape, size, dtype=torch.uint8, device=self.device)
        self.scales = torch.zeros(*shape, 2, dtype=torch.float16, device=self.device)  # scale and minimum
        self.hadamard = hadamard_for(self.head_dim).to(self.device)

    def _storage(self) -> list[Tensor]:
        return [self.codes[0], self.codes[1], self.scales[0], self.scales[1]]

    def _empty_like(self, batch_size: int) -> Self:
        sizes = (self.num_layers, batch_size, self.capacity, self.num_kv_heads, self.head_dim)
        return type(self)(*sizes, self.dtype, self.device, self.bits, self.rotate)

    def _write(self, layer_index: int, key: Tensor, value: Tensor, step: Step) -> None:
        for which, new in enumerate((key, value)):
            codes, scales = quantize_heads(new, self.bits)
            step.store(self.codes[which, layer_index], codes)
            step.store(self.scales[which, layer_index], scales)

    def _read(self, layer_index: int, total: int) -> tuple[Tensor, Tensor]:
        codes, scales = self.codes[:, layer_index, :, :, :total], self.scales[:, layer_index, :, :, :total]
        key, value = dequantize_heads(codes, scales, self.bits, self.head_dim).to(self.dtype)
        return key, value


class QuantizedPagedKVCache(PagedKVCache):
    """`PagedKVCache` in ``bits`` = 8 or 4. Its blocks hold codes, scales and minima; keys and values are rotated."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        enable_prefix_caching: bool = True,
        bits: int = 8,
    ) -> None:
        if bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8; got {bits}")
        self.bits = bits
        super().__init__(num_layers, num_blocks, block_size, num_kv_heads, head_dim, dtype, device,
                         enable_prefix_caching)  # fmt: skip

    def read(
        self, seq_id: Hashable, layer_index: int
    ) -> tuple[Float[Tensor, "num_kv_heads length head_dim"], Float[Tensor, "num_kv_heads length head_dim"]]:
        """Copies of a sequence's keys and values in one layer, dequantized and rotated back."""
        key, value = super().read(seq_id, layer_index)
        return rotate_heads(key, self.hadamard), rotate_heads(value, self.hadamard)

    @torch.no_grad()
    def store(self, layer_index: int, step: PagedStep, key: Tensor, value: Tensor) -> None:
        for which, new in enumerate((key, value)):
            codes, scales = quantize_heads(rotate_heads(new, self.hadamard), self.bits)
            step.store(self.codes[layer_index, which], codes)
            step.store(self.scales[layer_index, which], scales)

    @torch.no_grad()
    def attend(
        self,
        layer_index: int,
        step: PagedStep,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None = None,
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        self.store(layer_index, step, key, value)
        if self.bits == 8 and by_kernel(step, query, window, self.block_size):
            from labsupport.kvcache.triton_attention import paged_decode_attention

            (keys, values), scales = self.codes[layer_index], self.scales[layer_index]
            rotated = rotate_heads(query, self.hadamard)[:, :, 0]
            context = paged_decode_attention(rotated, keys, values, step.table, step.lengths, *scales)
            return rotate_heads(context, self.hadamard)[:, :, None]
        key, value = (
            self._dequantize(*(step.gather(each[layer_index, which], len(query)) for each in self._storage()))
            for which in range(2)
        )  # [batch, num_kv_heads, total, head_dim]
        context = grouped_attention(rotate_heads(query, self.hadamard), key, value, *step.mask_within(window))
        return rotate_heads(context, self.hadamard)

    def read_blocks(
        self, layer_index: int, table: Int64[Tensor, " blocks"]
    ) -> tuple[Float[Tensor, "num_kv_heads slots head_dim"], Float[Tensor, "num_kv_heads slots head_dim"]]:
        """Dequantized, and still rotated."""
        codes, scales = (each[layer_index][:, table].transpose(1, 2).flatten(2, 3) for each in self._storage())
        key, value = self._dequantize(codes, scales)
        return key, value

    def _dequantize(self, codes: Tensor, scales: Tensor) -> Tensor:
        return dequantize_heads(codes, scales, self.bits, self.head_dim).to(self.dtype)

    def _allocate(self, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (self.num_layers, 2, self.num_blocks, self.num_kv_heads, self.block_size)
        self.codes = torch.zeros(*shape, packed_size(self.head_dim, self.bits), dtype=torch.uint8, device=device)
        self.scales = torch.zeros(*shape, 2, dtype=torch.float16, device=device)  # scale and minimum
        self.hadamard = hadamard_for(self.head_dim).to(device)
        self.dtype, self.device = dtype, self.codes.device

    def _storage(self) -> list[Tensor]:
        return [self.codes, self.scales]


def quantize_heads(
    x: Float[Tensor, "*rows head_dim"], bits: int
) -> tuple[UInt8[Tensor, "*rows bytes"], Float[Tensor, "*rows 2"]]:
    """Packed codes, and float16 [scale, minimum] for each row. The error is at most about half a scale."""
    low, high = x.float().aminmax(dim=-1, keepdim=True)
    scales = torch.cat(((high - low) / (2**bits - 1), low), dim=-1)
    scales = scales.clamp(-65504, 65504).half()
    # codes are computed with the scale as stored: rounding it to float16 then costs at most a clipped end
    scale, minimum = scales.float().split(1, dim=-1)
    codes = ((x.float() - minimum) / scale.clamp(min=1e-7)).round_().clamp_(0, 2**bits - 1)
    return pack(codes.to(torch.uint8), bits, look=False), scales


def dequantize_heads(
    codes: UInt8[Tensor, "*rows bytes"], scales: Float[Tensor, "*rows 2"], bits: int, head_dim: int
) -> Float[Tensor, "*rows head_dim"]:
    """The inverse of `quantize_heads`, in float32."""
    scale, minimum = scales.float().split(1, dim=-1)
    return torch.addcmul(minimum, unpack(codes, bits, head_dim).float(), scale)


def rotate_heads(
    x: Float[Tensor, "*rows head_dim"], hadamard: Float[Tensor, "size size"]
) -> Float[Tensor, "*rows head_dim"]:
    """x H, in pieces of ``size`` channels. H is symmetric and orthogonal: rotating twice changes nothing."""
    return (x.unflatten(-1, (-1, len(hadamard))) @ hadamard.to(x.dtype)).flatten(-2)


def hadamard_for(head_dim: int) -> Float[Tensor, "size size"]:
    """The orthogonal matrix of entries ±1/sqrt(size), the largest power of two that divides ``head_dim``.

    Sylvester's construction.
    """
    size = head_dim & -head_dim
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), dim=1), torch.cat((matrix, -matrix), dim=1)))
    return matrix / size**0.5
