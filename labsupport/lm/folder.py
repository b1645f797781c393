"""A checkpoint as a folder of Hugging Face's layout: ``config.json``, ``model.safetensors`` (or shards and their index)
and ``tokenizer.json``. ``labsupport.json`` beside them, where we wrote the folder, records its source and checksum.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from labsupport.files import replacing, write_atomically
from labsupport.lm.config_file import config_to_hugging_face, read_config
from labsupport.lm.model import Llama, LlamaConfig
from labsupport.lm.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer


@dataclass
class LanguageModel:
    """``model(tokens)`` gives logits, ``tokenizer`` converts text to tokens and back; the rest describes the model."""

    model: Llama
    tokenizer: Tokenizer
    name: str
    source: str
    precision: str

    def __str__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        count = f"{parameters / 1e6:.1f} million parameters"
        return f"{self.name}: {count}; from {self.source}; stored as {self.precision}, loaded as {dtype}"


def load_folder(folder: Path, device: str | torch.device, dtype: torch.dtype) -> LanguageModel:
    record = read_record(folder)
    config = read_config(folder)
    weights = read_weights(folder, record)
    precision = record.get("precision") or str(next(iter(weights.values())).dtype).removeprefix("torch.")
    with torch.device("meta"):
        model = Llama(config)
    weights = {name.removeprefix("model."): value.to(device, dtype) for name, value in weights.items()}
    if config.tie_embeddings and "embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"folder {folder.name} does not hold the weights that its config.json describes: {error}"
        ) from error
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # assignment made two parameters of the one
    tokenizer = read_tokenizer(folder, record)
    name, source = record.get("name", folder.name), record.get("source", f"folder {folder.name}")
    return LanguageModel(model.eval(), tokenizer, name, source, precision)


def save_lm(lm: LanguageModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder that `load_lm` reads; files appear complete or not at all.

    Raises:
        ValueError: the tokenizer is of a kind that this format cannot store.
    """
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


def read_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        files = [single]
    elif index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(shards))]
    else:
        raise ValueError(f"folder must hold model.safetensors; {folder.name} holds neither that nor an index of shards")
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
    return weights


def read_tokenizer(folder: Path, record: dict[str, Any]) -> Tokenizer:
    if record.get("tokenizer") == "bytes":
        return ByteTokenizer()
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"folder must hold tokenizer.json; {folder.name} does not")
    eos = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) else eos
    return BpeTokenizer.from_file(path, eos_token_id=-1 if eos is None else eos)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
