"""Format ``huggingface``: float weights for transformers; those of a quantized model are dequantized.

Layout: ``config.json`` and ``model.safetensors`` as transformers writes them. Activations that a layer rounds are
rounded no more: the file has the weights alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labsupport.checkpoints.layers import as_float, blocks_prefix, integer_layers, other_weights
from labsupport.lm.model import Llama


def tensors(model: Llama, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What model.safetensors holds; there is no ``quantization_config``."""
    found = other_weights(model, dtype)
    for name, layer in integer_layers(model).items():
        found[f"{blocks_prefix(name)}.weight"] = as_float(layer.dequantize(), dtype)
    return found, {}
