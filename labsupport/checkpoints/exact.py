"""Format ``labsupport``: any result of the course, exactly as it is in memory.

Layout: ``config.json`` as transformers writes it, and beside the usual keys

    "quantization_config": {"quant_method": "labsupport", "layers": {NAME: {"layer": CLASS, ...its sizes...}}}

``model.safetensors`` holds each layer's own buffers (``model.layers.0.self_attn.q_proj.packed``, ``.scale``, ...), and
all other weights as they are. A float model has no quantization_config: it is an ordinary Hugging Face folder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checkpoints.layers import blocks_prefix, integer_layers, other_weights
from labsupport.lm.model import Llama
from labsupport.quantization.layers.dynamic import DynamicQuantizedLinear
from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.int8_weight import Int8WeightLinear
from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.quantization.layers.packed import QuantizedLinear
from labsupport.quantization.layers.static import StaticQuantizedLinear
from labsupport.quantization.qweight import QuantizedWeight

_INT8 = {each.__name__: each for each in (DynamicQuantizedLinear, StaticQuantizedLinear, Int8WeightLinear)}
_PACKED = {each.__name__: each for each in (Int4WeightLinear, QuantizedLinear)}


def tensors(model: Llama, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What model.safetensors holds, and the ``quantization_config`` (empty for a float model)."""
    found = other_weights(model, dtype)
    layers: dict[str, dict[str, Any]] = {}
    for name, layer in integer_layers(model).items():
        layers[name] = about_layer(name, layer)
        found |= {f"{blocks_prefix(name)}.{key}": value.contiguous() for key, value in layer.state_dict().items()}
    return found, {"quant_method": "labsupport", "layers": layers} if layers else {}


def about_layer(name: str, layer: IntegerLinear) -> dict[str, Any]:
    """What config.json says of a layer."""
    about: dict[str, Any] = {"layer": type(layer).__name__}
    if isinstance(layer, QuantizedLinear):
        return about | {"bits": layer.bits, "group_size": layer.group_size, "in_features": layer.in_features}
    if type(layer).__name__ not in _INT8:
        raise ValueError(f"lm must hold layers that this package makes; {name} is a {type(layer).__name__}")
    return about


def read_layers(model: Any, weights: dict[str, Tensor], quantization: dict[str, Any]) -> dict[str, IntegerLinear]:
    """The quantized layers; their tensors are taken out of ``weights``."""
    layers: dict[str, IntegerLinear] = {}
    for name, about in quantization["layers"].items():
        own = {key: weights.pop(f"{name}.{key}") for key in _keys(weights, name)}
        try:
            layers[name] = _layer(own, about)
        except KeyError as error:
            raise ValueError(f"the checkpoint lacks {error} of {name}") from None
    return layers


def describe(quantization: dict[str, Any]) -> str:
    bits = {about.get("bits", 8) for about in quantization["layers"].values()}
    return f"{min(bits)}-bit integers" if len(bits) == 1 else f"{min(bits)}- to {max(bits)}-bit integers"


def _keys(weights: dict[str, Tensor], name: str) -> list[str]:
    return [key.removeprefix(f"{name}.") for key in weights if key.startswith(f"{name}.")]


def _layer(own: dict[str, Tensor], about: dict[str, Any]) -> IntegerLinear:
    bias = own.get("bias")
    if about["layer"] in _PACKED:
        shape = own["packed"].shape[0], about["in_features"]
        weight = QuantizedWeight(
            own["packed"], own["scale"], own["packed_zero_point"], about["bits"], about["group_size"], shape,
            own.get("group_index"), own.get("input_scale"),
        )  # fmt: skip
        return _PACKED[about["layer"]](weight, bias)
    layer = _INT8[about["layer"]](own["weight"], own["weight_scale"], bias)
    if isinstance(layer, StaticQuantizedLinear):
        layer.load_state_dict(own)
    return layer
