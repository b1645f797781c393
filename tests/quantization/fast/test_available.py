"""Which kernels are found here, and that everything still works without them."""

from __future__ import annotations

import torch

from labsupport.quantization.fast import probes
from labsupport.quantization.fast.available import available_kernels
from labsupport.quantization.fast.int4 import INT4_WEIGHT_KERNELS, Int4Cpu, int4_kernel
from labsupport.quantization.fast.int8 import INT8_KERNELS, Fbgemm, FloatMM, int8_kernel
from labsupport.quantization.fast.int8_weight import Dequantize, int8_weight_kernel
from labsupport.quantization.rtn import rtn_quantize

SOME_WEIGHT = torch.zeros(64, 64, dtype=torch.int8)
INT8_HERE = [kernel for kernel in INT8_KERNELS if kernel.supports(SOME_WEIGHT)]
INT4_HERE = [kernel for kernel in INT4_WEIGHT_KERNELS if kernel.supports(rtn_quantize(torch.ones(64, 64), 4, 32))]


def integers(*shape, low=-128, high=127, seed=0):
    return torch.randint(low, high + 1, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_kernels_of_pytorch_on_x86_are_found():
    """A broken kernel fails its probe, and would then be left out of every test here."""
    if "fbgemm" in torch.backends.quantized.supported_engines and torch.cpu._is_avx2_supported():
        assert Fbgemm in INT8_HERE
        assert Int4Cpu in INT4_HERE


def test_without_private_operators_and_numba_everything_still_works(monkeypatch):
    """A later PyTorch may drop each of the operators; a probe that fails must lead to the next entry of the table."""
    monkeypatch.setattr(probes, "_PROBED", {})
    monkeypatch.setattr(probes, "has_numba", lambda: False)
    monkeypatch.setattr(torch, "_make_per_tensor_quantized_tensor", None)
    monkeypatch.setattr(torch, "_int_mm", None)
    monkeypatch.setattr(torch.ops, "aten", object())
    weight = integers(64, 64)
    assert isinstance(int8_kernel(weight), FloatMM)
    assert isinstance(int8_weight_kernel(weight, torch.ones(64)), Dequantize)
    assert int4_kernel(rtn_quantize(floats(64, 64), 4, 32)) is None
    assert set(available_kernels().values()) == {"FloatMM", "Dequantize"}


def test_an_operator_that_gives_wrong_answers_is_not_used(monkeypatch):
    monkeypatch.setattr(probes, "_PROBED", {})
    monkeypatch.setattr(Fbgemm, "__call__", lambda self, x: torch.zeros(x.shape[0], 8))
    assert not Fbgemm.supports(SOME_WEIGHT)


def test_available_kernels_names_one_a_job():
    names = available_kernels()
    assert set(names) == {"int8 weights and activations", "int8 weights", "int4 weights"}
    assert names["int8 weights and activations"] in {kernel.__name__ for kernel in INT8_HERE}
