"""Packing loses nothing, wastes nothing, and has the layout it says it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.numerics.packing import pack, packed_size, unpack


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 8), st.integers(0, 3), st.integers(0, 70), st.integers(0, 2**31))
def test_round_trip_and_size(bits, rows, n, seed):
    codes = torch.randint(2**bits, (rows, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, -(-bits * n // 8))
    assert torch.equal(unpack(packed, bits, n), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 101])
def test_layout_is_a_little_endian_stream_of_bits(bits, n):
    codes = np.random.default_rng(n).integers(0, 2**bits, n, dtype=np.uint8)
    stream = np.unpackbits(codes[:, None], axis=1, bitorder="little", count=bits).ravel()
    assert pack(torch.from_numpy(codes), bits).numpy().tolist() == np.packbits(stream, bitorder="little").tolist()


def test_first_nibble_is_the_low_one():
    assert pack(torch.tensor([0x1, 0x2, 0xF], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F]


def test_every_code_in_every_place():
    for bits in range(2, 9):
        for place in range(16):
            codes = torch.zeros(2**bits, 16, dtype=torch.uint8)
            codes[:, place] = torch.arange(2**bits)
            assert torch.equal(unpack(pack(codes, bits), bits, 16), codes)


def test_leading_dimensions_and_copies():
    codes = torch.randint(16, (2, 3, 5), dtype=torch.uint8)
    assert pack(codes, 4).shape == (2, 3, 3)
    assert torch.equal(unpack(pack(codes, 4), 4, 5), codes)
    eight = pack(codes, 8)
    eight += 1
    assert not torch.equal(eight, codes)  # the caller's codes are its own


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(torch.tensor([16], dtype=torch.uint8), 4), r"codes must be below 2\*\*bits = 16, got 16"),
        (lambda: pack(torch.tensor([1]), 4), "codes must be uint8"),
        (lambda: pack(torch.tensor(1, dtype=torch.uint8), 4), "at least one dimension"),
        (lambda: pack(torch.tensor([1], dtype=torch.uint8), 9), "bits must be an integer from 2 to 8, got 9"),
        (lambda: unpack(torch.zeros(2, dtype=torch.uint8), 4, 5), "3 bytes per row for n = 5 codes of 4 bits, got 2"),
        (lambda: unpack(torch.zeros(2), 4, 4), "packed must be uint8"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_packed_size_rounds_up():
    assert [packed_size(n, 3) for n in (0, 1, 2, 3, 8, 576)] == [0, 1, 1, 2, 3, 216]
