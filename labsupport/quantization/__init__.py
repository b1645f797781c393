"""Chapter 1, quantization: one algorithm a file. Names below are imported when first used, so this import is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labsupport.lazy import lazy_names

if TYPE_CHECKING:
    from labsupport.quantization.affine import QParams, choose_qparams, dequantize, fake_quantize, quantize
    from labsupport.quantization.awq import awq_quantize
    from labsupport.quantization.fp8 import (
        FP8Tensor,
        fp8_codes,
        fp8_dequantize,
        fp8_fake_quantize,
        fp8_format,
        fp8_quantize,
    )
    from labsupport.quantization.gptq import gptq_quantize
    from labsupport.quantization.linear import (
        DynamicQuantizedLinear,
        Int4WeightLinear,
        Int8WeightLinear,
        StaticQuantizedLinear,
    )
    from labsupport.quantization.model import quantize_model
    from labsupport.quantization.observers import (
        MinMaxObserver,
        MovingAverageObserver,
        MSEObserver,
        PercentileObserver,
    )
    from labsupport.quantization.qat import LSQQuantizer, QATLinear, lsq_fake_quantize, train_qat
    from labsupport.quantization.qweight import QuantizedWeight
    from labsupport.quantization.rtn import rtn_quantize
    from labsupport.quantization.size import (
        PUBLISHED_CONFIGS,
        count_parameters,
        format_bytes,
        inference_memory,
        quantized_bits_per_weight,
        training_memory,
    )
    from labsupport.quantization.smoothquant import smooth_model

_SUBMODULES = {
    "affine": ("QParams", "choose_qparams", "dequantize", "fake_quantize", "quantize"),
    "awq": ("awq_quantize",),
    "fp8": ("FP8Tensor", "fp8_codes", "fp8_dequantize", "fp8_fake_quantize", "fp8_format", "fp8_quantize"),
    "gptq": ("gptq_quantize",),
    "linear": ("DynamicQuantizedLinear", "Int4WeightLinear", "Int8WeightLinear", "StaticQuantizedLinear"),
    "model": ("quantize_model",),
    "observers": ("MSEObserver", "MinMaxObserver", "MovingAverageObserver", "PercentileObserver"),
    "qat": ("LSQQuantizer", "QATLinear", "lsq_fake_quantize", "train_qat"),
    "qweight": ("QuantizedWeight",),
    "rtn": ("rtn_quantize",),
    "size": (
        "PUBLISHED_CONFIGS",
        "count_parameters",
        "format_bytes",
        "inference_memory",
        "quantized_bits_per_weight",
        "training_memory",
    ),
    "smoothquant": ("smooth_model",),
}
_SUBMODULE_OF = {name: submodule for submodule, names in _SUBMODULES.items() for name in names}

__all__ = [
    "PUBLISHED_CONFIGS",
    "DynamicQuantizedLinear",
    "FP8Tensor",
    "Int4WeightLinear",
    "Int8WeightLinear",
    "LSQQuantizer",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "PercentileObserver",
    "QATLinear",
    "QParams",
    "QuantizedWeight",
    "StaticQuantizedLinear",
    "awq_quantize",
    "choose_qparams",
    "count_parameters",
    "dequantize",
    "fake_quantize",
    "format_bytes",
    "fp8_codes",
    "fp8_dequantize",
    "fp8_fake_quantize",
    "fp8_format",
    "fp8_quantize",
    "gptq_quantize",
    "inference_memory",
    "lsq_fake_quantize",
    "quantize",
    "quantize_model",
    "quantized_bits_per_weight",
    "rtn_quantize",
    "smooth_model",
    "train_qat",
    "training_memory",
]

__getattr__, __dir__ = lazy_names(globals(), _SUBMODULE_OF)
