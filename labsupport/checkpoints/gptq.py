"""Format ``gptq``: what the GPTQ authors' code and its successors (AutoGPTQ, gptqmodel) write; 2, 4 or 8 bits.

For a layer of shape [out, in] with ``bits`` b:

    qweight  int32 [in b/32, out]      codes, packed along in
    qzeros   int32 [groups, out b/32]  zero points, packed along out
    scales   float16 [groups, out]
    g_idx    int32 [in]                each column's group

Version 1 (``checkpoint_format: gptq``) stores the zero point minus one, and cannot say zero; version 2
(``gptq_v2``) stores it as it is. Symmetric grids are written as version 1, which everybody reads (vLLM reads no other),
asymmetric ones as version 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checkpoints.layers import (
    blocks_prefix,
    is_symmetric,
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

NAME = "gptq"


def tensors(model: Llama, dtype: torch.dtype | None = torch.float16) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What model.safetensors holds, and the ``quantization_config``.

    Raises:
        ValueError: what the format cannot hold.
    """
    found = other_weights(model, dtype)
    every = list(weights_of(model, NAME))
    if not every:
        raise ValueError(f"format {NAME} is for quantized models; this one has float weights: take huggingface")
    floats = [name for name in linear_names(model)[:-1] if name not in {each for each, _, _ in every}]
    if floats:
        raise ValueError(f"format {NAME} quantizes every layer of the blocks; {floats[0]} has float weights")
    symmetric = all(is_symmetric(weight) for _, _, weight in every)
    act_order = any(weight.group_index is not None for _, _, weight in every)
    for name, _, weight in every:
        if weight.bits not in (2, 4, 8):
            raise ValueError(f"format {NAME} is for 2, 4 or 8 bits; {name} has {weight.bits}: take format labsupport")
        if weight.shape[1] * weight.bits % 32 or weight.shape[0] * weight.bits % 32:
            raise ValueError(f"format {NAME} needs sizes that fill words of 32 bits; {name} is {weight.shape}")
        columns = torch.arange(weight.shape[1], dtype=torch.int32)
        index = columns // weight.group_size if weight.group_index is None else weight.group_index
        zero_point = weight.zero_point - 1 if symmetric else weight.zero_point
        found |= {
            f"{blocks_prefix(name)}.{key}": value.contiguous()
            for key, value in {
                "qweight": pack_words(weight.codes(), weight.bits).T,
                "qzeros": pack_words(zero_point.T, weight.bits),
                "scales": weight.scale.half().T,
                "g_idx": index.to(torch.int32),
            }.items()
        }
    weight = every[0][2]
    return found, {
        "quant_method": "gptq", "bits": weight.bits, "group_size": _size(weight), "desc_act": act_order,
        "sym": symmetric, "lm_head": False, "checkpoint_format": "gptq" if symmetric else "gptq_v2",
    }  # fmt: skip


def _size(weight: QuantizedWeight) -> int:
    return weight.group_size if weight.scale.shape[1] > 1 else -1


def read_layers(model: Llama, weights: dict[str, Tensor], quantization: dict[str, Any]) -> dict[str, IntegerLinear]:
    """The quantized layers; their tensors are taken out of ``weights``.

    Raises:
        ValueError: a number of bits or a version that is not read here.
    """
    bits, version = quantization["bits"], quantization.get("checkpoint_format", "gptq")
    if bits not in (2, 4, 8) or version not in ("gptq", "gptq_v2"):
        raise ValueError(
            f"config.json: gptq must have 2, 4 or 8 bits and checkpoint_format gptq or gptq_v2; "
            f"got {bits} and {version!r}"
        )
    layers: dict[str, IntegerLinear] = {}
    for name in linear_names(model):
        if f"{name}.qweight" not in weights:
            continue
        words, zeros, scales = (weights.pop(f"{name}.{key}") for key in ("qweight", "qzeros", "scales"))
        in_features, out_features = words.shape[0] * 32 // bits, words.shape[1]
        index = weights.pop(f"{name}.g_idx", None)
        zero_point = unpack_words(zeros, bits, out_features).to(torch.int32)
        if version == "gptq":
            zero_point = (zero_point + 1) % 2**bits
        size = in_features if quantization["group_size"] == -1 else quantization["group_size"]
        in_order = torch.arange(in_features, dtype=torch.int32) // size
        plain = index is None or torch.equal(index.cpu().to(torch.int32), in_order)
        weight = QuantizedWeight.from_codes(
            unpack_words(words.T.contiguous(), bits, in_features), scales.float().T.contiguous(),
            zero_point.T.contiguous(), bits, size, None if plain else index,
        )  # fmt: skip
        layers[name] = linear_for(weight, _bias(weights, name))
    return layers


def _bias(weights: dict[str, Tensor], name: str) -> Tensor | None:
    """None where it is all zeros: older writers gave every layer one."""
    bias = weights.pop(f"{name}.bias", None)
    return None if bias is None or not bias.any() else bias


def describe(quantization: dict[str, Any]) -> str:
    return f"{quantization['bits']}-bit weights (gptq)"
