"""The tensors of a checkpoint folder, checked against the model that they are for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

_RECOMPUTED = ("rotary_emb.inv_freq",)  # old checkpoints store what config.json says


def read_weights(folder: Path, record: Mapping[str, Any] = {}) -> dict[str, Tensor]:
    """All tensors, without the prefix ``model.``.

    Raises:
        ValueError: there are no safetensors, or they are broken, or not those that ``record`` says.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder, record):
        with _named_if_broken(file):
            weights |= load_file(file)
    found = {name.removeprefix("model."): value for name, value in weights.items()}
    return {name: value for name, value in found.items() if not name.endswith(_RECOMPUTED)}


def stored_names(
    folder: Path, record: Mapping[str, Any] = {}
) -> tuple[dict[str, tuple[Path, str]], dict[str, torch.Size], torch.dtype]:
    """Of each tensor, by its name without the prefix ``model.``: its file and its name there, and its shape; and the
    first one's dtype. No tensor is read but that one."""
    stored: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, torch.Size] = {}
    kind = None
    for path in weight_files(folder, record):
        with _named_if_broken(path), safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                if not name.endswith(_RECOMPUTED):
                    own = name.removeprefix("model.")
                    stored[own] = path, name
                    shapes[own] = torch.Size(file.get_slice(name).get_shape())
                    kind = file.get_tensor(name).dtype if kind is None else kind
    assert kind is not None, "a file without tensors"
    return stored, shapes, kind


def weight_files(folder: Path, record: Mapping[str, Any] = {}) -> list[Path]:
    """
    Raises:
        ValueError: there are no safetensors, or not as many bytes as ``record`` says.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if "bytes" in record and single.is_file() and single.stat().st_size != record["bytes"]:
        raise ValueError(
            f"{single.name} in {folder.name} has {single.stat().st_size:,} bytes where {record['bytes']:,} were "
            f"written: delete the folder and load again"
        )
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(nothing_to_read(folder))
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(shards))]


@contextmanager
def _named_if_broken(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{file.name} in {file.parent.name} is missing or broken: {error}") from error


def nothing_to_read(folder: Path) -> str:
    """What to do with a folder that holds no safetensors."""
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
    check_names(wanted, {name: tensor.shape for name, tensor in weights.items()}, folder)
    model.load_state_dict(dict(weights), strict=False, assign=True)


def check_names(wanted: Mapping[str, torch.Size], found: Mapping[str, torch.Size], folder: str) -> None:
    """
    Raises:
        ValueError: names or shapes of tensors are not those that are wanted; the message has the first few.
    """
    wrong = [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name} is not the model's" for name in found if name not in wanted),
        *(
            f"{name} has shape {list(found[name])} where {list(shape)} is described"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ),
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more like this" if len(wrong) > 3 else ""
        raise ValueError(
            f"folder {folder} does not hold the weights that its config.json describes: {'; '.join(wrong[:3])}{more}"
        )


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
