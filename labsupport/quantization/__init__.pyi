from .affine import QParams, choose_qparams, dequantize, fake_quantize, quantize
from .awq import awq_quantize
from .fp8 import FP8Tensor, fp8_codes, fp8_dequantize, fp8_fake_quantize, fp8_format, fp8_quantize
from .gptq import gptq_quantize
from .layers.dynamic import DynamicQuantizedLinear
from .layers.int4_weight import Int4WeightLinear
from .layers.int8_weight import Int8WeightLinear
from .layers.static import StaticQuantizedLinear
from .model import quantize_model
from .observers import MinMaxObserver, MovingAverageObserver, MSEObserver, PercentileObserver
from .qat import LSQQuantizer, QATLinear, lsq_fake_quantize, train_qat
from .qweight import QuantizedWeight
from .rtn import rtn_quantize
from .size import (
    PUBLISHED_CONFIGS,
    count_parameters,
    format_bytes,
    inference_memory,
    quantized_bits_per_weight,
    training_memory,
)
from .smoothquant import smooth_model

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
