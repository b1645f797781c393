"""Models that are larger than memory: a `Llama` whose layers are read from disk, each when it is asked for.

It computes what the whole model computes, layer by layer, and forgets each layer afterwards. Embedding, last norm and
head are in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from labsupport.lm.config import LlamaConfig
from labsupport.lm.config_file import read_config
from labsupport.lm.folder import LanguageModel, read_quantization, read_record, read_tokenizer
from labsupport.lm.model import DecoderLayer, Llama
from labsupport.lm.weights_file import as_dtype, check_names, stored_names


class LayersOnDisk(nn.ModuleList):
    """In the place of a model's layers: their names and sizes, without weights. ``read(index)`` makes one of them."""

    def __init__(self, config: LlamaConfig, read: Callable[[int], DecoderLayer]) -> None:
        with torch.device("meta"):
            super().__init__(DecoderLayer(config, index) for index in range(config.num_layers))
        self.read = read

    def __iter__(self) -> Iterator[Any]:
        return (self.read(index) for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        return self.read(index)


def is_on_disk(model: Any) -> bool:
    return isinstance(model.layers, LayersOnDisk)


def in_memory(model: Any, num_layers: int | None = None) -> Llama:
    """The same model with its (first) layers in memory; of other models a copy."""
    count = model.config.num_layers if num_layers is None else num_layers
    layers = [model.layers[index] for index in range(count)]
    return assembled(model, nn.ModuleList(layers if is_on_disk(model) else copy.deepcopy(layers)))


def assembled(model: Any, layers: nn.ModuleList | Sequence[nn.Module]) -> Llama:
    """A model of these layers, with the embedding, norm and head of ``model``, which are shared and not copied."""
    with torch.device("meta"):
        new = Llama(replace(model.config, num_layers=1))
    new.config = replace(model.config, num_layers=len(layers))
    new.embed_tokens, new.norm, new.lm_head = model.embed_tokens, model.norm, model.lm_head
    new.layers = layers if isinstance(layers, nn.ModuleList) else nn.ModuleList(layers)
    return new.train(model.training)


def open_folder(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """As `labsupport.lm.load_lm`, but for the layers, which stay on disk.

    Raises:
        ValueError: as `load_lm`; or the checkpoint is quantized.
    """
    record, config = read_record(folder), read_config(folder)
    if read_quantization(folder) is not None:
        raise ValueError(f"{folder.name} is quantized already: give the float checkpoint that it was made from")
    stored, shapes, kind = stored_names(folder, record)

    def read(prefix: str, module: Any) -> Any:
        """``module``, which is of no device yet, with the weights whose names begin with ``prefix``."""
        names = {name: f"{prefix}{name}" for name in module.state_dict()}
        weights = _read(stored, list(names.values()))
        converted = {name: as_dtype(long, weights[long], device, dtype) for name, long in names.items()}
        module.load_state_dict(converted, assign=True)
        return module.eval()

    def layer(index: int) -> DecoderLayer:
        with torch.device("meta"):
            empty = DecoderLayer(config, index)
        return read(f"layers.{index}.", empty)

    if config.tie_embeddings and "lm_head.weight" in stored:
        head, embedding = _read(stored, ["lm_head.weight", "embed_tokens.weight"]).values()
        if head.shape == embedding.shape and not torch.equal(head, embedding):
            config = replace(config, tie_embeddings=False)  # as load_lm: the file's own head counts
    with torch.device("meta"):
        model = Llama(config)
    if config.tie_embeddings and "embed_tokens.weight" in shapes:
        shapes["lm_head.weight"] = shapes["embed_tokens.weight"]
    check_names({name: value.shape for name, value in model.state_dict().items()}, shapes, folder.name)
    read("embed_tokens.", model.embed_tokens)
    read("norm.", model.norm)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    else:
        read("lm_head.", model.lm_head)
    model.layers = LayersOnDisk(config, layer).to(dtype=dtype)
    name, source = record.get("name", folder.name), record.get("source", f"folder {folder.name}")
    precision = record.get("precision", str(kind).removeprefix("torch."))
    return LanguageModel(model.eval(), read_tokenizer(folder, record), name, source, precision, folder)


def _read(stored: dict[str, tuple[Path, str]], names: list[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted({stored[name][0] for name in names}):
        with safe_open(path, "pt") as file:
            # a copy: what the library returns may be a view of the whole file
            found |= {name: file.get_tensor(stored[name][1]).clone() for name in names if stored[name][0] == path}
    return {name: found[name] for name in names}
