"""``save``: a model as a folder, in the format of the program that is to read it. One format a file beside this one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from labsupport.checkpoints import awq, compressed_tensors, exact, gguf, gptq, hugging_face
from labsupport.checkpoints.card import model_card
from labsupport.checkpoints.companions import config_json, copy_licences, write_companions
from labsupport.checkpoints.gguf_kquants import K_KINDS, column_importance
from labsupport.checkpoints.layers import integer_layers
from labsupport.checkpoints.shards import LayersDiffer, each_its_own, write_shards
from labsupport.files import replacing_folder
from labsupport.lm import LanguageModel
from labsupport.lm.by_layer import in_memory, is_on_disk
from labsupport.lm.folder import sha256, write_json
from labsupport.lm.tokenizer import ByteTokenizer

_TENSORS: dict[str, ModuleType] = {
    "labsupport": exact,
    "huggingface": hugging_face,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
}
FORMATS = (*_TENSORS, "gguf")
# Their scales are float16 numbers: a bfloat16 model would round them when it is loaded.
_HALF = ("compressed-tensors", "gptq", "awq")
_IN_MEMORY = 250_000_000  # parameters: a model whose layers lie on disk is read as a whole, for one file, up to this


def save(
    lm: LanguageModel,
    folder: Path | str,
    format: str = "labsupport",
    dtype: torch.dtype | None = None,
    kind: str | None = None,
    about: dict[str, Any] | None = None,
    calibration: Sequence[Tensor] | None = None,
) -> None:
    """Write ``lm`` as a checkpoint; the folder appears complete or not at all.

    Args:
        folder: must not exist yet, or be empty.
        format: labsupport (any result, bit for bit), huggingface (float), compressed-tensors, gptq, awq, gguf.
        dtype: of all weights that stay float. None: as they are; float16 in compressed-tensors, gptq and awq.
        kind: gguf only, of float matrices: F32, F16, Q8_0, Q4_0, Q4_1, or a K-quant: Q2_K to Q6_K, Q4_K_M, Q5_K_M.
            None: Q8_0.
        about: what the model card and labsupport.json say besides: method, perplexity before and after, ...
        calibration: K-quants only: 1-D int64 tensors of tokens, which say what columns matter.

    What llama.cpp does otherwise than the model is a warning, and stands in the model card.

    Raises:
        ValueError: the format is unknown or cannot hold this model; the message names the option that helps.
        FileExistsError: ``folder`` holds something.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    if is_on_disk(lm.model) and (format == "gguf" or _parameters(lm) <= _IN_MEMORY):
        lm = replace(lm, model=in_memory(lm.model))
    if kind is not None and format != "gguf":
        raise ValueError(f"kind is for format gguf; got {kind!r} and format {format}")
    if dtype is not None and format == "gguf":
        raise ValueError(f"dtype is for other formats than gguf: give kind F32 or F16; got {dtype}")
    if calibration is not None and kind not in K_KINDS:
        raise ValueError(f"calibration is for kinds {', '.join(K_KINDS)} of format gguf; got {kind} and {format}")
    about, notes = dict(about or {}), []
    with replacing_folder(folder) as temporary:
        if format == "gguf":
            about["kind"] = kind or "Q8_0"
            gguf.check_kind(about["kind"], bool(integer_layers(lm.model)))
            importance = None if calibration is None else column_importance(lm.model, calibration)
            notes = gguf.write_gguf(lm, temporary / "model.gguf", about["kind"], importance)
            copy_licences(lm, temporary)
        else:
            _write_safetensors(lm, temporary, format, dtype, about)
            write_companions(lm, temporary)
        card = model_card(lm, Path(folder).name, format, about, notes)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    for note in notes:
        warnings.warn(note, stacklevel=2)


def _write_safetensors(
    lm: LanguageModel, folder: Path, format: str, dtype: torch.dtype | None, about: dict[str, Any]
) -> None:
    own = torch.float16 if dtype is None and format in _HALF else dtype
    weights = folder / "model.safetensors"
    if is_on_disk(lm.model):
        try:
            names, quantization = write_shards(lm.model, folder, lambda part: _TENSORS[format].tensors(part, own))
        except LayersDiffer:
            for shard in folder.glob("*.safetensors"):
                shard.unlink()
            lm = replace(lm, model=in_memory(lm.model))
    if not is_on_disk(lm.model):
        tensors, quantization = _TENSORS[format].tensors(lm.model, own)
        names = set(tensors)
        save_file(each_its_own(tensors), weights, metadata={"format": "pt"})
        weights.chmod((folder.stat().st_mode & 0o666) or 0o644)  # safetensors writes for the owner alone
    config, separate = lm.model.config, "lm_head.weight" in names and format != "labsupport"
    if separate:
        config = replace(config, tie_embeddings=False)
    written = config_json(lm, config)
    floats = own or lm.model.embed_tokens.weight.dtype
    written |= {"dtype": str(floats).removeprefix("torch."), "torch_dtype": str(floats).removeprefix("torch.")}
    if quantization:
        written["quantization_config"] = quantization
    write_json(folder / "config.json", written)
    record: dict[str, Any] = {"name": lm.name, "source": lm.source} | about
    if not integer_layers(in_memory(lm.model, 1) if is_on_disk(lm.model) else lm.model):
        record["precision"] = lm.precision if dtype is None else str(dtype).removeprefix("torch.")
    if isinstance(lm.tokenizer, ByteTokenizer):
        record["tokenizer"] = "bytes"
    if weights.is_file():
        record |= {"sha256": sha256(weights), "bytes": weights.stat().st_size}
    write_json(folder / "labsupport.json", record)


def _parameters(lm: LanguageModel) -> int:
    return sum(each.numel() for each in lm.model.parameters())
