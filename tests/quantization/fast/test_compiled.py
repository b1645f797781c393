"""What the compiled kernels share: several threads give what one gives."""

from __future__ import annotations

import pytest
import torch

from labsupport.quantization.fast import probes
from labsupport.quantization.fast.int4 import Int4Numba
from labsupport.quantization.fast.int8_weight import Int8Numba
from labsupport.quantization.rtn import rtn_quantize

needs_numba = pytest.mark.skipif(not probes.has_numba(), reason="Numba is not installed")


def integers(*shape, low=-128, high=127, seed=0):
    return torch.randint(low, high + 1, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_numba
def test_compiled_kernels_give_the_same_on_several_threads(monkeypatch):
    from labsupport.quantization.fast import compiled

    int8, scale, int4, x = integers(200, 64), floats(200).abs(), rtn_quantize(floats(200, 64), 4, 32), floats(3, 64)
    alone = Int8Numba(int8, scale)(x), Int4Numba(int4)(x)
    monkeypatch.setattr(compiled, "WEIGHTS_A_THREAD", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(Int8Numba(int8, scale)(x), alone[0])
    assert torch.equal(Int4Numba(int4)(x), alone[1])
