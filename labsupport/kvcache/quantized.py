"""A contiguous cache of 8- or 4-bit integers, with a scale and a minimum for every token and head.

Held are codes 0..2**bits - 1 of x = minimum + scale · code over the head_dim values of one head of one token, two
codes a byte at 4 bits. A new token never changes the scale of an old one, so what is held is written once.

Keys have a few large channels, which one scale for all channels serves badly. KIVI (Liu et al. 2024, arXiv 2402.02750)
gives keys a scale a channel instead, for the price of a float window of the latest tokens. Here they are rotated, as in
QuaRot (Ashkboos et al. 2024, arXiv 2404.00456, section 4): a Hadamard matrix H spreads each channel over all, and since
it is orthogonal, (qH)·(kH) = q·k and (Σ p vH)H = Σ p v: queries are turned instead of keys turned back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from labsupport.kvcache.contiguous import KVCache, Step
from labsupport.lm import Cache, Llama
from labsupport.numerics.packing import pack, packed_size, unpack


class QuantizedKVCache(KVCache):
    """`KVCache` in ``bits`` = 8 or 4, ``rotate``d first or not.

    ``dtype`` is what attention reads; ``nbytes`` counts codes, scales and minima. All tokens are attended to as they
    are held, the newest too, so chunked and whole prefill agree.
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
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        if not self.rotate:
            return super().attend(layer_index, query, key, value)
        query, key, value = self._turn(query), self._turn(key), self._turn(value)
        return self._turn(super().attend(layer_index, query, key, value))

    def _turn(self, x: Float[Tensor, "*rows head_dim"]) -> Float[Tensor, "*rows head_dim"]:
        """x H, in pieces where head_dim is no power of two. H is symmetric: turning twice changes nothing."""
        return (x.unflatten(-1, (-1, len(self.hadamard))) @ self.hadamard.to(x.dtype)).flatten(-2)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._storage())

    def _allocate(self) -> None:
        shape = (2, self.num_layers, self.batch_size, self.num_kv_heads, self.capacity)
        size = packed_size(self.head_dim, self.bits)
        self.codes = torch.zeros(*shape, size, dtype=torch.uint8, device=self.device)
        self.scales = torch.zeros(*shape, 2, dtype=torch.float16, device=self.device)  # scale and minimum
        self.hadamard = hadamard(self.head_dim & -self.head_dim).to(self.device)  # the largest power of two in it

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


def hadamard(size: int) -> Float[Tensor, "size size"]:
    """The orthogonal matrix of entries ±1/sqrt(size), for a power of two (Sylvester's construction)."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), dim=1), torch.cat((matrix, -matrix), dim=1)))
    return matrix / size**0.5


def quantize_heads(
    x: Float[Tensor, "*rows head_dim"], bits: int
) -> tuple[UInt8[Tensor, "*rows bytes"], Float[Tensor, "*rows 2"]]:
    """Packed codes, and float16 [scale, minimum], a pair for each row. The error is at most about half a scale."""
    low, high = x.float().aminmax(dim=-1, keepdim=True)
    scales = torch.cat(((high - low) / (2**bits - 1), low), dim=-1)
    scales = scales.clamp(-65504, 65504).half()
    # codes for the scale as it is stored: its rounding then costs no more than a clipped end
    scale, minimum = scales.float().split(1, dim=-1)
    codes = ((x.float() - minimum) / scale.clamp(min=1e-7)).round_().clamp_(0, 2**bits - 1)
    return pack(codes.to(torch.uint8), bits), scales


def dequantize_heads(
    codes: UInt8[Tensor, "*rows bytes"], scales: Float[Tensor, "*rows 2"], bits: int, head_dim: int
) -> Float[Tensor, "*rows head_dim"]:
    """The inverse of `quantize_heads`, in float32."""
    scale, minimum = scales.float().split(1, dim=-1)
    return torch.addcmul(minimum, unpack(codes, bits, head_dim).float(), scale)


class WithFreshCache(nn.Module):
    """``model`` reading every batch through a new cache: what `labsupport.lm.perplexity` needs to judge a cache.

    ``make_cache(batch_size, time)`` gives the cache; ``chunk_size`` tokens are read at once (None: all).

        perplexity(WithFreshCache(model, partial(QuantizedKVCache.for_model, model, bits=4)), tokens)
    """

    def __init__(self, model: Llama, make_cache: Callable[[int, int], Cache], chunk_size: int | None = None) -> None:
        super().__init__()
        self.model, self.make_cache, self.chunk_size = model, make_cache, chunk_size

    @torch.no_grad()
    def forward(self, tokens: Int64[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        cache = self.make_cache(*tokens.shape)
        chunks = tokens.split(self.chunk_size or tokens.shape[1], dim=1)
        return torch.cat([self.model(chunk, cache) for chunk in chunks], dim=1)
