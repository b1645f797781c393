"""Format ``compressed-tensors``: what vLLM reads natively, and transformers with the library of that name.

Weights of 4 or 8 bits (``pack-quantized``), for a layer of shape [out, in] with ``bits`` b:

    weight_packed      int32 [out, in b/32]      codes, the first in the lowest bits
    weight_scale       float16 [out, groups]     or what ``dtype`` says
    weight_shape       int64 [2]
    weight_zero_point  int32 [out b/32, groups]  asymmetric only; packed along out
    weight_g_idx       int32 [in]                each column's group; read, but not written: dropped

The library's codes are signed; packed, 2^(b-1) is added to them, which makes them our unsigned ones. Weights and
activations of 8 bits (``int-quantized``): ``weight`` int8 [out, in], ``weight_scale`` [out, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checkpoints.layers import (
    as_float,
    blocks_prefix,
    integer_layers,
    is_symmetric,
    linear_names,
    other_weights,
    pack_words,
    unpack_words,
    weights_of,
)
from labsupport.lm.model import Llama
from labsupport.quantization.layers.choice import linear_for
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.quantization.qweight import QuantizedWeight

NAME = "compressed-tensors"


def tensors(model: Llama, dtype: torch.dtype | None = torch.float16) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What model.safetensors holds, and the ``quantization_config``.

    Raises:
        ValueError: what the format cannot hold.
    """
    layers = integer_layers(model)
    found = other_weights(model, dtype)
    if layers and all(isinstance(layer, DynamicQuantizedLinear) for layer in layers.values()):
        if "lm_head" in layers:
            raise ValueError(f"format {NAME} cannot hold a quantized head that vLLM reads: leave head_bits out")
        for name, layer in layers.items():
            found[f"{blocks_prefix(name)}.weight"] = layer.weight.contiguous()
            found[f"{blocks_prefix(name)}.weight_scale"] = as_float(layer.weight_scale[:, None], dtype)
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return found, _config(model, layers, "int-quantized", {"num_bits": 8, "strategy": "channel"}, True, inputs)
    about: dict[str, Any] = {}
    symmetric = True
    for name, _, weight in weights_of(model, NAME):
        if weight.bits not in (4, 8):
            raise ValueError(f"format {NAME} is for 4 or 8 bits; {name} has {weight.bits}: take format labsupport")
        if weight.group_index is not None:
            raise ValueError(
                f"format {NAME} has dropped dynamic groups, which {name} has: give static_groups=True, or take gptq"
            )
        symmetric = symmetric and is_symmetric(weight)
        grouped = weight.scale.shape[1] > 1
        size = {"strategy": "group", "group_size": weight.group_size} if grouped else {"strategy": "channel"}
        about = {"num_bits": weight.bits} | size
    for name, _, weight in weights_of(model, NAME):
        found |= {f"{blocks_prefix(name)}.{key}": value for key, value in _packed(weight, symmetric, dtype).items()}
    if not about:
        raise ValueError(f"format {NAME} is for quantized models; this one has float weights: take huggingface")
    return found, _config(model, layers, "pack-quantized", about, symmetric, None)


def _packed(weight: QuantizedWeight, symmetric: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
    found = {
        "weight_packed": pack_words(weight.codes(), weight.bits),
        "weight_scale": weight.scale.to(dtype or torch.float16).contiguous(),  # the dtype of the weight, once unpacked
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        found["weight_zero_point"] = pack_words(weight.zero_point.T, weight.bits).T.contiguous()
    return found


def _config(
    model: Llama, layers: dict[str, Any], kind: str, weights: dict[str, Any], symmetric: bool, inputs: Any
) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": weights | {"type": "int", "symmetric": symmetric, "dynamic": False},
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed",
        "ignore": [blocks_prefix(name) for name in linear_names(model) if name not in layers],
        "config_groups": {"group_0": group},
    }  # fmt: skip


def read_layers(model: Llama, weights: dict[str, Tensor], quantization: dict[str, Any]) -> dict[str, IntegerLinear]:
    """The quantized layers; their tensors are taken out of ``weights``.

    Raises:
        ValueError: another format of this library, or a layer that is not complete.
    """
    groups = list(quantization.get("config_groups", {}).values())
    kind = quantization.get("format")
    if kind not in ("pack-quantized", "int-quantized") or len(groups) != 1:
        raise ValueError(
            f"config.json: compressed-tensors must have format pack-quantized or int-quantized and one group; "
            f"got {kind!r} and {len(groups)}"
        )
    scheme, inputs = groups[0]["weights"], groups[0].get("input_activations")
    dynamic = inputs is None or (inputs.get("num_bits") == 8 and inputs.get("type") == "int" and inputs.get("dynamic"))
    if scheme.get("type") != "int" or scheme["num_bits"] not in (4, 8) or not dynamic:
        raise ValueError(
            f"config.json: compressed-tensors must have 4- or 8-bit integers, activations float or 8-bit per token; "
            f"got weights {scheme}, input_activations {inputs}"
        )
    layers: dict[str, IntegerLinear] = {}
    for name in linear_names(model):
        own = {key: f"{name}.{key}" for key in ("weight_packed", "weight", "weight_scale")}
        if own["weight_scale"] not in weights:
            continue
        scale, bias = weights.pop(own["weight_scale"]).float(), weights.pop(f"{name}.bias", None)
        if own["weight_packed"] not in weights:
            layers[name] = DynamicQuantizedLinear(weights.pop(own["weight"]), scale.flatten(), bias)
            continue
        bits = scheme["num_bits"]
        out_features, in_features = weights.pop(f"{name}.weight_shape").tolist()
        codes = unpack_words(weights.pop(own["weight_packed"]), bits, in_features)
        zeros = weights.pop(f"{name}.weight_zero_point", None)
        if zeros is None:
            zero_point = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.int32)
        else:
            zero_point = unpack_words(zeros.T.contiguous(), bits, out_features).T.to(torch.int32)
        size = in_features // scale.shape[1]
        index = weights.pop(f"{name}.weight_g_idx", None)
        weight = QuantizedWeight.from_codes(codes, scale, zero_point, bits, size, index)
        layers[name] = linear_for(weight, bias)
    return layers


def describe(quantization: dict[str, Any]) -> str:
    group = next(iter(quantization["config_groups"].values()))
    both = "weights and activations" if group.get("input_activations") else "weights"
    return f"{group['weights']['num_bits']}-bit {both} (compressed-tensors)"
