"""Format ``awq`` (GEMM): what AutoAWQ wrote; 4 bits, asymmetric.

For a layer of shape [out, in]:

    qweight  int32 [in, out/8]      codes of 8 neighbouring rows a word
    qzeros   int32 [groups, out/8]  zero points, the same way
    scales   float16 [groups, out]

The kernel it was made for wants the rows of a word in the order 0 2 4 6 1 3 5 7. AWQ's scales have been folded into the
layers before, so nothing of them is left to store.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checkpoints.layers import (
    blocks_prefix,
    linear_names,
    other_weights,
    pack_words,
    unpack_words,
    weights_of,
)
from labsupport.lm.model import Llama
from labsupport.quantization.layers.choice import linear_for
from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.quantization.qweight import QuantizedWeight

NAME = "awq"
_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


def tensors(model: Llama, dtype: torch.dtype | None = torch.float16) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What model.safetensors holds, and the ``quantization_config``.

    Raises:
        ValueError: what the format cannot hold.
    """
    found, floats = other_weights(model, dtype), set(linear_names(model))
    size = None
    for name, _, weight in weights_of(model, NAME):
        if weight.bits != 4:
            raise ValueError(f"format {NAME} is for 4 bits; {name} has {weight.bits}")
        if weight.group_index is not None:
            raise ValueError(f"format {NAME} has no order of columns for {name}: give static_groups=True, or take gptq")
        if weight.shape[0] % 8:
            raise ValueError(f"format {NAME} needs multiples of 8 outputs; {name} has {weight.shape[0]}")
        size = weight.group_size if weight.scale.shape[1] > 1 else -1
        floats.discard(name)
        found |= {
            f"{blocks_prefix(name)}.{key}": value.contiguous()
            for key, value in {
                "qweight": _pack(weight.codes().T), "qzeros": _pack(weight.zero_point.T),
                "scales": weight.scale.half().T,
            }.items()
        }  # fmt: skip
    if size is None:
        raise ValueError(f"format {NAME} is for quantized models; this one has float weights: take huggingface")
    return found, {
        "quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": sorted(map(blocks_prefix, floats)),
    }  # fmt: skip


def _pack(codes: Tensor) -> Tensor:
    return pack_words(codes.unflatten(-1, (-1, 8))[..., _ORDER].flatten(-2), 4)


def _unpack(words: Tensor) -> Tensor:
    codes = unpack_words(words, 4, words.shape[-1] * 8)
    return codes.unflatten(-1, (-1, 8))[..., _ORDER.argsort()].flatten(-2)


def read_layers(model: Llama, weights: dict[str, Tensor], quantization: dict[str, Any]) -> dict[str, IntegerLinear]:
    """The quantized layers; their tensors are taken out of ``weights``.

    Raises:
        ValueError: another version than GEMM, or other bits than 4.
    """
    version, bits = str(quantization.get("version", "gemm")).lower(), quantization.get("bits", 4)
    if version != "gemm" or bits != 4:
        raise ValueError(f"config.json: awq must have 4 bits and version gemm; got {bits} and {version!r}")
    layers: dict[str, IntegerLinear] = {}
    for name in linear_names(model):
        if f"{name}.qweight" not in weights:
            continue
        words, zeros, scales = (weights.pop(f"{name}.{key}") for key in ("qweight", "qzeros", "scales"))
        weight = QuantizedWeight.from_codes(
            _unpack(words).T.contiguous(), scales.float().T.contiguous(), _unpack(zeros).T.to(torch.int32).contiguous(),
            4, len(words) // len(scales),
        )  # fmt: skip
        layers[name] = linear_for(weight, weights.pop(f"{name}.bias", None))
    return layers


def describe(quantization: dict[str, Any]) -> str:
    return "4-bit weights (awq)"
