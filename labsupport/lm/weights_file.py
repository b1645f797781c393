"""The tensors of a checkpoint folder, checked against the model that they are for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_RECOMPUTED = ("rotary_emb.inv_freq",)  # old checkpoints store what config.json says


def read_weights(folder: Path, record: Mapping[str, Any] = {}) -> dict[str, Tensor]:
    """All tensors, without the prefix ``model.``.

    Raises:
        ValueError: there are no safetensors, or they are broken, or not those that ``record`` says.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        files = [single]
    elif index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(shards))]
    else:
        raise ValueError(_nothing_to_read(folder))
    if "bytes" in record and single.stat().st_size != record["bytes"]:
        raise ValueError(
            f"{single.name} in {folder.name} has {single.stat().st_size:,} bytes where {record['bytes']:,} were "
            f"written: delete the folder and load again"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{file.name} in {folder.name} is missing or broken: {error}") from error
    found = {name.removeprefix("model."): value for name, value in weights.items()}
    return {name: value for name, value in found.items() if not name.endswith(_RECOMPUTED)}


def _nothing_to_read(folder: Path) -> str:
    names = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in names:
        return (
            f"{folder.name} holds an adapter (LoRA), not a model: merge it first, with PEFT's "
            f"model.merge_and_unload().save_pretrained(folder)"
        )
    if any(name.startswith("pytorch_model") for name in names):
        return (
            f"{folder.name} holds pytorch_model.bin, which can run code when it is read: convert it to safetensors, "
            f"with transformers' AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    if any(name.endswith(".gguf") for name in names):
        return f"{folder.name} holds a GGUF file, which llama.cpp reads: the folder must hold model.safetensors"
    return f"folder must hold model.safetensors; {folder.name} holds neither that nor an index of shards"


def load_into(model: nn.Module, weights: Mapping[str, Tensor], done: Iterable[str], folder: str) -> None:
    """The float tensors of ``weights`` as the parameters of ``model``, which must be complete with the layers ``done``.

    Raises:
        ValueError: names or shapes are not the model's; the message has the first few.
    """
    own, ready = model.state_dict(), tuple(f"{name}." for name in done)
    wanted = {name: tensor.shape for name, tensor in own.items() if not name.startswith(ready)}
    wrong = [
        *(f"{name} is missing" for name in wanted if name not in weights),
        *(f"{name} is not the model's" for name in weights if name not in wanted),
        *(
            f"{name} has shape {list(weights[name].shape)} where {list(shape)} is described"
            for name, shape in wanted.items()
            if name in weights and weights[name].shape != shape
        ),
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more like this" if len(wrong) > 3 else ""
        raise ValueError(
            f"folder {folder} does not hold the weights that its config.json describes: {'; '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(dict(weights), strict=False, assign=True)


def as_dtype(name: str, value: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """
    Raises:
        ValueError: the tensor is no ordinary float tensor, or has values beyond the range of ``dtype``.
    """
    if value.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        kind = str(value.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} is stored as {kind}, and config.json has no quantization_config that says with which scale"
        )
    converted = value.to(device, dtype)
    largest = torch.finfo(dtype).max
    if largest < torch.finfo(value.dtype).max and not converted.isfinite().all() and value.isfinite().all():
        raise ValueError(
            f"{name} has values beyond {largest:,.0f}, the range of {str(dtype).removeprefix('torch.')}: "
            f"load with dtype=torch.bfloat16 or torch.float32"
        )
    return converted
