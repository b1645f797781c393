"""Packing: codes of 2 to 8 bits side by side in bytes, with nothing wasted between them.

A row of n codes is one stream of bits, lowest bit first: code i starts at bit i * bits. Two 4-bit codes share a byte,
the first in the low nibble; eight 3-bit codes take three bytes. A row takes ceil(n * bits / 8) bytes.
"""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import pad

from labsupport.numerics.checks import check_bits


def pack(codes: UInt8[Tensor, "*rows n"], bits: int, look: bool = True) -> UInt8[Tensor, "*rows bytes"]:
    """Codes below 2**bits as a dense stream of bits, row by row. ValueError if a code does not fit.

    look: False where the caller knows that they fit: looking makes the host wait for a GPU.
    """
    check_bits(bits)
    if codes.dtype != torch.uint8 or codes.dim() == 0:
        raise ValueError(f"codes must be uint8 with at least one dimension, got {codes.dtype} {list(codes.shape)}")
    if look and codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"codes must be below 2**bits = {2**bits}, got {int(codes.max())}")
    if bits == 8:
        return codes.clone()
    if 8 % bits == 0:
        return _combine(_blocks(codes, 8 // bits), bits).to(torch.uint8)
    # Eight codes of b bits fill b bytes exactly, and fit one 64-bit word.
    words = _combine(_blocks(codes, 8).long(), bits)
    return _split(words, 8, bits).to(torch.uint8).flatten(-2)[..., : packed_size(codes.shape[-1], bits)].contiguous()


def unpack(packed: UInt8[Tensor, "*rows bytes"], bits: int, n: int) -> UInt8[Tensor, "*rows n"]:
    """The n codes of each row. ValueError if the rows do not have the ceil(n * bits / 8) bytes that n codes take."""
    check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() == 0:
        raise ValueError(f"packed must be uint8 with at least one dimension, got {packed.dtype} {list(packed.shape)}")
    if n < 0 or packed.shape[-1] != packed_size(n, bits):
        size = packed_size(n, bits)
        raise ValueError(
            f"packed must have {size} bytes per row for n = {n} codes of {bits} bits, got {packed.shape[-1]}"
        )
    if bits == 8:
        return packed.clone()
    if 8 % bits == 0:
        return _split(packed, bits, 8 // bits).flatten(-2)[..., :n].contiguous()
    words = _combine(_blocks(packed, bits).long(), 8)
    return _split(words, bits, 8).to(torch.uint8).flatten(-2)[..., :n].contiguous()


def packed_size(n: int, bits: int) -> int:
    """Bytes that a row of n codes takes."""
    return (n * bits + 7) // 8


def _blocks(values: Tensor, size: int) -> Tensor:
    """[..., n] -> [..., ceil(n / size), size], padded with zeros."""
    values = pad(values, (0, -values.shape[-1] % size))
    return values.unflatten(-1, (values.shape[-1] // size, size))


def _combine(values: Tensor, width: int) -> Tensor:
    """Fields of `width` bits along the last dimension -> one integer of the same dtype, first field lowest."""
    word = torch.zeros_like(values[..., 0])
    for i in range(values.shape[-1]):
        word |= values[..., i] << (i * width)
    return word


def _split(words: Tensor, width: int, count: int) -> Tensor:
    """The inverse of _combine: [...] -> [..., count]."""
    shifts = torch.arange(count, device=words.device, dtype=words.dtype) * width
    return (words.unsqueeze(-1) >> shifts) & (2**width - 1)
