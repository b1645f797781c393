"""A checkpoint as a folder of Hugging Face's layout: ``config.json``, ``model.safetensors`` (or shards and their index)
and ``tokenizer.json``. ``labsupport.json`` beside them, where we wrote the folder, records its source and checksum.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from labsupport.files import replacing, write_atomically
from labsupport.lm.config import LlamaConfig
from labsupport.lm.config_file import read_config
from labsupport.lm.config_writing import config_to_hugging_face
from labsupport.lm.model import Llama
from labsupport.lm.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer
from labsupport.lm.weights_file import as_dtype, load_into, read_weights


@dataclass
class LanguageModel:
    """``model(tokens)`` gives logits, ``tokenizer`` converts text to tokens and back; the rest describes the model."""

    model: Llama
    tokenizer: Tokenizer
    name: str
    source: str
    precision: str
    folder: Path | None = None  # where it was read from

    def __str__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        integers: list[Any] = [module for module in self.model.modules() if hasattr(module, "dequantize")]
        parameters += sum(module.in_features * module.out_features for module in integers)
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        count = f"{parameters / 1e6:.1f} million parameters"
        return f"{self.name}: {count}; from {self.source}; stored as {self.precision}, loaded as {dtype}"


# Who reads the layers of a quantized checkpoint. They stand above this folder, so they are imported when needed.
_READERS = {
    "labsupport": "labsupport.checkpoints.exact",
    "compressed-tensors": "labsupport.checkpoints.compressed_tensors",
    "gptq": "labsupport.checkpoints.gptq",
    "awq": "labsupport.checkpoints.awq",
}


def load_folder(folder: Path, device: str | torch.device, dtype: torch.dtype) -> LanguageModel:
    record = read_record(folder)
    config, quantization = read_config(folder), read_quantization(folder)
    weights = read_weights(folder, record)
    if config.tie_embeddings and _has_own_head(weights):
        config = replace(config, tie_embeddings=False)
    with torch.device("meta"):
        model = Llama(config)
    done: dict[str, nn.Module] = {}
    precision = record.get("precision")
    if quantization is not None:
        reader = importlib.import_module(_READERS[quantization["quant_method"]])
        done = reader.read_layers(model, weights, quantization)
        precision = precision or reader.describe(quantization)
    precision = precision or str(next(iter(weights.values())).dtype).removeprefix("torch.")
    weights = {name: as_dtype(name, value, device, dtype) for name, value in weights.items()}
    tied = config.tie_embeddings and "lm_head" not in done
    if tied and "embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    load_into(model, weights, done, folder.name)
    for name, module in done.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.to(device, dtype))
    if tied:
        model.lm_head.weight = model.embed_tokens.weight  # assignment made two parameters of the one
    tokenizer = read_tokenizer(folder, record)
    name, source = record.get("name", folder.name), record.get("source", f"folder {folder.name}")
    return LanguageModel(model.eval(), tokenizer, name, source, precision, folder)


def read_quantization(folder: Path) -> dict[str, Any] | None:
    """``quantization_config`` of config.json.

    Raises:
        ValueError: it is of a kind that nobody reads here.
    """
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = given.get("quantization_config") or given.get("compression_config")
    if not found:
        return None
    if found.get("quant_method") not in _READERS:
        raise ValueError(
            f"config.json: quantization_config has quant_method {found.get('quant_method')!r}, which cannot be read "
            f"here; {', '.join(_READERS)} can, and so can the float checkpoint that it was made from"
        )
    return found


def _has_own_head(weights: dict[str, Tensor]) -> bool:
    """A head beside the embedding that it is said to be tied to: transformers 5 keeps it, and so do we."""
    head, embedding = weights.get("lm_head.weight"), weights.get("embed_tokens.weight")
    if head is None or embedding is None or not head.is_floating_point():
        return False
    return head.shape == embedding.shape and not torch.equal(head, embedding)


def save_lm(lm: LanguageModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder that `load_lm` reads; files appear complete or not at all.

    Raises:
        ValueError: the model is quantized (`labsupport.checkpoints.save` writes it), or the tokenizer is of a kind that
            this format cannot store.
    """
    quantized = [name for name, module in lm.model.named_modules() if hasattr(module, "dequantize")]
    if quantized:
        raise ValueError(
            f"lm must hold float weights, {quantized[0]} is quantized: labsupport.checkpoints.save writes such models"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: (value if dtype is None else value.to(dtype)) for name, value in lm.model.state_dict().items()}
    if lm.model.config.tie_embeddings:
        state.pop("lm_head.weight")
    record: dict[str, Any] = {"name": lm.name, "source": lm.source, "precision": lm.precision}
    if isinstance(lm.tokenizer, BpeTokenizer):
        with replacing(folder / "tokenizer.json") as temporary:
            lm.tokenizer.tokenizer.save(str(temporary))
    elif isinstance(lm.tokenizer, ByteTokenizer):
        record["tokenizer"] = "bytes"
    else:
        raise ValueError(f"tokenizer must be a ByteTokenizer or a BpeTokenizer; got {type(lm.tokenizer).__name__}")
    write_folder(folder, lm.model.config, state, record, lm.tokenizer.eos_token_id)


def write_folder(
    folder: Path, config: LlamaConfig, weights: dict[str, Tensor], record: dict[str, Any], eos_token_id: int
) -> None:
    prefixed = {
        name if name.startswith("lm_head") else f"model.{name}": value.contiguous() for name, value in weights.items()
    }
    weights_file = folder / "model.safetensors"
    with replacing(weights_file) as temporary:
        save_file(prefixed, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", config_to_hugging_face(config, eos_token_id))
    record = record | {"sha256": sha256(weights_file), "bytes": weights_file.stat().st_size}
    write_json(folder / "labsupport.json", record)


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    path = folder / "labsupport.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_tokenizer(folder: Path, record: dict[str, Any]) -> Tokenizer:
    if record.get("tokenizer") == "bytes":
        return ByteTokenizer()
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"folder must hold tokenizer.json; {folder.name} does not")
    return BpeTokenizer.from_file(path, eos_token_ids(folder) or [-1])


def eos_token_ids(folder: Path) -> list[int]:
    """All tokens that end a text: those of config.json, then those of generation_config.json."""
    found: list[int] = []
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        given = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        found += [] if given is None else given if isinstance(given, list) else [given]
    return list(dict.fromkeys(found))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
