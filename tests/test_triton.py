"""The Triton kernels against the readable forms: in Triton's interpreter, which needs no GPU (`make test-triton`), or
compiled, on a CUDA GPU."""

# ruff: noqa: E402

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

pytestmark = [pytest.mark.triton, pytest.mark.gpu]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs Triton, and TRITON_INTERPRET=1 or a CUDA GPU: `make test-triton`", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"

import labsupport.kvcache.paged as paged
import labsupport.kvcache.quantized as quantized
from labsupport.kvcache.attention import PagedStep, block_by_block_attention
from labsupport.kvcache.quantized import dequantize_heads, quantize_heads
from labsupport.kvcache.triton_attention import paged_decode_attention
from labsupport.quantization.fast.triton_int4 import int4_matmul
from labsupport.quantization.fast.triton_int8 import int8_matmul, quantize_tokens
from labsupport.quantization.int8 import quantize_rows, quantize_weight_int8
from labsupport.quantization.rtn import rtn_quantize

# The models' own: of `tiny` and SmolLM2, and odd ones. (outputs, inputs)
SHAPES = [
    (192, 192),
    (64, 192),
    (512, 192),
    (192, 512),
    (576, 576),
    (1536, 576),
    (576, 1536),
    (5, 34),
    (33, 70),
    (1, 2),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_near(given: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """One rounding of the result in ``dtype``, and sums in another order."""
    bound = 2 * torch.finfo(dtype).eps * wanted.abs().max() + 1e-5
    assert given.dtype == dtype and (given.float() - wanted).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_int4(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for rows, group_size, symmetric in ((1, 64, False), (17, 32, True))[: 1 if shape[0] > 500 else 2]:
        weight = rtn_quantize(normal(*shape), 4, group_size, symmetric)
        x = normal(rows, shape[1], seed=1).to(dtype)
        given = int4_matmul(
            x, weight.packed, weight.scale, weight.zero_point.to(torch.uint8), weight.group_size + weight.group_size % 2
        )
        assert_near(given, x.float() @ weight.dequantize().T, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8(shape: tuple[int, int]) -> None:
    weight, scale = quantize_weight_int8(normal(*shape), saturation_free=False)
    for rows in (1, 16, 19, 65)[: 1 if shape[0] > 100 else 4]:
        x = normal(rows, shape[1], seed=rows)
        codes, steps = quantize_tokens(x.t().contiguous().t())  # not in order in memory
        expected_codes, expected_steps = quantize_rows(x)
        assert torch.allclose(steps, expected_steps, rtol=1e-6)
        assert (codes.float() - expected_codes).abs().max() <= 1  # on a border, the scales' last bit decides
        assert (codes.float() != expected_codes).float().mean() < 0.01
        sums = (codes.long() @ weight.long().T).double()  # exact
        wanted = (sums * steps.double() * scale.double()).float()
        assert_near(int8_matmul(codes, steps, weight, scale, torch.float16), wanted, torch.float16)
        assert torch.allclose(int8_matmul(codes, steps, weight, scale, torch.float32), wanted, rtol=1e-5, atol=1e-6)


def test_int8_sums_are_exact() -> None:
    ones = torch.full((16, 4096), 127, dtype=torch.int8, device=DEVICE)
    product = int8_matmul(ones, torch.ones(16, 1, device=DEVICE), ones, torch.ones(16, device=DEVICE), torch.float32)
    assert (product == 127 * 127 * 4096).all()


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(6, 2, 32), (9, 3, 64), (4, 4, 24), (5, 1, 16)])
@pytest.mark.parametrize(("bits", "block_size"), [(None, 16), (8, 16), (None, 4)])
def test_attention(num_heads: int, num_kv_heads: int, head_dim: int, bits: int | None, block_size: int) -> None:
    lengths, num_blocks = [1, block_size, 3 * block_size - 1, 2], 12
    keys, values = (normal(num_blocks, num_kv_heads, block_size, head_dim, seed=seed) for seed in (2, 3))
    tables = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(4)).view(4, 3).to(DEVICE)
    query = normal(4, num_heads, head_dim, seed=5)
    scales: list[Tensor] = []
    held = keys, values
    if bits is not None:
        (key_codes, key_scales), (value_codes, value_scales) = (quantize_heads(each, bits) for each in held)
        held, scales = (key_codes, value_codes), [key_scales, value_scales]
        keys, values = (dequantize_heads(*each, bits, head_dim) for each in zip(held, scales, strict=True))
    for dtype in (torch.float32, torch.float16):
        rows = query.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # as a batch comes: not in order in memory
        given = paged_decode_attention(rows, *held, tables, torch.tensor(lengths, device=DEVICE), *scales)
        for row, length in enumerate(lengths):
            exact = query[row].to(dtype).float()[:, None]
            wanted = block_by_block_attention(exact, keys, values, tables[row].tolist(), length)[:, 0]
            assert_near(given[row], wanted, dtype)


def test_bad_input_is_told() -> None:
    codes = torch.zeros(4, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="packed, scale and zero_point must be"):
        int4_matmul(normal(1, 16), codes, normal(4, 2), codes[:, :1], 16)
    with pytest.raises(ValueError, match="x and weight must be int8"):
        int8_matmul(normal(1, 8), normal(1, 1), codes.to(torch.int8), normal(4))
    with pytest.raises(ValueError, match="key_scales and value_scales must be given with uint8 codes"):
        blocks = torch.zeros(2, 1, 4, 8, dtype=torch.uint8)
        paged_decode_attention(normal(1, 2, 8), blocks, blocks, torch.zeros(1, 1).long(), torch.ones(1).long())


def test_caches_attend_by_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `by_kernel` chooses so."""
    tables = [[4, 1], [2, 0], [3, 5]]
    for cache in (
        paged.PagedKVCache(1, 6, 4, 2, 8, device=DEVICE, enable_prefix_caching=False),
        quantized.QuantizedPagedKVCache(1, 6, 4, 2, 8, device=DEVICE, enable_prefix_caching=False, bits=8),
    ):
        first = PagedStep.plan(tables, [0, 0, 0], [6, 3, 5], 6, 4, 2, 4, cache.device)
        cache.store(0, first, normal(3, 2, 6, 8), normal(3, 2, 6, 8, seed=1))
        step = PagedStep.plan(tables, [6, 3, 5], [1, 1, 1], 1, 4, 2, 4, cache.device)
        query, key, value = normal(3, 4, 1, 8, seed=2), normal(3, 2, 1, 8, seed=3), normal(3, 2, 1, 8, seed=4)
        found = []
        for chosen in (False, True):
            for module in (paged, quantized):
                monkeypatch.setattr(module, "by_kernel", lambda *_, chosen=chosen: chosen)
            found.append(cache.attend(0, step, query, key, value))
        wanted, given = found
        assert torch.allclose(given, wanted, atol=1e-5)
