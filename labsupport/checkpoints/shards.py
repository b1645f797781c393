"""A checkpoint in several files, one a layer, none of which needs the whole model in memory.

Layout: ``model-00001-of-00004.safetensors`` with embedding, last norm and head, one more for each layer, and
``model.safetensors.index.json``, which says where each tensor is: transformers' own layout of large models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from labsupport.lm.folder import write_json
from labsupport.lm.model import Llama

Tensors = Callable[[Any], tuple[dict[str, Tensor], dict[str, Any]]]  # of a format, without its dtype


class LayersDiffer(ValueError):
    """What the ``quantization_config`` says of all layers does not hold for each: only the whole model shows it."""


def write_shards(model: Llama, folder: Path, tensors: Tensors) -> tuple[set[str], dict[str, Any]]:
    """The names of all tensors, and the ``quantization_config``, which is that of the whole model.

    Raises:
        LayersDiffer: see there; what was written then is of no use.
        ValueError: as ``tensors``.
    """
    count = len(model.layers)
    where: dict[str, str] = {}
    quantization: dict[str, Any] = {}
    size = 0

    def write(number: int, found: dict[str, Tensor]) -> None:
        nonlocal size
        path = folder / f"model-{number:05}-of-{count + 1:05}.safetensors"
        save_file(each_its_own(found), path, {"format": "pt"})
        path.chmod((folder.stat().st_mode & 0o666) or 0o644)  # safetensors writes for the owner alone
        size += sum(value.numel() * value.element_size() for value in found.values())
        where.update({name: path.name for name in found})

    for index in range(count):
        part: Any = nn.Module()  # the model with one of its layers, under the layer's own name
        part.config, part.layers = model.config, nn.ModuleDict({str(index): model.layers[index]})
        if index == 0:  # what lies outside of the layers is written once
            part.embed_tokens, part.norm, part.lm_head = model.embed_tokens, model.norm, model.lm_head
        found, about = tensors(part)
        quantization = _joined(quantization, about)
        layer = {name: value for name, value in found.items() if name.startswith("model.layers.")}
        write(index + 2, layer)
        if index == 0:
            write(1, {name: value for name, value in found.items() if name not in layer})
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    return set(where), quantization


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Lists and dictionaries of both; all else must be the same."""
    joined = dict(first)
    for key, value in second.items():
        before = joined.get(key, value)
        if isinstance(value, dict) and isinstance(before, dict):
            joined[key] = _joined(before, value)
        elif isinstance(value, list) and isinstance(before, list):
            joined[key] = list(dict.fromkeys([*before, *value])) if _names(before + value) else value
        elif before == value:
            joined[key] = value
        else:
            raise LayersDiffer(f"layers differ in {key}: {before} and {value}")
    return joined


def _names(values: list[Any]) -> bool:
    return all(isinstance(each, str) for each in values)


def each_its_own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layers that share a Hessian share one order of columns, and safetensors writes no memory twice."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        value = value.detach().contiguous()
        found[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return found
